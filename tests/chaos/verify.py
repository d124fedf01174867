"""What must hold at the end, whatever happened: says what does not, in sentences, and none where
all does.

An episode may differ from the fault-free run's in two ways only, and only where what is outside
failed for longer than it is retried: it ended there
(policy_error, env_error), or a reflection got no answer. Its turns up to there are the fault-free
run's. What comes after it in its task has other numbers, so
other seeds: there every prompt is built again, the model asked, the environment played.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leafe.core import Episode, Kind, Stop, Task, Tree, Turn, derive_seed
from leafe.explore import ExploreConfig, Plan, cost_of, make_strategy
from leafe.prompts import Prompts, UnusableReflection, history_before
from tests.chaos.envs import Quick, reply
from tests.chaos.run import digest

ERRORS = (Stop.policy_error, Stop.env_error)


@dataclass
class Verdict:
    problems: list[str] = field(default_factory=list)
    tasks: int = 0
    episodes: int = 0
    turns: int = 0
    same: int = 0
    """Episodes that are the fault-free run's."""
    errors: Counter[str] = field(default_factory=Counter)
    """Episodes by the failure that ended them, and reflections that got no answer."""
    words: Counter[str] = field(default_factory=Counter)
    """Their sentences, numbers left out."""
    after: int = 0
    """Sound episodes with other numbers than in the fault-free run, because an error came before
    them."""
    replayed: int = 0
    given_up: int = 0
    """Tasks left after `max_errors` errors."""

    def add(self, other: Verdict) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def plain(episode: Episode) -> dict[str, Any]:
    """All of it but times and replays."""
    return replace(
        episode, seconds=0.0, replayed=0, turns=tuple(map(timeless, episode.turns))
    ).to_json()


def timeless(turn: Turn) -> Turn:
    return replace(turn, seconds=0.0)


def verify(
    trees: Mapping[str, Tree],
    truth: Mapping[str, Tree],
    done: Mapping[str, Any],
    notes: Sequence[str],
    config: ExploreConfig,
    prompts: Prompts,
) -> Verdict:
    """`truth`: the fault-free run's trees. `done`: what the stage said of itself. `notes`: see
    `tests.chaos.run`."""
    verdict = Verdict(tasks=len(trees))
    if list(trees) != list(truth):
        verdict.problems.append("other tasks, or another order of tasks")
        return verdict
    ids = Counter(turn.id for tree in trees.values() for turn in tree)
    verdict.problems += [
        f"the turn {name} is there {times} times" for name, times in ids.items() if times > 1
    ]
    for task_id, tree in trees.items():
        _verify_task(verdict, tree, truth[task_id], config, prompts)
    _verify_sums(verdict, trees, done)
    _verify_notes(verdict, trees, notes)
    return verdict


def _verify_task(
    verdict: Verdict, tree: Tree, true: Tree, config: ExploreConfig, prompts: Prompts
) -> None:
    say, name = verdict.problems.append, tree.task.id
    verdict.episodes += len(tree.episodes)
    verdict.turns += len(tree)
    verdict.replayed += sum(e.replayed for e in tree.episodes)
    same = 0
    for episode, other in zip(tree.episodes, true.episodes, strict=False):
        if plain(episode) != plain(other):
            break
        same += 1
    verdict.same += same
    for episode in tree.episodes:
        if episode.stop in ERRORS:
            verdict.errors[episode.stop.value] += 1
            verdict.words[re.sub(r"\d+", "N", episode.error)[:120]] += 1
            if not episode.error:
                say(
                    f"episode {episode.index} of {name} ended in {episode.stop.value} and "
                    "does not say why"
                )
        verdict.errors["reflection without an answer"] += sum(map(unanswered, episode.turns))
        if episode.stop is Stop.diverged:
            say(f"episode {episode.index} of {name} diverged: {episode.error}")
    if same == len(tree.episodes) == len(true.episodes):
        return
    if same == len(tree.episodes):
        say(f"{name} lacks episodes from {same} on: {len(true.episodes) - same} are lost")
        return
    if same == len(true.episodes):
        say(f"{name} holds {len(tree.episodes) - same} episodes more than the fault-free run")
        return
    first = tree.episodes[same]
    if not _is_cut(first, true.episodes[same]):
        say(
            f"episode {same} of {name} differs, and no failure explains it: {plain(first)} "
            f"where {plain(true.episodes[same])} is true"
        )
    for index in range(same, len(tree.episodes)):
        verdict.after += tree.episodes[index].stop not in ERRORS
        _replay(verdict, tree, index, config, prompts)
    _finished(verdict, tree, config)


def unanswered(turn: Turn) -> bool:
    """A reflection that the endpoint never answered."""
    return (
        turn.kind is Kind.reflect
        and not turn.valid
        and not turn.action_text
        and "gave no answer" in turn.observation
    )


def _is_cut(episode: Episode, true: Episode) -> bool:
    """Whether it is the true one up to a failure."""
    if replace(
        episode, turns=(), stop=true.stop, error="", seconds=0.0, replayed=0, first_observation=""
    ) != replace(true, turns=(), seconds=0.0, replayed=0, first_observation=""):
        return False
    same = 0
    for turn, other in zip(episode.turns, true.turns, strict=False):
        if timeless(turn) != timeless(other):
            break
        same += 1
    if same == len(episode.turns):
        return episode.stop in ERRORS
    return unanswered(episode.turns[same])


def _replay(
    verdict: Verdict, tree: Tree, index: int, config: ExploreConfig, prompts: Prompts
) -> None:
    """Ask the strategy, the model and the environment again."""
    episode, say = tree.episodes[index], verdict.problems.append
    where = f"episode {index} of {tree.task.id}"
    plan = make_strategy(config, prompts.set).next(Tree(tree.task, tree.episodes[:index]))
    if plan != Plan(episode.start, episode.experience, episode.depth, episode.preamble):
        say(f"{where} is not what the strategy asks for")
    env = Quick()
    first = env.reset(tree.task, 0)
    for turn in tree.path(episode.start):
        env.step(turn.action)
    tries: Counter[int] = Counter()
    for turn in episode.turns:
        if unanswered(turn):
            continue
        names: tuple[Any, ...] = (config.seed, tree.task.id, index, turn.step)
        if turn.kind is Kind.act:
            messages = prompts.act(history_before(tree, turn, with_experience=True))
        else:
            messages = prompts.reflect(
                replace(history_before(tree, turn, with_experience=True), first_observation=first)
            )
            names += ("reflect", tries[turn.step])
            tries[turn.step] += 1
        if turn.action_text != reply(messages, derive_seed(*names)).text:
            say(f"the turn {turn.id} is not what the model says")
        if turn.kind is Kind.act:
            result = env.step(turn.action)
            told = (turn.observation, turn.done, turn.success, turn.valid, turn.progress)
            if told != (
                result.observation,
                result.done,
                result.success,
                result.valid,
                result.progress,
            ):
                say(f"the turn {turn.id} is not what the environment says")
        elif turn.valid:
            try:
                if prompts.parse_reflection(turn.action_text, turn.step) != (
                    turn.target,
                    turn.note,
                ):
                    say(f"the reflection {turn.id} is misread")
            except UnusableReflection:
                say(f"the reflection {turn.id} is unusable")


def _finished(verdict: Verdict, tree: Tree, config: ExploreConfig) -> None:
    """A task is left when it is solved, its budget is used up, or errors ended it again and
    again."""
    errors = sum(e.stop in ERRORS for e in tree.episodes)
    calls = sum(len(e.turns) for e in tree.episodes)
    if calls > config.limits["policy_calls"]:
        verdict.problems.append(f"{tree.task.id} spent {calls} calls")
    if errors >= config.max_errors:
        verdict.given_up += calls < config.limits["policy_calls"]
    elif calls < config.limits["policy_calls"] and not (
        tree.solved and config.stop_when == "solved"
    ):
        verdict.problems.append(
            f"{tree.task.id} was left with {calls} calls spent and {errors} errors"
        )


def _verify_sums(verdict: Verdict, trees: Mapping[str, Tree], done: Mapping[str, Any]) -> None:
    episodes = [e for tree in trees.values() for e in tree.episodes]
    sums: Counter[str] = Counter()
    for episode in episodes:
        sums.update({name: int(amount) for name, amount in cost_of(episode).items()})
    for name in cost_of(Episode("", 0, Stop.failure, ())):
        if done["spent"][name] != sums[name]:
            verdict.problems.append(
                f"the budget says {done['spent'][name]} {name}, the journal {sums[name]}"
            )
    stops = Counter(e.stop.value for e in episodes)
    if dict(done["stops"]) != dict(stops):
        verdict.problems.append(
            f"the stage counted the stops {dict(done['stops'])}, the journal holds {dict(stops)}"
        )


def _verify_notes(verdict: Verdict, trees: Mapping[str, Tree], notes: Sequence[str]) -> None:
    """What was said to be durable is there as it was, and was said once."""
    there = {
        (task_id, e.index): digest(e) for task_id, tree in trees.items() for e in tree.episodes
    }
    said: set[tuple[str, int]] = set()
    for line in notes:
        task_id, index, true, synced = json.loads(line)
        if (task_id, index) in said:
            verdict.problems.append(f"episode {index} of {task_id} was written twice")
        said.add((task_id, index))
        if there.get((task_id, index)) != true:
            verdict.problems.append(
                f"episode {index} of {task_id} was durable and is "
                f"{'another' if (task_id, index) in there else 'gone'}"
            )
        if not synced:
            verdict.problems.append(
                f"episode {index} of {task_id} was called durable and was not synced"
            )


def tasks_of(count: int) -> list[Task]:
    return Quick().tasks("train", count)
