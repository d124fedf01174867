"""History to messages, model text to actions and reflections; all wording lives here, as data."""

from leafe.prompts._attempts import attempt_text, cut_middle
from leafe.prompts._history import (
    REFLECTION_SCHEMA,
    History,
    PromptCache,
    Prompts,
    UnusableReflection,
    history_before,
    notes_on,
)
from leafe.prompts._objects import Unreadable, last_object, whole_number
from leafe.prompts._reflecting import MOST_TRIED, shortened, shortenings, tried_on
from leafe.prompts._set import PromptSet, fill, load_prompt_set, prompt_sets

__all__ = [
    "MOST_TRIED",
    "REFLECTION_SCHEMA",
    "History",
    "PromptSet",
    "Prompts",
    "PromptCache",
    "Unreadable",
    "UnusableReflection",
    "attempt_text",
    "cut_middle",
    "fill",
    "history_before",
    "last_object",
    "load_prompt_set",
    "notes_on",
    "prompt_sets",
    "shortened",
    "shortenings",
    "tried_on",
    "whole_number",
]
