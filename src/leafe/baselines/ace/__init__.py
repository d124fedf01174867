"""Agentic context engineering (arXiv 2510.04618): no weight changes; a playbook in the prompt is
built over the training tasks and frozen for test.

    result = await ace(
        policy, pool, tasks, prompts, explore_config, AceConfig(),
        journal=journal, known=load_trees(folder),
    )
    trees = await evaluate(policy, pool, test_tasks, with_playbook(prompts, result.playbook))
"""

from leafe.baselines.ace._playbook import Delta, Playbook, PlaybookItem, RemovedItem, jaccard
from leafe.baselines.ace._read import (
    DELTA_SCHEMA,
    INSIGHT_SCHEMA,
    Insight,
    parse_delta,
    parse_insight,
)
from leafe.baselines.ace._run import AceConfig, AceResult, Place, ace, with_playbook

__all__ = [
    "DELTA_SCHEMA",
    "INSIGHT_SCHEMA",
    "AceConfig",
    "AceResult",
    "Delta",
    "Insight",
    "Place",
    "Playbook",
    "PlaybookItem",
    "RemovedItem",
    "ace",
    "jaccard",
    "parse_delta",
    "parse_insight",
    "with_playbook",
]
