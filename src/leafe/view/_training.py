"""What an arm trains on, of one tree: its samples, and which tokens of each carry loss.

The samples are those of `leafe.distill`, made from this one tree with the arm's own options. What
is drawn over all trees (a share of the episodes to rehearse, anchors) cannot be seen from one of
them: where the arm is trained, its exported data says what was drawn, else a sample is a candidate.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from leafe.core import ChatTokens, LeafeError, Tree, UserError
from leafe.distill import Part, Sample, build, encode
from leafe.prompts import Prompts
from leafe.view._run import Arm, Available, waited

_KEPT = 32
LONG = 200_000
"""The most characters of a prompt that a page tokenises."""

PARTS: dict[Part, tuple[str, str]] = {
    "rehearsal": ("D_reh", "rehearsal: what went right, learnt as it was done"),
    "counterfactual": (
        "D_cf",
        "counterfactual: what the experience made the policy do, learnt at the history without "
        "the experience",
    ),
    "reflection": ("D_refl", "reflection: the reflection itself, kept because its branch improved"),
}
"""By part of a training set: its name in the paper, and what it is."""


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One sample of a turn. `used` says whether the training drew it; None: not known yet."""

    sample: Sample
    used: bool | None


Samples: TypeAlias = Mapping[str, list[TrainingSample]]
"""By turn, the samples that an arm takes from a tree."""


Exported: TypeAlias = Mapping[str, set[tuple[str, str]]]
"""By part of an exported training set, (task, turn) of every sample."""


class Training:
    """The samples that the arms of a run take from its trees, worked out in the background and kept
    for the trees that were looked at last.

    Args:
        run: The run folder.
        notify: Called when something that a page did not wait for is there.
    """

    def __init__(self, run: Path, notify: Callable[[], None]) -> None:
        self.run = run
        self._notify = notify
        self._workers = ThreadPoolExecutor(1, "training")
        self._kept: OrderedDict[tuple[object, ...], Future[Available[Samples]]] = OrderedDict()
        self._exports: dict[str, tuple[float, Exported | None]] = {}
        self._mutex = threading.Lock()

    def samples(self, stage: str, tree: Tree, prompts: Prompts, arm: Arm) -> Available[Samples]:
        """What the arm takes from a tree of a stage; a sentence where that takes longer than a page
        waits, or cannot be worked out."""
        marker = self.run / arm.stage / "done.json"
        trained = marker.stat().st_mtime if marker.is_file() else 0.0
        options = arm.config.model_dump_json()
        key = (stage, tree.task.id, len(tree.episodes), arm.stage, options, trained)
        with self._mutex:
            future = self._kept.pop(key, None)
            if future is None:
                future = self._workers.submit(self._work, tree, prompts, arm, trained)
                future.add_done_callback(lambda _: self._notify())
            self._kept[key] = future
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return waited(future, "it is being worked out; look again in a moment.")

    def close(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _work(self, tree: Tree, prompts: Prompts, arm: Arm, trained: float) -> Available[Samples]:
        try:
            return Available(_samples(tree, prompts, arm, self._exported(arm, trained)))
        except (LeafeError, UnicodeError) as error:  # no seed can be made of half surrogates
            return Available(None, str(error))

    def _exported(self, arm: Arm, trained: float) -> Exported | None:
        """What was drawn; None where the arm is not trained yet, its data cannot be read here, or
        it draws nothing over all trees."""
        if arm.config.rehearsal_fraction == 1 or not trained:
            return None
        known = self._exports.get(arm.stage)
        if known is None or known[0] != trained:
            known = self._exports[arm.stage] = (trained, _read(self.run / arm.stage / "dataset"))
        return known[1]


def _samples(
    tree: Tree, prompts: Prompts, arm: Arm, drawn: Exported | None
) -> dict[str, list[TrainingSample]]:
    config = arm.config.model_copy(update={"rehearsal_fraction": 1.0, "anchors": False})
    shared = arm.config.rehearsal_fraction < 1
    out: dict[str, list[TrainingSample]] = {}
    for sample in build({tree.task.id: tree}, prompts, config, arm.seed).samples:
        if sample.part not in PARTS:
            continue
        used: bool | None = None if shared and sample.part == "rehearsal" else True
        if drawn is not None and sample.part in drawn:
            used = (sample.task_id, sample.turn_id) in drawn[sample.part]
        out.setdefault(sample.turn_id, []).append(TrainingSample(sample, used))
    return out


def _read(folder: Path) -> Exported | None:
    """What an arm was trained on; None where it cannot be read here."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        return None
    found: dict[str, set[tuple[str, str]]] = {}
    try:
        for path in sorted(folder.glob("*/*.parquet")):
            table = parquet.read_table(path, columns=["task_id", "turn_id"]).to_pydict()
            samples = zip(table["task_id"], table["turn_id"], strict=True)
            found.setdefault(path.parent.name, set()).update(samples)
    except (OSError, ValueError, KeyError, ArrowException):
        return None
    return found or None


@dataclass(frozen=True, slots=True)
class Token:
    """A token with its text."""

    id: int
    text: str
    special: bool = False


@dataclass(frozen=True, slots=True)
class LossMask:
    """A sample as its loss sees it: by tokens where there is a tokenizer, else by text.

    Attributes:
        context: The end of the prompt, which carries no loss.
        target: What is learnt, the end-of-turn token included.
        before: Tokens of the prompt before `context`.
        masked: Tokens without loss; None where only the text is known.
        targets: Tokens with loss.
        why: Why the mask is by text.
    """

    context: tuple[Token, ...] | str
    target: tuple[Token, ...] | str
    before: int = 0
    masked: int | None = None
    targets: int | None = None
    why: str = ""


def loss_mask(
    sample: Sample, chat: ChatTokens | None, shown: int = 80, most: int = 400
) -> LossMask:
    """The mask of a sample: the last `shown` tokens of its prompt, the first `most` of its
    answer."""
    why = ""
    if sum(len(message.content) for message in sample.messages) > LONG:
        why = "The prompt is too long to be put into tokens for a page."
    elif chat is not None:
        try:
            sequence = encode([sample], chat, 1 << 40).parts[sample.part][0]
            span = sequence.spans[-1]
            begin = max(0, span.start - shown)
            return LossMask(
                tokens(chat, sequence.ids[begin : span.start]),
                tokens(chat, sequence.ids[span.start : span.end][:most]),
                begin,
                span.start,
                span.end - span.start,
            )
        except (UserError, IndexError, ValueError, TypeError) as error:  # half surrogates, say
            why = f"It has no tokens ({type(error).__name__}: {error})."
    last = sample.messages[-1].content if sample.messages else ""
    return LossMask(last[-2000:], sample.answer.content[:8000], why=why)


def tokens(chat: ChatTokens, ids: tuple[int, ...]) -> tuple[Token, ...]:
    """Each token with its own text; a part of a character has the vocabulary's name for it."""
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
