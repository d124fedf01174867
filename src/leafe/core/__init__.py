"""The records, contracts and rules that all other parts of leafe share.

It holds the records (`Task`, `Turn`, `Episode`, `Branch`), the `Tree` of a task, the `Budget`, the
two contracts `Environment` and `Policy`, exact token ids of chats (`ChatTokens`), seeds and errors.
It imports no other part and no torch.
"""

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
    ungrouped,
)
from leafe.core.named import find_named
from leafe.core.policy import (
    Completion,
    Message,
    Policy,
    Request,
    SupportsCheck,
    SupportsReport,
    SupportsScore,
    SupportsStats,
)
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
    "SupportsCheck",
    "SupportsReport",
    "SupportsScore",
    "SupportsStats",
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
    "ungrouped",
    "visible",
]
