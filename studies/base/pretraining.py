"""The base policy's pretraining examples: episodes of the environment gates under other rules, with
notes, earlier feedback and reflections.

Every example is one episode, played in the real environment and written by the real prompts, so
that no format can drift. It mixes three skills: acting by a noisy habit, following a note or an
earlier attempt's feedback against habit, and reflecting on a failure. The rules of an example are
made up around what its actor does, stage by stage, and never state a pair of `HELD_OUT`. Only the
policy's words bear a loss.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from leafe.core import Kind, Message, Task, Turn, turn_id
from leafe.envs.gates import Gates
from leafe.envs.gates.env import Stage, draw_stages, task_payload
from leafe.envs.gates.rules import HABIT, HELD_OUT, HORIZON, OBJECTS, TOOLS, WAYS
from leafe.prompts import History, Prompts

HABIT_WAYS = (0.62, 0.30, 0.06, 0.02)
"""The probabilities of left, right, up, down by habit."""

HEED = 0.92
"""How often the actor of an example follows a note before a choice; else habit decides against it.
Real models do not always take advice either, and Stage 2 selects branches because actions can go
against their own experience (docs/results.md has figures for a base that always follows)."""

TOOL_NOISE = 0.10
"""How often the actor takes any tool at a gate instead of the habitual one."""

WEIGHTS: Mapping[str, float] = {
    "act": 1.0,
    "follow": 3.0,
    "plain": 0.3,
    "reflect": 2.0,
    "none": 0.0,
}
"""Loss weight of a message's words: a choice by habit, a choice that a note decides, a step that is
no choice, a reflection, a slip of the actor."""


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation that ends with the policy's message, and the loss weight of each of the
    policy's messages, in order."""

    messages: tuple[Message, ...]
    weights: tuple[float, ...]


def examples(seed: int, prompts: Prompts) -> Iterator[Example]:
    """Endless examples, the same for the same seed."""
    rng = random.Random(seed)
    env = Gates()
    while True:
        yield _episode(rng, env, prompts)


@dataclass(slots=True)
class _Choice:
    """What the actor does at one stage, and why."""

    choice: str
    right: str
    note: str = ""
    """A note before the choice."""
    early: bool = False
    """The note stands before the first action of the stage before, not before the choice."""
    advised: bool = False
    """A note or earlier feedback decides the choice."""


def _other(rng: random.Random, name: str, fork: bool, but: str) -> str:
    """An answer that could be right at this stage, is not `but`, and is no held-out pair."""
    return rng.choice(
        [x for x in (WAYS if fork else TOOLS) if x != but and (name, x) not in HELD_OUT]
    )


def _habit(rng: random.Random, name: str, fork: bool) -> str:
    if fork:
        return rng.choices(WAYS, HABIT_WAYS)[0]
    return rng.choice(TOOLS) if rng.random() < TOOL_NOISE else HABIT[name]


def _note(name: str, fork: bool, right: str) -> str:
    return f"{name} go {right}" if fork else f"{name} needs {right}"


def _episode(rng: random.Random, env: Gates, prompts: Prompts) -> Example:
    stages = draw_stages(
        rng,
        rng.choice((1, 2, 3, 4, 5, 6, 6, 7, 7, 7)),
        HABIT,
        forks=rng.choice((0.2, 0.4, 0.4, 0.8)),
        long_walks=0.65,
    )
    fails_at = (
        max(rng.randrange(len(stages)), rng.randrange(len(stages))) if rng.random() < 0.75 else None
    )
    refined = rng.random() < 0.35
    note_rate = rng.choice((0.0, 0.0, 0.2) if refined else (0.0, 0.0, 0.4, 0.9))
    earlier: set[int] = set()
    if refined:
        earlier = set(
            rng.sample(range(len(stages)), min(len(stages), rng.choice((1, 1, 2, 2, 3, 4))))
        )
        earlier = {
            i
            for i in earlier
            if fails_at is None or i < fails_at or (i > fails_at and rng.random() < 0.3)
        }
    choices: list[_Choice] = []
    preamble: list[str] = []
    for i, (kind, name, _, _) in enumerate(stages):
        fork = kind == "fork"
        if i in earlier:
            right = _other(rng, name, fork, "")
            choices.append(_Choice(right, right, advised=True))
            preamble.append(f"{'dead end' if fork else 'gate breaks'} ; {_note(name, fork, right)}")
            continue
        noted = rng.random() < note_rate
        heeded = rng.random() < HEED
        choice = _other(rng, name, fork, "") if noted and heeded else _habit(rng, name, fork)
        planned = _Choice(
            choice, _other(rng, name, fork, choice) if i == fails_at else choice, advised=noted
        )
        if noted:
            planned.note = _note(name, fork, choice if heeded else _other(rng, name, fork, choice))
            planned.early = i > 0 and not choices[-1].note and rng.random() < 0.08
        choices.append(planned)
    rng.shuffle(preamble)
    if preamble and rng.random() < 0.2:
        preamble.append(rng.choice(preamble))
    return _play(rng, env, prompts, stages, choices, tuple(preamble))


def _slip(rng: random.Random) -> str:
    return rng.choice(
        (
            f"take {rng.choice(TOOLS)}",
            f"use {rng.choice(TOOLS)}",
            f"go {rng.choice(WAYS)}",
            "walk on",
            f"take {rng.choice(OBJECTS)}",
            "go on",
        )
    )


def _play(
    rng: random.Random,
    env: Gates,
    prompts: Prompts,
    stages: tuple[Stage, ...],
    choices: list[_Choice],
    preamble: tuple[str, ...],
) -> Example:
    thing = rng.choice(OBJECTS)
    played = tuple(
        (kind, name, planned.right, walks)
        for (kind, name, _, walks), planned in zip(stages, choices, strict=True)
    )
    task = Task("lesson", env.name, "train", f"get {thing}", task_payload(played, thing))
    history = History(task, env.reset(task), preamble=preamble)
    notes: dict[int, str] = {}
    weights: list[float] = []
    slips = 0.08 if rng.random() < 0.15 else 0.0
    blamed = at = 0
    chosen = done = failed = False
    while not done and history.step < HORIZON:
        step = history.step
        kind = "plain"
        if at == len(stages):
            action = f"take {thing}"
        elif chosen:
            action = "walk on" if stages[at][0] == "fork" else f"use {choices[at].choice}"
        else:
            action = f"{'go' if stages[at][0] == 'fork' else 'take'} {choices[at].choice}"
            kind = "follow" if choices[at].advised else "act"
            blamed = step
            if choices[at].note and not choices[at].early:
                notes[step] = choices[at].note
            elif at + 1 < len(choices) and choices[at + 1].early:
                notes[step] = choices[at + 1].note
        slip = _slip(rng) if rng.random() < slips else ""
        if slip:  # only what changes nothing: the actor's slips are seen, never learnt
            before = env.snapshot()
            if env.step(slip).valid:
                slip = ""
            env.restore(before)
        result = env.step(slip or action)
        turn = Turn(
            turn_id(task.id, 0, step),
            None,
            task.id,
            step,
            Kind.act,
            slip or action,
            observation=result.observation,
        )
        history = history.then(turn)
        weights.append(WEIGHTS["none" if slip else kind])
        done, failed = result.done, result.done and not result.success
        if not slip:
            passed = result.progress is not None and result.progress > at
            at, chosen = at + passed, not passed
    history = replace(history, notes=notes)
    if not failed:
        return Example(prompts.act(history)[:-1], tuple(weights))
    kind, name, right, _ = played[at]
    answer = Message("assistant", f"s{blamed} {_note(name, kind == 'fork', right)}")
    return Example((*prompts.reflect(history), answer), (*weights, WEIGHTS["reflect"]))


def words_to_ids(
    vocabulary: Mapping[str, int], end: int
) -> Callable[[Example], tuple[list[int], list[float]]]:
    """A fast encoder: (token ids, loss weight of each as a target). Equal to `ChatTokens` on the
    same messages, which a test checks."""

    def encode(example: Example) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        weight: list[float] = []
        loads = iter(example.weights)
        for message in example.messages:
            new = [vocabulary[word] for word in message.content.split()]
            load = 0.0
            if message.role == "assistant":
                new.append(end)
                load = next(loads)
            ids += new
            weight += [load] * len(new)
        return ids, weight

    return encode
