"""Trees to training samples: a sample is one pair (h, a), a prompt without the experience and the
action to learn in it.

Four parts are drawn from the same trees (docs/method.md, Stage 2): rehearsal (what went right),
counterfactual (what the
experience made the policy do, at the history without it), anchor (keep following an experience),
reflection (keep reflecting). Nothing is
dropped in silence: every duplicate and every skipped record is counted by reason. One tree is
looked at at a time; where a draw goes over all of
them, a first pass notes what it draws from. Needs no torch and no tokenizer.
"""

from __future__ import annotations

import bisect
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from leafe.core import (
    Branch,
    Episode,
    ImprovementRule,
    Message,
    Stop,
    Tree,
    Turn,
    UserError,
    derive_seed,
)
from leafe.distill._config import PARTS, DistillConfig, Part
from leafe.distill._dataset import Dataset, Sample
from leafe.distill._rules import diverged, good_prefix, mentions_advice, same_action, sound
from leafe.prompts import History, PromptCache, Prompts, history_before

__all__ = ["Dataset", "Sample", "build", "require"]


CUT = "the answer was cut at its limit of tokens"
Trees = Mapping[str, Tree] | Sequence[Mapping[str, Tree]]
"""Trees by task id; or several such mappings, as of several rounds, in which a task may have a tree
each."""


def build(trees: Trees, prompts: Prompts, config: DistillConfig, seed: int) -> Dataset:
    """D_reh, D_cf, the anchors and the reflections of these trees, by the config. The same trees,
    config and seed give the same samples.

    The trees are asked for task by task, once or twice each (twice for anchors and for a fraction
    of the episodes), and none is kept.
    """
    if config.method == "dpo":
        config = config.model_copy(
            update={"rehearsal": "none", "anchors": False, "reflections": False}
        )
    collector = _Collector(prompts, config)
    draws = _Draws(trees, config, seed)
    for task_id, mine in _by_task(trees):
        collector.begin()
        branches = [
            (tree, branch)
            for tree in mine
            for branch in _branches(tree, config.improvement, collector)
        ]
        if config.rehearsal != "none":
            for tree in mine:
                _rehearsal(tree, config, draws, collector)
        if config.counterfactuals != "none":
            _counterfactuals(
                branches, config, derive_seed(seed, "counterfactual", task_id), collector
            )
        for tree, branch in branches:
            if config.anchors:
                _anchor(tree, branch, draws, collector)
            if config.reflections and branch.improved:
                _reflection(tree, branch, collector)
    samples = tuple(s for part in PARTS for s in collector.samples[part])
    return Dataset(
        samples,
        dict(collector.duplicates),
        dict(collector.skipped),
        dict(collector.agreement),
        dict(collector.mentions),
    )


def _by_task(trees: Trees) -> Iterator[tuple[str, list[Tree]]]:
    forests = [trees] if isinstance(trees, Mapping) else trees
    for task_id in dict.fromkeys(task for forest in forests for task in forest):
        yield task_id, [forest[task_id] for forest in forests if task_id in forest]


class _Collector:
    """Takes the samples of one task after another, keeps each (part, task, history, action) once
    and counts what it leaves out."""

    def __init__(self, prompts: Prompts, config: DistillConfig) -> None:
        self.prompts = prompts
        self.config = config
        self.samples: dict[Part, list[Sample]] = {p: [] for p in PARTS}
        self.duplicates: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.agreement: Counter[str] = Counter()
        self.mentions: Counter[str] = Counter()
        self._said = PromptCache()

    def begin(self) -> None:
        """What comes next is of another task. A task's samples share the messages of their common
        prefixes, so that they grow with its turns only."""
        self._seen: dict[tuple[object, ...], int] = {}
        self._messages: dict[Message, Message] = {}
        self._numbers: dict[tuple[int, str, str], int] = {}
        self._last: tuple[Sequence[Message], _Prompt, list[int]] = ((), _Prompt((), 0), [])

    def act(self, history: History) -> _Prompt:
        return self._prompt(self.prompts.act(history, self._said))

    def reflect(self, history: History) -> _Prompt:
        return self._prompt(self.prompts.reflect(history, self._said))

    def add(self, found: _Found) -> None:
        """Of samples that say the same, the first stays, with the largest weight of any of them."""
        part, turn, prompt, answer, teacher, rejected = (
            found.part,
            found.turn,
            found.prompt,
            found.answer,
            found.teacher,
            found.rejected,
        )
        mine = self.samples[part]
        if found.key in self._seen:
            self.duplicates[part] += 1
            nth = self._seen[found.key]
            if found.weight > mine[nth].weight:
                mine[nth] = replace(mine[nth], weight=found.weight)
            return
        self._seen[found.key] = len(mine)
        self.mentions.update([part] if found.mentions else [])
        answer = self._messages.setdefault(answer, answer)
        mine.append(
            Sample(
                part,
                turn.task_id,
                turn.id,
                prompt.messages,
                answer,
                found.weight,
                found.note,
                teacher and teacher.messages,
                rejected,
            )
        )

    def _prompt(self, messages: tuple[Message, ...]) -> _Prompt:
        """The prompt in the task's shared messages. What it has in common with the one before is
        known: `PromptCache` hands out the same objects."""
        said, known, known_numbers = self._last
        same = next(
            (n for n, (a, b) in enumerate(zip(messages, said, strict=False)) if a is not b),
            min(len(messages), len(said)),
        )
        shared, numbers = list(known.messages[:same]), known_numbers[:same]
        number = numbers[-1] if numbers else 0
        for message in messages[same:]:
            shared.append(self._messages.setdefault(message, message))
            number = self._numbers.setdefault(
                (number, message.role, message.content), len(self._numbers) + 1
            )
            numbers.append(number)
        prompt = _Prompt(tuple(shared), number)
        self._last = (messages, prompt, numbers)
        return prompt


class _Prompt(NamedTuple):
    messages: tuple[Message, ...]
    number: int
    """Stands for the roles and texts of the messages within the task."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What would be a sample, if it is drawn and no other says the same."""

    part: Part
    turn: Turn
    prompt: _Prompt
    answer: Message
    note: str
    weight: float = 1.0
    teacher: _Prompt | None = None
    rejected: Message | None = None
    mentions: bool = False
    """The answer's thought mentions advice that the prompt does not hold."""

    @property
    def key(self) -> tuple[object, ...]:
        """Equal where two of a task say the same."""
        rejected = self.rejected and (self.rejected.content, self.rejected.cut)
        return (
            self.part,
            self.prompt.number,
            self.answer.content,
            self.answer.cut,
            self.teacher and self.teacher.number,
            rejected,
        )


class _Draws:
    """What is drawn from all trees at once: the episodes to rehearse, and whose experience an
    anchor carries."""

    def __init__(self, trees: Trees, config: DistillConfig, seed: int) -> None:
        self._random = random.Random(derive_seed(seed, "anchor"))
        self._donors: dict[str, list[_Donor]] = {}
        self._chosen: set[int] | None = None
        self._nth = -1
        some = config.rehearsal != "none" and config.rehearsal_fraction < 1
        able = 0
        for tree in (
            (tree for _, mine in _by_task(trees) for tree in mine) if some or config.anchors else ()
        ):
            if some:
                able += sum(
                    bool(_right(tree, e, config)) for e in tree.episodes if not diverged(tree, e)
                )
            if config.anchors:
                for branch in tree.branches():
                    if sound(tree, branch.revised) and not _left_out(config, branch.revised):
                        self._donors.setdefault(branch.reflection.note, []).append(
                            _Donor(branch.reflection.id, _answer(branch.revised))
                        )
        if some and able:
            number = max(1, round(config.rehearsal_fraction * able))
            self._chosen = set(
                random.Random(derive_seed(seed, "rehearsal")).sample(range(able), number)
            )
        self._notes = sorted(self._donors)

    def takes_next_episode(self) -> bool:
        """Whether the next of the episodes that may be rehearsed is one of those that were
        drawn."""
        self._nth += 1
        return self._chosen is None or self._nth in self._chosen

    def other(self, note: str) -> tuple[str, _Donor] | None:
        """Another experience, and one of the branches that it led to; None where there is no
        other."""
        if len(self._notes) < 2:
            return None
        nth = self._random.randrange(len(self._notes) - 1)
        found = self._notes[nth + (nth >= bisect.bisect_left(self._notes, note))]
        return found, self._random.choice(self._donors[found])


@dataclass(frozen=True, slots=True)
class _Donor:
    reflection: str
    revised: Message


def _rehearsal(tree: Tree, config: DistillConfig, draws: _Draws, collector: _Collector) -> None:
    for episode in tree.episodes:
        if not episode.acts and episode.turns:
            continue  # reflections on another episode, which has a record of its own
        if diverged(tree, episode):
            collector.skipped["rehearsal: the episode diverged on replay"] += 1
            continue
        kept = _right(tree, episode, config)
        if not kept:
            if config.rehearsal == "progress_prefix":
                collector.skipped[
                    "rehearsal: the episode did nothing that is known to be right"
                ] += 1
            continue
        if not draws.takes_next_episode():
            continue
        note = f"episode {episode.index}, {episode.stop}" + (
            "" if episode.success else f", first {len(kept)} actions"
        )
        for turn in kept:
            found = _action("rehearsal", tree, turn, note, collector)
            if found is not None:
                collector.add(found)


def _right(tree: Tree, episode: Episode, config: DistillConfig) -> Sequence[Turn]:
    """The actions of an episode that may be rehearsed; of a record that only looks back on another
    one, none."""
    if not episode.acts or (not episode.success and config.rehearsal == "successes"):
        return ()
    trajectory = tree.trajectory(episode)
    return (
        trajectory
        if episode.success
        else trajectory[: good_prefix(tree, trajectory, config.improvement)]
    )


def _counterfactuals(
    branches: Sequence[tuple[Tree, Branch]], config: DistillConfig, seed: int, collector: _Collector
) -> None:
    """Of the branch events that teach something the wanted number, or all. Those that say the same
    are one event, so that the draw is among different ones."""
    wanted = config.counterfactuals
    mine = [
        (t, b)
        for t, b in branches
        if wanted == "all"
        or (wanted == "improved" and b.improved)
        or (wanted == "success_path" and b.on_success_path)
    ]
    events: dict[tuple[object, ...], list[_Found]] = {}
    for tree, branch in mine:
        found = _event(tree, branch, config, collector)
        if found:
            events.setdefault(tuple(f.key for f in found), []).extend(found)
    keys = list(events)
    if config.samples_per_task is not None and len(keys) > config.samples_per_task:
        keys = [
            keys[i]
            for i in sorted(random.Random(seed).sample(range(len(keys)), config.samples_per_task))
        ]
    for key in keys:
        for sample in events[key]:
            collector.add(sample)


def _event(
    tree: Tree, branch: Branch, config: DistillConfig, collector: _Collector
) -> list[_Found]:
    """The samples of one branch event; none, and the reason counted, where it corrects nothing."""
    weight = _outcome_weight(branch, config)
    if weight == 0:
        collector.skipped["counterfactual: its outcome weighs 0"] += 1
        return []
    if same_action(branch.original, branch.revised, collector.prompts):
        collector.skipped["counterfactual: the revised action is the original one"] += 1
        return []
    rejected = _answer(branch.original) if config.method == "dpo" else None
    if rejected is not None and _left_out(collector.config, branch.original):
        collector.skipped[f"counterfactual: of the original action, {CUT}"] += 1
        return []
    out = []
    for turn in _learnt(tree, branch, config):
        note = (
            f"instead of {branch.original.id}, by {branch.reflection.id}: {branch.reflection.note}"
        )
        teacher = None
        if config.soft_targets:
            history = history_before(tree, turn, with_experience=True)
            teacher = collector.act(
                replace(
                    history, notes={**history.notes, branch.revised.step: branch.reflection.note}
                )
            )
        found = _action(
            "counterfactual",
            tree,
            turn,
            note,
            collector,
            weight=weight,
            teacher=teacher,
            rejected=rejected,
        )
        if found is not None:
            out.append(found)
    return out


def _outcome_weight(branch: Branch, config: DistillConfig) -> float:
    weights = config.outcome_weights
    if weights is None or branch.outcome_after.success:
        return 1.0
    return weights.improved if branch.improved else weights.other


def _learnt(tree: Tree, branch: Branch, config: DistillConfig) -> Sequence[Turn]:
    """The branch's own actions that are learnt: the revised one, and by the option those after it
    that are known to be right."""
    episode = branch.outcome_after
    if config.counterfactual_scope == "action":
        return (branch.revised,)
    if episode.success:
        return episode.acts
    end = good_prefix(tree, tree.trajectory(episode), config.improvement)
    return [t for t in episode.acts if t is branch.revised or t.step < end]


def _anchor(tree: Tree, branch: Branch, draws: _Draws, collector: _Collector) -> None:
    """The prompt of the revised action, its experience exchanged for that of another branch drawn
    at random.

    The start policy's distribution has to be read along some answer: it is the other branch's own
    revised action, which is what following
    the exchanged experience would mostly say. That needs no further sampling, and the first token's
    distribution does not depend on it.
    """
    drawn = draws.other(branch.reflection.note)
    if drawn is None:
        collector.skipped["anchor: there is no other experience to exchange with"] += 1
        return
    experience, donor = drawn
    history = history_before(tree, branch.revised, with_experience=True)
    prompt = collector.act(
        replace(history, notes={**history.notes, branch.revised.step: experience})
    )
    collector.add(
        _Found(
            "anchor",
            branch.revised,
            prompt,
            donor.revised,
            f"experience of {donor.reflection}",
            teacher=prompt,
        )
    )


def _reflection(tree: Tree, branch: Branch, collector: _Collector) -> None:
    if _left_out(collector.config, branch.reflection):
        collector.skipped[f"reflection: {CUT}"] += 1
        return
    prompt = collector.reflect(history_before(tree, branch.reflection, with_experience=True))
    collector.add(
        _Found(
            "reflection",
            branch.reflection,
            prompt,
            _answer(branch.reflection),
            f"led to {branch.revised.id}",
        )
    )


def _action(
    part: Part,
    tree: Tree,
    turn: Turn,
    note: str,
    collector: _Collector,
    *,
    weight: float = 1.0,
    teacher: _Prompt | None = None,
    rejected: Message | None = None,
) -> _Found | None:
    """The action at its history without experience or preamble; None, and the reason counted, where
    it is nothing to learn."""
    reason = (
        "the environment refused the action"
        if not turn.valid
        else CUT
        if _left_out(collector.config, turn)
        else None
    )
    if reason is not None:
        collector.skipped[f"{part}: {reason}"] += 1
        return None
    prompt = collector.act(history_before(tree, turn, with_experience=False))
    mentions = mentions_advice(tree, turn, prompt.messages, collector.prompts)
    if mentions and collector.config.mentioned_advice == "skip":
        collector.skipped[f"{part}: the thought mentions advice that is not in the prompt"] += 1
        return None
    return _Found(part, turn, prompt, _answer(turn), note, weight, teacher, rejected, mentions)


def _branches(tree: Tree, rule: ImprovementRule, collector: _Collector) -> Iterator[Branch]:
    """The branch events in whose history nothing diverged; what they say of the two rules of
    improvement is counted."""
    number = sum(e.experience is not None and e.stop is Stop.diverged for e in tree.episodes)
    if number:
        collector.skipped["branch: it diverged on replay"] += number
    for by_progress, by_blame in zip(
        tree.branches("progress"), tree.branches("blame"), strict=True
    ):
        if not sound(tree, by_progress.revised):
            collector.skipped["branch: it grew on one that diverged on replay"] += 1
            continue
        collector.agreement[_verdicts(tree, by_progress, by_blame)] += 1
        yield by_progress if rule == "progress" else by_blame


def _verdicts(tree: Tree, by_progress: Branch, by_blame: Branch) -> str:
    after = by_progress.outcome_after
    if after.success:
        return "won"
    if not any(
        t.progress is not None
        for e in (by_progress.outcome_before, after)
        for t in tree.trajectory(e)
    ):
        return "no progress reported"
    if by_progress.improved == by_blame.improved:
        return "both" if by_blame.improved else "neither"
    return "progress alone" if by_progress.improved else "blame alone"


def _left_out(config: DistillConfig, turn: Turn) -> bool:
    """Whether the turn's answer was cut and may therefore not be learnt."""
    return turn.cut and config.truncated_answers == "skip"


def _answer(turn: Turn) -> Message:
    return Message("assistant", turn.action_text, turn.tokens, turn.cut)


def require(dataset: Dataset, config: DistillConfig) -> list[str]:
    """Sentences about wanted parts that are empty; UserError where both D_cf and D_reh are, so that
    nothing is left to train on."""
    wanted: dict[Part, str] = {}
    if config.rehearsal != "none" and config.rehearsal_weight > 0:
        wanted["rehearsal"] = f"rehearsal ({config.rehearsal})"
    if config.counterfactuals != "none" and config.counterfactual_weight > 0:
        wanted["counterfactual"] = f"counterfactuals ({config.counterfactuals})"
    empty = [p for p in wanted if not dataset.part(p)]
    if len(empty) == len(wanted):
        names = " and ".join(wanted.values()) or "any part with a weight above 0"
        raise UserError(
            f"There is nothing to train on: the trees give no samples for {names}; explore "
            "more tasks or choose wider sets."
        )
    return [f"No samples for {wanted[p]}: training on the other part alone." for p in empty]
