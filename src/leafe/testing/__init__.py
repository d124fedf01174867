"""Checks that an environment keeps the contract of `leafe.core.Environment`.

The environment is played, replayed, restored from snapshots and played in other processes, and all
answers are compared. The same task, seed and actions must give the same observations, in any
process and under any hash seed. A snapshot must restore exactly its state. An invalid action must
get a sentence and change nothing. Progress must never shrink, the global random state must stay
untouched, and close must leave no process behind.

    report = check_environment(MyEnv)
    assert not report.problems, report

This package imports `leafe.envs` and `leafe.core`.
"""

from leafe.testing._check import Actions, Report, check_environment
from leafe.testing._table import reports_table

__all__ = ["Actions", "Report", "check_environment", "reports_table"]
