"""Early Experience (arXiv 2510.08558), both variants: reward-free learning from what other actions
than the expert's would have led to.

    collected = await collect(
        policy, pool, trees, prompts, explore_config, own,
        journal=journal, known=by_task(read_journal(folder)),
    )
    data = early_data(trees, collected.trees, prompts, own)
    train_early(model_path, out, data, "world_model", preset("rehearsal", max_steps=60))

The expert's trajectories are the successes in the trees of Stage 1, of whatever strategy.
"""

from leafe.baselines.early_experience._collect import (
    Collected,
    EarlyConfig,
    by_task,
    check_thoughts,
    collect,
    expert_turns,
    experts,
)
from leafe.baselines.early_experience._phases import Variant, train_early
from leafe.baselines.early_experience._samples import EarlyData, early_data

__all__ = [
    "Collected",
    "EarlyConfig",
    "EarlyData",
    "Variant",
    "by_task",
    "check_thoughts",
    "collect",
    "early_data",
    "expert_turns",
    "experts",
    "train_early",
]
