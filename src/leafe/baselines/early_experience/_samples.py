"""Turns collected trees into training data: next observations, the expert's actions, explanations.

The next observation is trained as the answer to a request (the set's `predict`), in a turn of the
assistant: so every chat template has a place for it, only it and its end carry loss, and nothing is
trained in the user's role. All samples are of the part `rehearsal`: each phase is plain
cross-entropy on one set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from leafe.baselines.early_experience._collect import EarlyConfig, expert_turns
from leafe.core import Episode, Kind, Message, Tree, Turn
from leafe.distill import Dataset, Sample
from leafe.prompts import History, Prompts, fill, history_before


@dataclass(frozen=True, slots=True)
class EarlyData:
    """The three sets of samples."""

    world_model: Dataset
    """Next observations, of the alternatives and of the expert's own actions."""
    expert: Dataset
    """The expert's actions."""
    reasoned: Dataset
    """Explanation and expert action as one answer; empty where nothing was explained."""

    @property
    def mixed(self) -> Dataset:
        """Reasoned and expert samples together: what self-reflection trains on."""
        return Dataset(
            (*self.reasoned.samples, *self.expert.samples),
            {},
            {**self.reasoned.skipped, **self.expert.skipped},
        )


def early_data(
    trees: Mapping[str, Tree], collected: Mapping[str, Tree], prompts: Prompts, own: EarlyConfig
) -> EarlyData:
    """The samples of a collection; a pure function of its arguments.

    Args:
        trees: The exploration's, by task id.
        collected: What `collect` gave, by task id.
        prompts: The wording.
        own: The settings of the collection.
    """
    world_model, expert, reasoned = _SampleSet(), _SampleSet(), _SampleSet()
    for task_id, tree in collected.items():
        before = len(trees[task_id].episodes)
        turns = expert_turns(tree, own.successes, before)
        by_state: dict[str | None, Turn] = {}
        for turn in turns:
            by_state.setdefault(turn.parent, turn)
            if turn.cut:
                expert.skipped["expert: the answer was cut at its limit of tokens"] += 1
            else:
                expert.add(
                    turn,
                    prompts.act(_history(tree, turn)),
                    Message("assistant", turn.action_text, turn.tokens),
                    "the expert's action",
                )
            _add_prediction(world_model, tree, turn, prompts, "after the expert's action")
        for episode in tree.episodes[before:]:
            for turn in episode.acts:
                _add_prediction(
                    world_model,
                    tree,
                    turn,
                    prompts,
                    f"after an alternative to {by_state[episode.start].id}",
                )
            for turn in _explanations(episode):
                _add_explained(reasoned, tree, by_state[episode.start], turn, prompts)
    return EarlyData(world_model.dataset(), expert.dataset(), reasoned.dataset())


class _SampleSet:
    """Distinct samples, and what was left out."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.skipped: Counter[str] = Counter()
        self.duplicates = 0
        self._seen: set[tuple[object, ...]] = set()

    def add(self, turn: Turn, messages: tuple[Message, ...], answer: Message, note: str) -> None:
        key = (turn.task_id, tuple((m.role, m.content) for m in messages), answer.content)
        if key in self._seen:
            self.duplicates += 1
            return
        self._seen.add(key)
        self.samples.append(Sample("rehearsal", turn.task_id, turn.id, messages, answer, note=note))

    def dataset(self) -> Dataset:
        return Dataset(
            tuple(self.samples),
            {"rehearsal": self.duplicates} if self.duplicates else {},
            dict(self.skipped),
        )


def _history(tree: Tree, turn: Turn) -> History:
    return history_before(tree, turn, with_experience=False)


def _add_prediction(
    world_model: _SampleSet, tree: Tree, turn: Turn, prompts: Prompts, note: str
) -> None:
    if not turn.observation.strip():
        world_model.skipped["environment: the environment said nothing"] += 1
        return
    messages = prompts.with_request(
        _history(tree, turn), fill(prompts.set.predict, {"action": turn.action})
    )
    world_model.add(turn, messages, Message("assistant", turn.observation), note)


def _explanations(episode: Episode) -> Iterator[Turn]:
    for turn in episode.turns:
        if turn.kind is Kind.aside and turn.action == "explanation" and turn.valid:
            yield turn


def _add_explained(
    reasoned: _SampleSet, tree: Tree, expert: Turn, why: Turn, prompts: Prompts
) -> None:
    if why.cut or expert.cut:
        reasoned.skipped["reasoned: the answer was cut at its limit of tokens"] += 1
        return
    text = fill(prompts.set.reasoned, {"thought": why.note, "action": expert.action})
    if prompts.parse_action(text)[1] != expert.action:
        reasoned.skipped["reasoned: explanation and action do not read back as the action"] += 1
        return
    reasoned.add(
        expert,
        prompts.act(_history(tree, expert)),
        Message("assistant", text),
        f"explained in {why.id}",
    )
