"""Stage 1: grow a tree of episodes for every task, under one budget. Knows protocols, never a
concrete environment or engine."""

from leafe.explore._config import ExploreConfig
from leafe.explore._cost import cost_of
from leafe.explore._env_pool import ActionTrace, Diverged, EnvLease, EnvPool, SnapshotHandle
from leafe.explore._episode import EpisodeRunner
from leafe.explore._idle import bounding, idle_in_a_row
from leafe.explore._scheduler import EpisodeSink, Exploration, Progress, explore
from leafe.explore._strategy import STRATEGIES, Plan, Strategy, make_strategy

__all__ = [
    "STRATEGIES",
    "EnvLease",
    "Diverged",
    "EpisodeRunner",
    "EpisodeSink",
    "Exploration",
    "ExploreConfig",
    "SnapshotHandle",
    "Plan",
    "Progress",
    "Strategy",
    "ActionTrace",
    "EnvPool",
    "bounding",
    "cost_of",
    "explore",
    "idle_in_a_row",
    "make_strategy",
]
