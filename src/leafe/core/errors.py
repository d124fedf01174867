"""Three kinds of failure, told apart by who can fix them.

- `UserError`: the user can. One sentence says what is wrong, where, and what to do. The command
  line exits with code 2.
- `ForeignFailure`: something outside failed (an endpoint, an environment, a disk). It was retried
  within bounds and is counted; nothing that was finished is lost. Exit code 1.
- Anything else is a bug of leafe and is raised as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class LeafeError(Exception):
    """Base of every error that leafe raises on purpose."""


class UserError(LeafeError):
    """A usage or configuration error, in one sentence: what, where, what to do. Exit code 2."""


class ForeignFailure(LeafeError):
    """Something outside kept failing after the bounded retries. Exit code 1."""


class PolicyError(ForeignFailure):
    """The policy gave no answer (endpoint down, garbage, time-out). Ends the episode as
    `Stop.policy_error`."""


class ContextFull(PolicyError):
    """The prompt and the answer's token limit do not fit the policy's context. Ends the episode as
    `Stop.context_full`."""


class EnvError(ForeignFailure):
    """An environment raised or died. Ends the episode as `Stop.env_error`."""


class SnapshotGone(EnvError):
    """A snapshot is no longer held (its process died, or newer ones took its place). The caller
    resets and replays."""


class JournalError(ForeignFailure):
    """The journal cannot be written (a full disk, say), or is damaged before its last line."""


@contextmanager
def ungrouped() -> Iterator[None]:
    """Raise the first error of an exception group on its own, with its own cause.

    Put it around an `asyncio.TaskGroup`: callers then see the error that ended the group.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from error.__cause__
