"""Episodes that somebody has already, as trees: reflection, rollback and distillation begin where
the logs end.

    problems = Problems()
    records = list(read(Path("episodes.jsonl"), "chat", problems))
    found = await replayed(records, pool, tasks, prompts, problems=problems)      # in the
    environment: only what it says again is trained on
    found = as_logged(records, problems=problems)                                 # without one: for
    rehearsal and preference pairs

The trees go to `explore(..., known=found.trees)`, to `leafe.distill.build`, or into a run folder by
`write`. What is not taken is counted, and said with
file and line.
"""

from leafe.imports._logged import CHAT_PROMPTS, ENV, as_logged
from leafe.imports._read import FORMATS, Format, read
from leafe.imports._records import Logged, LoggedTurn, Problems
from leafe.imports._replay import replayed
from leafe.imports._trees import Imported, write

__all__ = [
    "CHAT_PROMPTS",
    "FORMATS",
    "ENV",
    "Format",
    "Imported",
    "Logged",
    "LoggedTurn",
    "Problems",
    "as_logged",
    "read",
    "replayed",
    "write",
]
