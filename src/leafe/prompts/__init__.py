"""History to messages, and model text to actions and reflections; all wording is data here.

A prompt set (a TOML file) holds every text that leafe says to a model. The part knows the records
of `core`, and no environment, policy or strategy.
"""

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
from leafe.prompts._reflecting import MAX_TRIED_ADVICE, shortened, shortenings, tried_advice
from leafe.prompts._set import PromptSet, fill, load_prompt_set, prompt_sets

__all__ = [
    "MAX_TRIED_ADVICE",
    "REFLECTION_SCHEMA",
    "History",
    "PromptCache",
    "PromptSet",
    "Prompts",
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
    "tried_advice",
    "whole_number",
]
