"""Agentic context engineering (arXiv 2510.04618): no weight changes; a playbook in the prompt is
grown over the training tasks and frozen for test.

grown = await ace(policy, pool, tasks, prompts, explore_config, AceConfig(), journal=journal,
known=load_trees(folder))
trees = await evaluate(policy, pool, test_tasks, with_playbook(prompts, grown.playbook))
"""

from leafe.baselines.ace._playbook import Delta, Gone, Item, Playbook, jaccard
from leafe.baselines.ace._read import DELTA_SCHEMA, LESSON_SCHEMA, Lesson, read_delta, read_lesson
from leafe.baselines.ace._run import Ace, AceConfig, Place, ace, with_playbook

__all__ = [
    "DELTA_SCHEMA",
    "LESSON_SCHEMA",
    "Ace",
    "AceConfig",
    "Delta",
    "Gone",
    "Item",
    "Lesson",
    "Place",
    "Playbook",
    "ace",
    "jaccard",
    "read_delta",
    "read_lesson",
    "with_playbook",
]
