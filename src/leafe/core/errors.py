"""Three kinds of failure, told apart by who can mend them.

A `UserError` is the user's to mend: one sentence that says what is wrong, where, and what to do;
the command line
exits with code 2. A `ForeignFailure` comes from outside (an endpoint, an environment, a disk): it
has been retried within bounds before it
is raised, it is counted, and nothing that was finished is lost. Anything else is our own bug and is
raised as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class LeafeError(Exception):
    """Base of every error that leafe raises on purpose."""


class UserError(LeafeError):
    """The user's mistake, in one sentence: what, where, what to do. Exit code 2."""


class ForeignFailure(LeafeError):
    """Something outside failed and went on failing after the bounded retries. Exit code 1."""


class PolicyError(ForeignFailure):
    """The policy gave no answer (endpoint down, garbage, time-out). Ends the episode as
    `Stop.policy_error`."""


class ContextFull(PolicyError):
    """The prompt and the answer's limit do not fit the policy's context. Ends the episode as
    `Stop.context_full`."""


class EnvError(ForeignFailure):
    """An environment raised or died. Ends the episode as `Stop.env_error`."""


class SnapshotGone(EnvError):
    """A snapshot is no longer held (its process died, or others took its place): reset and replay
    lead to the same state."""


class JournalError(ForeignFailure):
    """The journal could not be written (disk full, say) or is damaged before its last line."""


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
