"""Whether a policy can still learn from its own mistakes: does it follow an experience, and does it
reflect as the policy did that made the trees?

Training for success alone can lose both, and Pass@k does not show it: the next exploration does. So
they are measured beside Pass@k, without training and without environment steps, on trees that the
start policy grew before. Tasks that no arm was trained on are best: anchors are prompts of training
trees, and the other arms have seen these trees' right answers.

**Following** is the probability, exact and of the whole answer, of the action that an experience
asks for where the policy wants another one. An experience fits where the observation is the one
that it was about. So a *swapped* pair is a host (the history of some branch) and a donor (a branch
that improved, with the host's last observation, another note, and a revised action that is neither
the host's nor the host's original one). The prompt is the host's history with the donor's note, the
answer the donor's revised action: knowing the host's answer by heart does not count as following.
Where observations hardly ever recur there are too few such pairs; then they are branches that
improved, each with its *own* note. A policy that knows the answer anyway passes there: see
`unaided`, the same without the note.

**Reflection** is sampled on failed histories: the share that can be used (it parses, its step is in
range) and, where the tree's own reflection led to a branch that improved, the share that blames the
same step. Independent of sampling: the mean log-probability of those reflections.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeVar

from leafe.core import (
    FAILED_BY_ENV,
    Branch,
    Episode,
    Message,
    Policy,
    PolicyError,
    Request,
    Stop,
    SupportsScore,
    Tree,
    Turn,
    derive_seed,
)
from leafe.core.concurrency import run_all
from leafe.explore import complete_one
from leafe.prompts import History, Prompts, UnusableReflection, history_before, notes_on

_T = TypeVar("_T")

MIN_SWAPPED = 16
"""With fewer swapped pairs, pairs are a branch and its own experience."""

Asked = tuple[tuple[Message, ...], Message]
"""A prompt and an answer to it."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What was measured. Rates are fractions of 1; None: the trees or the policy do not allow the
    figure."""

    following: float | None
    """Mean probability of the action that the experience asks for. Needs a policy that can score
    answers (`hf`)."""
    unaided: float | None
    """The same at the same histories without the experience."""
    kind: Literal["swapped", "own"] | None
    """Whose experience the prompts carried: see the module."""
    pairs: int
    """How many of these."""
    reflection: float | None
    """Share of the sampled reflections that can be used."""
    reflections: int
    """How many were sampled."""
    same_step: float | None
    """Share that blames the step which the tree's own reflection blamed, where that one led to a
    branch that improved."""
    reflection_logprob: float | None
    """Mean log-probability, nats a whole reflection, of the trees' reflections whose branch
    improved. Needs a policy that can score answers."""
    improved: int
    """How many of these."""
    left_out: int = 0
    """Prompts that did not fit the context, and requests that failed."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded to six digits."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


async def probe(
    policy: Policy,
    trees: Iterable[Tree],
    prompts: Prompts,
    *,
    seed: int,
    pairs: int = 128,
    reflections: int = 128,
) -> Probe:
    """Measure whether a policy still learns from experience.

    Args:
        policy: What is measured; with a method `score` its following is measured too.
        trees: Explored by the start policy.
        prompts: The wording.
        seed: Decides which pairs and reflections are drawn.
        pairs: Most pairs of a history and an experience.
        reflections: Most sampled reflections, and most scored ones.
    """
    grown = list(trees)
    branches = [
        (tree, branch)
        for tree in grown
        for branch in tree.branches()
        if _sound(tree, tree.path(branch.revised.id))
    ]
    kind, told, untold = _pairs(branches, prompts, seed, pairs)
    right = _once(
        (
            prompts.reflect(history_before(t, b.reflection, with_experience=True)),
            _answer(b.reflection),
        )
        for t, b in branches
        if b.improved
    )
    right = _drawn(right, reflections, derive_seed(seed, "probe", "improved"))
    with_, without, logs = await _scores(policy, told, untold, right)
    sampled = await _reflect(
        policy,
        _failures(grown, prompts),
        prompts,
        derive_seed(seed, "probe", "reflect"),
        reflections,
    )
    answered = [steps for steps in sampled if steps is not None]
    usable = [target is not None for target, _ in answered]
    same = [target == blamed for target, blamed in answered if blamed is not None]
    scored = with_ is not None
    return Probe(
        following=_mean([math.exp(x) for x in with_ or () if x is not None]),
        unaided=_mean([math.exp(x) for x in without or () if x is not None]),
        kind=kind if scored else None,
        pairs=sum(x is not None for x in with_ or ()),
        reflection=_mean(usable),
        reflections=len(usable),
        same_step=_mean(same),
        reflection_logprob=_mean([x for x in logs or () if x is not None]),
        improved=sum(x is not None for x in logs or ()),
        left_out=len(sampled)
        - len(answered)
        + sum(x is None for x in (*(with_ or ()), *(logs or ()))),
    )


def mean_probe(probes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One record for several runs of a policy, in the form of `Probe.to_json`: figures are means
    over the runs that have them, numbers of questions are sums.
    Empty without probes."""
    if not probes:
        return {}
    out: dict[str, Any] = {}
    for name in (field.name for field in fields(Probe) if field.name in probes[0]):
        values = [p[name] for p in probes if p.get(name) is not None]
        if name == "kind":
            out[name] = ", ".join(dict.fromkeys(values)) or None
        elif name in _NUMBERS:
            out[name] = sum(values)
        else:
            out[name] = _mean(values)
    return {name: _rounded(value) for name, value in out.items()}


_NUMBERS = ("pairs", "reflections", "improved", "left_out")


def _pairs(
    branches: Sequence[tuple[Tree, Branch]], prompts: Prompts, seed: int, most: int
) -> tuple[Literal["swapped", "own"] | None, list[Asked], list[Asked]]:
    """(whose experience, prompts with it, the same without it)."""
    donors: dict[str, list[Branch]] = {}
    for tree, branch in branches:
        if branch.improved:
            donors.setdefault(_last_seen(tree, branch), []).append(branch)
    draw = random.Random(derive_seed(seed, "probe", "pairs"))
    swapped: list[tuple[Tree, Branch, Branch]] = []
    hosts = list(branches)
    draw.shuffle(hosts)
    seen: set[tuple[str | None, str, str, str]] = set()
    for tree, host in hosts:
        taken = {host.revised.action, host.original.action}
        able = [
            d
            for d in donors.get(_last_seen(tree, host), ())
            if d.revised.action not in taken and d.reflection.note != host.reflection.note
        ]
        if able:
            donor = draw.choice(able)
            key = (host.turn_before, host.task_id, donor.reflection.note, donor.revised.action_text)
            if key not in seen:
                seen.add(key)
                swapped.append((tree, host, donor))
    kind: Literal["swapped", "own"] = "swapped" if len(swapped) >= MIN_SWAPPED else "own"
    chosen = (
        swapped
        if kind == "swapped"
        else [(tree, branch, branch) for tree, branch in hosts if branch.improved]
    )
    told: list[Asked] = []
    untold: list[Asked] = []
    for tree, host, donor in chosen[:most]:
        plain = history_before(tree, host.revised, with_experience=True)
        step = host.revised.step
        bare = replace(plain, notes={s: note for s, note in plain.notes.items() if s != step})
        noted = replace(plain, notes={**bare.notes, step: donor.reflection.note})
        told.append((prompts.act(noted), _answer(donor.revised)))
        untold.append((prompts.act(bare), _answer(donor.revised)))
    return (kind, told, untold) if told else (None, [], [])


async def _scores(policy: Policy, *asked: Sequence[Asked]) -> Sequence[list[float | None] | None]:
    """Log-probabilities of each list of answers; None for each where the policy cannot score."""
    if not isinstance(policy, SupportsScore):
        return [None] * len(asked)
    return [list(await policy.score(part)) for part in asked]


def _failures(trees: Sequence[Tree], prompts: Prompts) -> list[tuple[str, History, int | None]]:
    """(a name, the history, the step that an improving reflection of the tree blamed) of every
    distinct failed episode."""
    out: dict[tuple[Message, ...], tuple[str, History, int | None]] = {}
    for tree in trees:
        helped = {b.reflection.id: b for b in tree.branches() if b.improved}
        for episode in tree.episodes:
            path = tree.trajectory(episode)
            if episode.stop not in FAILED_BY_ENV or not path or not _sound(tree, path):
                continue
            history = History(
                tree.task,
                _root(tree, path, episode).first_observation,
                tuple(path),
                notes_on(tree, path),
                episode.preamble,
            )
            blamed = next(
                (
                    b.reflection.target
                    for t in episode.turns
                    if (b := helped.get(t.id)) is not None and t.step == len(path)
                ),
                None,
            )
            messages = prompts.reflect(history)
            if messages not in out or out[messages][2] is None:
                out[messages] = (f"{tree.task.id}/{episode.index}", history, blamed)
    return list(out.values())


async def _reflect(
    policy: Policy,
    failures: Sequence[tuple[str, History, int | None]],
    prompts: Prompts,
    seed: int,
    most: int,
) -> list[tuple[int | None, int | None] | None]:
    """For each failure (at most `most`, drawn at random): the step that the policy's reflection
    blames (None: unusable) and the one that the tree's own reflection blamed (None: it did not
    help). None where the policy gave no answer."""

    async def ask(
        failure: tuple[str, History, int | None],
    ) -> tuple[int | None, int | None] | None:
        name, history, blamed = failure
        request = Request(
            messages=prompts.reflect(history),
            max_tokens=prompts.set.reflect_max_tokens,
            stop=prompts.set.stop,
            schema=prompts.reflection_schema(history.step),
            seed=derive_seed(seed, name),
            cache_key=history.task.id,
        )
        try:
            answer = await complete_one(policy, request)
            return prompts.parse_reflection(answer.text, history.step)[0], blamed
        except PolicyError:
            return None
        except UnusableReflection:
            return None, blamed

    return await run_all(_drawn(failures, most, seed), ask)


def _last_seen(tree: Tree, branch: Branch) -> str:
    """The observation at which the branch chose."""
    if branch.turn_before is not None:
        return tree[branch.turn_before].observation
    return branch.outcome_after.first_observation


def _sound(tree: Tree, turns: Iterable[Turn]) -> bool:
    return not any(tree.episode_of(t.id).stop is Stop.diverged for t in turns)


def _root(tree: Tree, path: Sequence[Turn], episode: Episode) -> Episode:
    return tree.episode_of(path[0].id) if path else episode


def _answer(turn: Turn) -> Message:
    return Message("assistant", turn.action_text, turn.tokens)


def _once(asked: Iterable[Asked]) -> list[Asked]:
    return list(dict.fromkeys(asked))


def _drawn(items: Sequence[_T], most: int, seed: int) -> list[_T]:
    """`most` of the items at random, all where there are no more."""
    return list(items) if len(items) <= most else random.Random(seed).sample(items, most)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
