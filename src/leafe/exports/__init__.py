"""The samples of a run as files that other trainers read as they are, with a card that says what
they are.

    source = samples_of(RunFolder.read("runs/demo"), arm="leafe+")
    export(source, "axolotl", "out")

A sample is a prompt and the one answer that bears the loss; every format is a way of writing that
down. What a format cannot say is counted and written
into the card. `episodes_of` and the target `chat` write whole episodes with their rewards: what
`leafe import` reads.
"""

from leafe.exports._lengths import Lengths, Tokenizer, tokenizer_of
from leafe.exports._pairs import first_differences
from leafe.exports._push import push
from leafe.exports._source import Source, episodes_of, samples_of
from leafe.exports._write import TARGETS, Exported, Target, export

__all__ = [
    "TARGETS",
    "Exported",
    "Lengths",
    "Source",
    "Target",
    "Tokenizer",
    "episodes_of",
    "export",
    "first_differences",
    "push",
    "samples_of",
    "tokenizer_of",
]
