"""What of a tree is learnt: the samples that an arm's recipe takes from it, and which tokens of each carry loss.

The samples are those of `leafe.distill`, made from this one tree with the arm's own options. What is drawn over all trees (a share of the episodes to rehearse,
anchors) cannot be seen from one of them: where the arm is trained already its exported data says what was drawn, else a sample is a candidate.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from leafe.core import ChatTokens, Tree, UserError
from leafe.distill import Part, Sample, build, encode
from leafe.prompts import Prompts
from leafe.view._run import Arm

PARTS: dict[Part, tuple[str, str]] = {
    "rehearsal": ("D_reh", "rehearsal: what went right, learnt as it was done"),
    "counterfactual": ("D_cf", "counterfactual: what the experience made the policy do, learnt at the history without the experience"),
    "reflection": ("D_refl", "reflection: the reflection itself, kept because its branch improved"),
}


@dataclass(frozen=True, slots=True)
class Learnt:
    """One sample of a turn."""

    sample: Sample
    used: bool | None
    """Whether it was drawn; None: a candidate, of which that is not known yet."""

    @property
    def short(self) -> str:
        return PARTS[self.sample.part][0]

    @property
    def long(self) -> str:
        return PARTS[self.sample.part][1]


def learnt(tree: Tree, prompts: Prompts, arm: Arm, drawn: Drawn | None) -> dict[str, list[Learnt]]:
    """By turn, what the arm learns from it."""
    config = arm.config.model_copy(update={"rehearsal_fraction": 1.0, "anchors": False})
    shared = arm.config.rehearsal_fraction < 1
    out: dict[str, list[Learnt]] = {}
    for sample in build({tree.task.id: tree}, prompts, config, arm.seed).samples:
        if sample.part not in PARTS:
            continue
        if drawn is not None and sample.part in drawn.parts:
            used: bool | None = (sample.part, sample.task_id, sample.turn_id) in drawn.samples
        else:
            used = None if shared and sample.part == "rehearsal" else True
        out.setdefault(sample.turn_id, []).append(Learnt(sample, used))
    return out


@dataclass(frozen=True, slots=True)
class Drawn:
    """What an arm was trained on, by its exported data."""

    parts: frozenset[str]
    samples: frozenset[tuple[str, str, str]]
    """(part, task, turn)."""


class Exports:
    """The exported data of a run's arms, read once each."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._known: dict[str, tuple[float, Drawn | None]] = {}
        self._mutex = threading.Lock()

    def of(self, arm: Arm) -> Drawn | None:
        """None where the arm is not trained yet, or its data cannot be read here. Only needed where something is drawn over all trees."""
        marker = self.run / arm.stage / "done.json"
        if arm.config.rehearsal_fraction == 1 or not marker.is_file():
            return None
        with self._mutex:
            written = marker.stat().st_mtime
            known = self._known.get(arm.stage)
            if known is None or known[0] != written:
                known = self._known[arm.stage] = (written, _read(self.run / arm.stage / "dataset"))
            return known[1]


def _read(folder: Path) -> Drawn | None:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        return None
    samples: set[tuple[str, str, str]] = set()
    parts = set()
    try:
        for path in sorted(folder.glob("*/*.parquet")):
            part = path.parent.name
            table = parquet.read_table(path, columns=["task_id", "turn_id"]).to_pydict()
            samples |= {(part, task, turn) for task, turn in zip(table["task_id"], table["turn_id"], strict=True)}
            parts.add(part)
    except (OSError, ValueError, KeyError, ArrowException):
        return None
    return Drawn(frozenset(parts), frozenset(samples)) if parts else None


@dataclass(frozen=True, slots=True)
class Token:
    id: int
    text: str
    special: bool = False


@dataclass(frozen=True, slots=True)
class Masked:
    """A sample as its loss sees it. With a tokenizer by tokens, else by text."""

    before: int
    """Masked tokens before those that are shown; 0 where only the text is known."""
    context: tuple[Token, ...] | str
    """The end of the prompt, which carries no loss."""
    target: tuple[Token, ...] | str
    """What is learnt, the end-of-turn token included."""
    masked: int | None = None
    targets: int | None = None


def masked(sample: Sample, chat: ChatTokens | None, shown: int = 80, most: int = 400) -> tuple[Masked, str]:
    """The sample's end with its mask, and a sentence where it is by text because its tokens cannot be had."""
    why = ""
    if chat is not None:
        try:
            encoded = encode([sample], chat, 1 << 40)
            sequence = encoded.parts[sample.part][0]
            span = sequence.spans[-1]
            begin = max(0, span.start - shown)
            context = tokens(chat, sequence.ids[begin : span.start])
            return Masked(begin, context, tokens(chat, sequence.ids[span.start : span.end][:most]), span.start, span.end - span.start), ""
        except (UserError, IndexError) as error:
            why = str(error) or "the answer has no tokens"
    last = sample.messages[-1].content if sample.messages else ""
    return Masked(0, last[-2000:], sample.answer.content[:8000]), why


def tokens(chat: ChatTokens, ids: tuple[int, ...]) -> tuple[Token, ...]:
    """Each token with its own text; where it is a part of a character only, with the vocabulary's name for it."""
    tokenizer = chat.tokenizer
    special = set(tokenizer.all_special_ids)
    out = []
    for each in ids:
        if not 0 <= each < len(tokenizer):
            out.append(Token(each, f"[{each}]", True))
            continue
        text = str(tokenizer.decode([each], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if "\ufffd" in text or not text:
            text = str(tokenizer.convert_ids_to_tokens(each))
        out.append(Token(each, text, each in special))
    return tuple(out)
