"""Trees to training samples: a sample is one pair (h, a), a prompt without the experience and the
action to learn in it.

Four parts are drawn from the same trees (docs/method.md, Stage 2): rehearsal (what went right),
counterfactual (what the experience made the policy do, at the history without it), anchor (keep
following an experience), reflection (keep reflecting). Every duplicate and every skipped record is
counted by reason. One tree is read at a time; a first pass notes what draws over all trees need.
Needs no torch and no tokenizer.
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

CUT = "the answer was cut at its limit of tokens"
Trees = Mapping[str, Tree] | Sequence[Mapping[str, Tree]]
"""Trees by task id; or several such mappings, as of several rounds, each with a tree of a task."""


def build(trees: Trees, prompts: Prompts, config: DistillConfig, seed: int) -> Dataset:
    """Select D_reh, D_cf, the anchors and the reflections from trees (docs/method.md, Stage 2).

    Args:
        trees: By task id. They are read task by task, once or twice each (twice for anchors and for
            a fraction of the episodes), and none is kept.
        prompts: The wording of the prompts.
        config: What to select.
        seed: Of the draws.

    Returns:
        The samples; the same arguments give the same samples.
    """
    if config.method == "dpo":
        config = config.model_copy(
            update={"rehearsal": "none", "anchors": False, "reflections": False}
        )
    selection = _Selection(prompts, config)
    draws = _Draws(trees, config, seed)
    for task_id, own in _by_task(trees):
        selection.start_task()
        branches = [(tree, branch) for tree in own for branch in selection.branches(tree)]
        if config.rehearsal != "none":
            for tree in own:
                selection.add_rehearsal(tree, draws)
        if config.counterfactuals != "none":
            task_seed = derive_seed(seed, "counterfactual", task_id)
            selection.add_counterfactuals(branches, task_seed)
        for tree, branch in branches:
            if config.anchors:
                selection.add_anchor(tree, branch, draws)
            if config.reflections and branch.improved:
                selection.add_reflection(tree, branch)
    return Dataset(
        tuple(s for part in PARTS for s in selection.samples[part]),
        dict(selection.duplicates),
        dict(selection.skipped),
        dict(selection.agreement),
        dict(selection.mentions),
    )


def require(dataset: Dataset, config: DistillConfig) -> list[str]:
    """Sentences about wanted parts that are empty; UserError if D_cf and D_reh both are."""
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
            "more tasks or select wider sets."
        )
    return [f"No samples for {wanted[p]}: training on the other part alone." for p in empty]


def _by_task(trees: Trees) -> Iterator[tuple[str, list[Tree]]]:
    rounds = [trees] if isinstance(trees, Mapping) else trees
    for task_id in dict.fromkeys(task for own in rounds for task in own):
        yield task_id, [own[task_id] for own in rounds if task_id in own]


class _Prompt(NamedTuple):
    messages: tuple[Message, ...]
    number: int
    """Identifies the roles and texts of the messages within the task."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A sample, if it is drawn and no other is equal."""

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
        """Equal for equal samples of a task."""
        rejected = self.rejected and (self.rejected.content, self.rejected.cut)
        teacher = self.teacher and self.teacher.number
        answer = (self.answer.content, self.answer.cut)
        return self.part, self.prompt.number, answer, teacher, rejected


class _Donor(NamedTuple):
    """A branch whose experience an anchor carries."""

    reflection: str
    revised: Message


class _Draws:
    """Draws over all trees: the episodes to rehearse, and whose experience an anchor carries."""

    def __init__(self, trees: Trees, config: DistillConfig, seed: int) -> None:
        self._random = random.Random(derive_seed(seed, "anchor"))
        self._donors: dict[str, list[_Donor]] = {}
        self._chosen: set[int] | None = None
        self._nth = -1
        some = config.rehearsal != "none" and config.rehearsal_fraction < 1
        usable = 0
        for _, own in _by_task(trees) if some or config.anchors else ():
            for tree in own:
                if some:
                    usable += sum(
                        bool(_right(tree, e, config))
                        for e in tree.episodes
                        if not diverged(tree, e)
                    )
                for branch in tree.branches() if config.anchors else ():
                    if sound(tree, branch.revised) and not _excluded(config, branch.revised):
                        donor = _Donor(branch.reflection.id, _answer(branch.revised))
                        self._donors.setdefault(branch.reflection.note, []).append(donor)
        if some and usable:
            number = max(1, round(config.rehearsal_fraction * usable))
            drawn = random.Random(derive_seed(seed, "rehearsal")).sample(range(usable), number)
            self._chosen = set(drawn)
        self._notes = sorted(self._donors)

    def takes_next_episode(self) -> bool:
        self._nth += 1
        return self._chosen is None or self._nth in self._chosen

    def other(self, note: str) -> tuple[str, _Donor] | None:
        """Another experience and one of its branches; None if there is no other."""
        if len(self._notes) < 2:
            return None
        nth = self._random.randrange(len(self._notes) - 1)
        found = self._notes[nth + (nth >= bisect.bisect_left(self._notes, note))]
        return found, self._random.choice(self._donors[found])


class _Selection:
    """Collects the samples of one task after another, keeps each (part, task, history, action) once
    and counts what it leaves out."""

    def __init__(self, prompts: Prompts, config: DistillConfig) -> None:
        self.prompts = prompts
        self.config = config
        self.samples: dict[Part, list[Sample]] = {p: [] for p in PARTS}
        self.duplicates: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.agreement: Counter[str] = Counter()
        self.mentions: Counter[str] = Counter()
        self._cache = PromptCache()

    def start_task(self) -> None:
        """What follows is of another task. A task's samples share the messages of their common
        prefixes, so that memory grows with its turns only."""
        self._seen: dict[tuple[object, ...], int] = {}
        self._messages: dict[Message, Message] = {}
        self._numbers: dict[tuple[int, str, str], int] = {}
        self._last: tuple[Sequence[Message], _Prompt, list[int]] = ((), _Prompt((), 0), [])

    def branches(self, tree: Tree) -> Iterator[Branch]:
        """The branch events in whose history nothing diverged; counts the verdicts of the two
        improvement rules."""
        number = sum(e.experience is not None and e.stop is Stop.diverged for e in tree.episodes)
        if number:
            self.skipped["branch: it diverged on replay"] += number
        for by_progress, by_blame in zip(
            tree.branches("progress"), tree.branches("blame"), strict=True
        ):
            if not sound(tree, by_progress.revised):
                self.skipped["branch: it grew on one that diverged on replay"] += 1
                continue
            self.agreement[_verdicts(tree, by_progress, by_blame)] += 1
            yield by_progress if self.config.improvement == "progress" else by_blame

    def add_rehearsal(self, tree: Tree, draws: _Draws) -> None:
        for episode in tree.episodes:
            if not episode.acts and episode.turns:
                continue  # reflections on another episode, which has a record of its own
            if diverged(tree, episode):
                self.skipped["rehearsal: the episode diverged on replay"] += 1
                continue
            kept = _right(tree, episode, self.config)
            if not kept:
                if self.config.rehearsal == "progress_prefix":
                    reason = "rehearsal: the episode did nothing that is known to be right"
                    self.skipped[reason] += 1
                continue
            if not draws.takes_next_episode():
                continue
            part = "" if episode.success else f", first {len(kept)} actions"
            note = f"episode {episode.index}, {episode.stop}{part}"
            for turn in kept:
                self._add(self._action("rehearsal", tree, turn, note))

    def add_counterfactuals(self, branches: Sequence[tuple[Tree, Branch]], seed: int) -> None:
        """D_cf: the wanted number of branch events that teach something, or all. Equal ones are one
        event, so that the draw is among different ones."""
        wanted, most = self.config.counterfactuals, self.config.samples_per_task
        events: dict[tuple[object, ...], list[_Candidate]] = {}
        for tree, branch in branches:
            if (wanted == "improved" and not branch.improved) or (
                wanted == "success_path" and not branch.on_success_path
            ):
                continue
            found = self._event(tree, branch)
            if found:
                events.setdefault(tuple(f.key for f in found), []).extend(found)
        keys = list(events)
        if most is not None and len(keys) > most:
            keys = [keys[i] for i in sorted(random.Random(seed).sample(range(len(keys)), most))]
        for key in keys:
            for candidate in events[key]:
                self._add(candidate)

    def _event(self, tree: Tree, branch: Branch) -> list[_Candidate]:
        """The samples of one branch event; none, and the reason counted, if it corrects nothing."""
        config = self.config
        weight = _outcome_weight(branch, config)
        rejected = _answer(branch.original) if config.method == "dpo" else None
        reason = None
        if weight == 0:
            reason = "its outcome weighs 0"
        elif same_action(branch.original, branch.revised, self.prompts):
            reason = "the revised action is the original one"
        elif rejected is not None and _excluded(config, branch.original):
            reason = f"of the original action, {CUT}"
        if reason is not None:
            self.skipped[f"counterfactual: {reason}"] += 1
            return []
        experience = branch.reflection.note
        note = f"instead of {branch.original.id}, by {branch.reflection.id}: {experience}"
        out = []
        for turn in _learnt(tree, branch, config):
            teacher = None
            if config.soft_targets:
                teacher = self._act(_with_experience(tree, turn, branch.revised.step, experience))
            found = self._action("counterfactual", tree, turn, note, weight, teacher, rejected)
            out += [] if found is None else [found]
        return out

    def add_anchor(self, tree: Tree, branch: Branch, draws: _Draws) -> None:
        """The prompt of the revised action with the experience of another, randomly drawn branch.

        The start policy's distribution has to be read along some answer: it is the other branch's
        revised action, which is what following the exchanged experience would mostly say. That
        needs no further sampling, and the first token's distribution does not depend on it.
        """
        drawn = draws.other(branch.reflection.note)
        if drawn is None:
            self.skipped["anchor: there is no other experience to exchange with"] += 1
            return
        experience, donor = drawn
        turn = branch.revised
        prompt = self._act(_with_experience(tree, turn, turn.step, experience))
        note = f"experience of {donor.reflection}"
        self._add(_Candidate("anchor", turn, prompt, donor.revised, note, teacher=prompt))

    def add_reflection(self, tree: Tree, branch: Branch) -> None:
        turn = branch.reflection
        if _excluded(self.config, turn):
            self.skipped[f"reflection: {CUT}"] += 1
            return
        history = history_before(tree, turn, with_experience=True)
        prompt = self._prompt(self.prompts.reflect(history, self._cache))
        note = f"led to {branch.revised.id}"
        self._add(_Candidate("reflection", turn, prompt, _answer(turn), note))

    def _action(
        self,
        part: Part,
        tree: Tree,
        turn: Turn,
        note: str,
        weight: float = 1.0,
        teacher: _Prompt | None = None,
        rejected: Message | None = None,
    ) -> _Candidate | None:
        """The action at its history without experience or preamble; None, and the reason counted,
        if it is not to be learnt."""
        reason = None
        if not turn.valid:
            reason = "the environment refused the action"
        elif _excluded(self.config, turn):
            reason = CUT
        if reason is None:
            prompt = self._act(history_before(tree, turn, with_experience=False))
            mentions = mentions_advice(tree, turn, prompt.messages, self.prompts)
            if not mentions or self.config.mentioned_advice == "keep":
                answer = _answer(turn)
                return _Candidate(
                    part, turn, prompt, answer, note, weight, teacher, rejected, mentions
                )
            reason = "the thought mentions advice that is not in the prompt"
        self.skipped[f"{part}: {reason}"] += 1
        return None

    def _act(self, history: History) -> _Prompt:
        return self._prompt(self.prompts.act(history, self._cache))

    def _prompt(self, messages: tuple[Message, ...]) -> _Prompt:
        """The prompt in the task's shared messages. What it shares with the one before is known:
        `PromptCache` returns the same objects."""
        before, known, known_numbers = self._last
        same = next(
            (n for n, (a, b) in enumerate(zip(messages, before, strict=False)) if a is not b),
            min(len(messages), len(before)),
        )
        shared, numbers = list(known.messages[:same]), known_numbers[:same]
        number = numbers[-1] if numbers else 0
        for message in messages[same:]:
            shared.append(self._messages.setdefault(message, message))
            key = (number, message.role, message.content)
            number = self._numbers.setdefault(key, len(self._numbers) + 1)
            numbers.append(number)
        prompt = _Prompt(tuple(shared), number)
        self._last = (messages, prompt, numbers)
        return prompt

    def _add(self, found: _Candidate | None) -> None:
        """Of equal samples keep the first, with the largest weight of any of them."""
        if found is None:
            return
        samples = self.samples[found.part]
        if found.key in self._seen:
            self.duplicates[found.part] += 1
            nth = self._seen[found.key]
            if found.weight > samples[nth].weight:
                samples[nth] = replace(samples[nth], weight=found.weight)
            return
        self._seen[found.key] = len(samples)
        if found.mentions:
            self.mentions[found.part] += 1
        samples.append(
            Sample(
                found.part,
                found.turn.task_id,
                found.turn.id,
                found.prompt.messages,
                self._messages.setdefault(found.answer, found.answer),
                found.weight,
                found.note,
                found.teacher and found.teacher.messages,
                found.rejected,
            )
        )


def _right(tree: Tree, episode: Episode, config: DistillConfig) -> Sequence[Turn]:
    """The actions of an episode that may be rehearsed; none of a record that only reflects on
    another one."""
    if not episode.acts or (not episode.success and config.rehearsal == "successes"):
        return ()
    trajectory = tree.trajectory(episode)
    if episode.success:
        return trajectory
    return trajectory[: good_prefix(tree, trajectory, config.improvement)]


def _outcome_weight(branch: Branch, config: DistillConfig) -> float:
    weights = config.outcome_weights
    if weights is None or branch.outcome_after.success:
        return 1.0
    return weights.improved if branch.improved else weights.other


def _learnt(tree: Tree, branch: Branch, config: DistillConfig) -> Sequence[Turn]:
    """The branch's actions to learn: the revised one, and with scope "branch" the later ones that
    are known to be right."""
    episode = branch.outcome_after
    if config.counterfactual_scope == "action":
        return (branch.revised,)
    if episode.success:
        return episode.acts
    end = good_prefix(tree, tree.trajectory(episode), config.improvement)
    return [t for t in episode.acts if t is branch.revised or t.step < end]


def _with_experience(tree: Tree, turn: Turn, step: int, experience: str) -> History:
    """The history before a turn, with this experience at a step."""
    history = history_before(tree, turn, with_experience=True)
    return replace(history, notes={**history.notes, step: experience})


def _verdicts(tree: Tree, by_progress: Branch, by_blame: Branch) -> str:
    after = by_progress.outcome_after
    if after.success:
        return "won"
    episodes = (by_progress.outcome_before, after)
    if all(t.progress is None for e in episodes for t in tree.trajectory(e)):
        return "no progress reported"
    if by_progress.improved == by_blame.improved:
        return "both" if by_blame.improved else "neither"
    return "progress alone" if by_progress.improved else "blame alone"


def _excluded(config: DistillConfig, turn: Turn) -> bool:
    return turn.cut and config.truncated_answers == "skip"


def _answer(turn: Turn) -> Message:
    return Message("assistant", turn.action_text, turn.tokens, turn.cut)
