"""What all other parts of leafe speak. Imports nothing of ours and no torch."""

from leafe.core.acting import act_turn
from leafe.core.budget import LIMITS, Budget, Spent
from leafe.core.chat import ChatTokens, is_plain
from leafe.core.environment import Environment, StepResult, observation_hash
from leafe.core.errors import (
    ContextFull,
    EnvError,
    ForeignFailure,
    JournalError,
    LeafeError,
    PolicyError,
    SnapshotGone,
    UserError,
)
from leafe.core.named import find_named
from leafe.core.policy import Completion, Message, Policy, Request
from leafe.core.seeds import derive_seed
from leafe.core.text import clean_text, visible
from leafe.core.tree import Tree
from leafe.core.types import (
    FAILED,
    FAILED_BY_ENV,
    FOREIGN,
    LOST,
    Branch,
    Episode,
    ImprovementRule,
    Kind,
    Scope,
    Stop,
    Task,
    Turn,
    Usage,
    token_ids,
    turn_id,
)

__all__ = [
    "FAILED",
    "FAILED_BY_ENV",
    "FOREIGN",
    "LIMITS",
    "LOST",
    "Branch",
    "Budget",
    "ChatTokens",
    "Completion",
    "ContextFull",
    "Environment",
    "Episode",
    "ForeignFailure",
    "ImprovementRule",
    "JournalError",
    "Kind",
    "LeafeError",
    "Message",
    "Policy",
    "PolicyError",
    "Request",
    "Scope",
    "SnapshotGone",
    "Spent",
    "StepResult",
    "Stop",
    "Task",
    "Tree",
    "Turn",
    "Usage",
    "UserError",
    "EnvError",
    "act_turn",
    "clean_text",
    "derive_seed",
    "find_named",
    "is_plain",
    "observation_hash",
    "token_ids",
    "turn_id",
    "visible",
]
