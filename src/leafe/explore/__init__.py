"""Stage 1: explore tasks and grow a tree of episodes for each, under one budget.

The part holds the strategies, the scheduler of many tasks, the pool of environments and the runner
of one episode. It knows the protocols `Environment` and `Policy` of `leafe.core`, never a concrete
environment or engine, and imports `core`, `prompts` and `runs` alone.
"""

from leafe.explore._accounting import (
    add_cost,
    charge_tokens,
    cost_of,
    invalid_in_a_row,
    limited_quantities,
    stalled_in_a_row,
)
from leafe.explore._config import ExploreConfig
from leafe.explore._env_pool import ActionTrace, EnvLease, EnvPool, ReplayDiverged, SnapshotHandle
from leafe.explore._episode import EpisodeRunner, unplayed_turn
from leafe.explore._journal_writer import EpisodeSink
from leafe.explore._requests import complete_all, complete_one
from leafe.explore._scheduler import Exploration, Progress, check_tasks, explore
from leafe.explore._strategy import STRATEGIES, Plan, Strategy, make_strategy

__all__ = [
    "STRATEGIES",
    "ActionTrace",
    "EnvLease",
    "EnvPool",
    "EpisodeRunner",
    "EpisodeSink",
    "Exploration",
    "ExploreConfig",
    "Plan",
    "Progress",
    "ReplayDiverged",
    "SnapshotHandle",
    "Strategy",
    "add_cost",
    "charge_tokens",
    "check_tasks",
    "complete_all",
    "complete_one",
    "cost_of",
    "explore",
    "invalid_in_a_row",
    "limited_quantities",
    "make_strategy",
    "stalled_in_a_row",
    "unplayed_turn",
]
