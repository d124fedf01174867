"""Data in and out: a run's training samples as files for other trainers, and other tools' logs as
exploration trees.

    source = samples_of(RunFolder.read("runs/demo"), arm="leafe+")
    export(source, "axolotl", "out")

    problems = Problems()
    records = list(read_log(Path("episodes.jsonl"), "chat", problems))
    found = await replayed(records, pool, tasks, prompts, problems=problems)  # verified by replay
    found = as_logged(records, problems=problems)  # unverified: rehearsal and preference pairs only

`exporting` writes samples and episodes; each file format has one supervised answer per row, and the
dataset card counts whatever a format cannot express. `importing` reads logs and builds trees for
`explore(..., known=found.trees)`, `leafe.distill.build` or a run folder (`write_trees`). Formats:
docs/data.md.

This part may import every part below it, the pipeline included (to find an arm's stages). Nothing
but the command line imports it. It names no environment and no engine: pools and tokenizers are
passed in or taken from the run.
"""

from leafe.data.exporting._lengths import Lengths, Tokenizer, tokenizer_of
from leafe.data.exporting._pairs import first_differences
from leafe.data.exporting._push import push
from leafe.data.exporting._source import Source, episodes_of, samples_of
from leafe.data.exporting._write import TARGETS, Exported, Target, export
from leafe.data.importing._logged import CHAT_PROMPTS, IMPORTED_ENV, as_logged
from leafe.data.importing._read import FORMATS, Format, read_log
from leafe.data.importing._records import LoggedEpisode, LoggedTurn, Problems
from leafe.data.importing._replay import replayed
from leafe.data.importing._trees import Imported, write_trees

__all__ = [
    "CHAT_PROMPTS",
    "FORMATS",
    "IMPORTED_ENV",
    "TARGETS",
    "Exported",
    "Format",
    "Imported",
    "Lengths",
    "LoggedEpisode",
    "LoggedTurn",
    "Problems",
    "Source",
    "Target",
    "Tokenizer",
    "as_logged",
    "episodes_of",
    "export",
    "first_differences",
    "push",
    "read_log",
    "replayed",
    "samples_of",
    "tokenizer_of",
    "write_trees",
]
