"""History to messages, model text to actions and reflections; all wording lives here, as data."""

from leafe.prompts._attempts import attempt_text, cut_middle
from leafe.prompts._history import REFLECTION_SCHEMA, History, Prompts, Said, UnusableReflection, first_object, history_before, notes_on
from leafe.prompts._reflecting import MOST_TRIED, shortened, shortenings, tried_on
from leafe.prompts._set import PromptSet, fill, load_prompt_set, prompt_sets

__all__ = [
    "MOST_TRIED", "REFLECTION_SCHEMA", "History", "PromptSet", "Prompts", "Said", "UnusableReflection", "attempt_text", "cut_middle", "fill", "first_object",
    "history_before", "load_prompt_set", "notes_on", "prompt_sets", "shortened", "shortenings", "tried_on",
]  # fmt: skip
