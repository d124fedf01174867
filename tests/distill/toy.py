"""What the distill tests share: a prompt set whose words the tiny tokenizer knows, and trees by the
number."""

from __future__ import annotations

import functools
from pathlib import Path

from leafe.core import ChatTokens, Tree
from leafe.prompts import Prompts, PromptSet
from tests.tiny import tiny_checkpoint, tiny_tokenizer
from tests.trees import make_tree

TASKS = [f"t{i}" for i in range(12)]
_TEXT = """
take use go left key lamp open door box walk out back start seen leave the house fly !fly there
is no it broke earlier ; : s0 s1 s2 s3 s4 s5 s6 s7 s8 note reflect
"""
WORDS = (*_TEXT.split(), *TASKS)

PROMPTS = Prompts(
    PromptSet(
        name="toy",
        first="{preamble}{instruction} ; s{step} ; {observation}",
        preamble="earlier : {experience} ; ",
        turn="s{step} ; {observation}",
        experience=" ; note : {experience}",
        reflect=" ; reflect",
        action="plain",
        reflection="pattern",
        reflection_pattern=r"^s(?P<step>\d+) : (?P<experience>.+)$",
    )
)


def forest(number: int = 6) -> dict[str, Tree]:
    """The default tree for each of the first tasks."""
    return {t: make_tree(task_id=t) for t in TASKS[:number]}


@functools.cache
def chat() -> ChatTokens:
    return ChatTokens(tiny_tokenizer(WORDS), "toy")


def checkpoint(folder: Path, scale: float = 0.2) -> Path:
    """A two-layer model that knows the words; its distributions are peaked, so that losses differ
    between contexts."""
    return tiny_checkpoint(folder, words=WORDS, layers=2, width=32, scale=scale)
