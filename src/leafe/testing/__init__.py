"""Does an environment keep its contract? Played, replayed and returned to, here and in other
processes, and compared.

What leafe builds on is checked as `leafe.core.Environment` states it: the same task, seed and
actions give the same observations, in any process and under any
hash seed; a snapshot brings back exactly the state that it was taken in; an invalid action is named
by a sentence and changes nothing; progress never
shrinks; nothing touches the global random state; close leaves no process behind.

    report = check_environment(MyEnv)
    assert not report.problems, report
"""

from leafe.testing._check import Actions, Report, check_environment
from leafe.testing._table import reports_table

__all__ = ["Actions", "Report", "check_environment", "reports_table"]
