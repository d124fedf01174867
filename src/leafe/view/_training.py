"""What of a tree is learnt: the samples that an arm's recipe takes from it, and which tokens of
each carry loss.

The samples are those of `leafe.distill`, made from this one tree with the arm's own options. What
is drawn over all trees (a share of the episodes to rehearse,
anchors) cannot be seen from one of them: where the arm is trained already its exported data says
what was drawn, else a sample is a candidate.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from leafe.core import ChatTokens, LeafeError, Tree, UserError
from leafe.distill import Part, Sample, build, encode
from leafe.prompts import Prompts
from leafe.view._run import Arm, Had, waited

_KEPT = 32
LONG = 200_000
"""Characters of a prompt."""

PARTS: dict[Part, tuple[str, str]] = {
    "rehearsal": ("D_reh", "rehearsal: what went right, learnt as it was done"),
    "counterfactual": (
        "D_cf",
        (
            "counterfactual: what the experience made the policy do, learnt at the history "
            "without the experience"
        ),
    ),
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


@dataclass(frozen=True, slots=True)
class Drawn:
    """What an arm was trained on, by its exported data."""

    parts: frozenset[str]
    samples: frozenset[tuple[str, str, str]]
    """(part, task, turn)."""


class Training:
    """What the arms of a run learn from its trees, worked out in the background and kept for the
    trees that were looked at last."""

    def __init__(self, run: Path, told: Callable[[], None]) -> None:
        """`told` is called when something that a page did not wait for is there."""
        self.run = run
        self._told = told
        self._workers = ThreadPoolExecutor(1, "learnt")
        self._kept: OrderedDict[tuple[object, ...], Future[Had[Mapping[str, list[Learnt]]]]] = (
            OrderedDict()
        )
        self._drawn: dict[str, tuple[float, Drawn | None]] = {}
        self._mutex = threading.Lock()

    def of(
        self, stage: str, tree: Tree, prompts: Prompts, arm: Arm
    ) -> Had[Mapping[str, list[Learnt]]]:
        """By turn, what the arm learns from the tree; a sentence where that takes longer than a
        page waits, or cannot be worked out."""
        marker = self.run / arm.stage / "done.json"
        trained = marker.stat().st_mtime if marker.is_file() else 0.0
        key = (
            stage,
            tree.task.id,
            len(tree.episodes),
            arm.stage,
            arm.config.model_dump_json(),
            trained,
        )
        with self._mutex:
            future = self._kept.pop(key, None)
            if future is None:
                future = self._workers.submit(self._work, tree, prompts, arm, trained)
                future.add_done_callback(lambda _: self._told())
            self._kept[key] = future
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return waited(future, "it is being worked out; look again in a moment.")

    def close(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _work(
        self, tree: Tree, prompts: Prompts, arm: Arm, trained: float
    ) -> Had[Mapping[str, list[Learnt]]]:
        try:
            return Had(_learnt(tree, prompts, arm, self._exported(arm, trained)))
        except (
            LeafeError,
            UnicodeError,
        ) as error:  # half surrogates in a task's name: no seed can be made of them
            return Had(None, str(error))

    def _exported(self, arm: Arm, trained: float) -> Drawn | None:
        """What was drawn; None where the arm is not trained yet, its data cannot be read here, or
        it draws nothing over all trees."""
        if arm.config.rehearsal_fraction == 1 or not trained:
            return None
        known = self._drawn.get(arm.stage)
        if known is None or known[0] != trained:
            known = self._drawn[arm.stage] = (trained, _read(self.run / arm.stage / "dataset"))
        return known[1]


def _learnt(tree: Tree, prompts: Prompts, arm: Arm, drawn: Drawn | None) -> dict[str, list[Learnt]]:
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
            samples |= {
                (part, task, turn)
                for task, turn in zip(table["task_id"], table["turn_id"], strict=True)
            }
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


def masked(
    sample: Sample, chat: ChatTokens | None, shown: int = 80, most: int = 400
) -> tuple[Masked, str]:
    """The sample's end with its mask, and a sentence where it is by text because its tokens cannot
    be had."""
    why = ""
    if sum(len(message.content) for message in sample.messages) > LONG:
        why, chat = "The prompt is too long to be put into tokens for a page.", None
    if chat is not None:
        try:
            encoded = encode([sample], chat, 1 << 40)
            sequence = encoded.parts[sample.part][0]
            span = sequence.spans[-1]
            begin = max(0, span.start - shown)
            context = tokens(chat, sequence.ids[begin : span.start])
            return Masked(
                begin,
                context,
                tokens(chat, sequence.ids[span.start : span.end][:most]),
                span.start,
                span.end - span.start,
            ), ""
        except (
            UserError,
            IndexError,
            ValueError,
            TypeError,
        ) as error:  # tokenizers refuse half surrogates by these
            why = f"It has no tokens ({type(error).__name__}: {error})."
    last = sample.messages[-1].content if sample.messages else ""
    return Masked(0, last[-2000:], sample.answer.content[:8000]), why


def tokens(chat: ChatTokens, ids: tuple[int, ...]) -> tuple[Token, ...]:
    """Each token with its own text; where it is a part of a character only, with the vocabulary's
    name for it."""
    tokenizer = chat.tokenizer
    special = set(tokenizer.all_special_ids)
    out = []
    for each in ids:
        if not 0 <= each < len(tokenizer):
            out.append(Token(each, f"[{each}]", True))
            continue
        text = str(
            tokenizer.decode([each], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )
        if "\ufffd" in text or not text:
            text = str(tokenizer.convert_ids_to_tokens(each))
        out.append(Token(each, text, each in special))
    return tuple(out)
