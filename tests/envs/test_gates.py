"""The embedded world: its contract, its splits, its words, and that it keeps its rules to itself until a mistake shows."""

from __future__ import annotations

import asyncio
import random

import pytest

from leafe.core import Message, PolicyError, Request, Task, UserError
from leafe.envs.gates import SETTINGS, Gates, GatesReference
from leafe.envs.gates.rules import ADJECTIVES, HABIT, HELD_OUT, HORIZON, OBJECTS, PLACES, SHIFTED, TARGET, TOOLS, WAYS, WORDS
from leafe.testing import check_environment

STAGES = [["gate", "mossy", "mirror", 0], ["fork", "attic", "down", 2], ["fork", "cellar", "left", 1]]
TASK = Task("t", "gates", "train", "get crown", {"stages": STAGES, "object": "crown"})
WIN = ["take mirror", "use mirror", "go down", "walk on", "walk on", "go left", "walk on", "take crown"]
ACTIONS = [*(f"take {t}" for t in TOOLS), *(f"use {t}" for t in TOOLS), *(f"go {w}" for w in WAYS), *["walk on"] * 12, *(f"take {o}" for o in OBJECTS)]


def winning(task: Task) -> list[str]:
    out = []
    for kind, _, right, walks in task.payload["stages"]:
        out += [f"take {right}", f"use {right}"] if kind == "gate" else [f"go {right}", *["walk on"] * walks]
    return [*out, f"take {task.payload['object']}"]


def sensible(task: Task, observation: str, rng: random.Random) -> str:
    """What a policy that knows nothing but the manners of the world would do."""
    last = observation.split(" ; ")[-1].split()
    if last[-1] == "gate":
        return f"take {rng.choice(TOOLS)}"
    if last[-1] == "fork":
        return f"go {rng.choice(WAYS)}"
    return {"path": "walk on", "hold": f"use {last[-1]}"}.get(last[0], f"take {last[0]}")


def test_the_right_actions_win_and_count_up_the_stages() -> None:
    world = Gates()
    assert world.reset(TASK, 0) == "mossy gate"
    results = [world.step(action) for action in WIN]
    assert [r.observation for r in results] == ["hold mirror", "attic fork", "path", "path", "cellar fork", "path", "crown here", "you have crown"]
    assert [r.progress for r in results] == [0, 1, 1, 1, 2, 2, 3, 3]
    assert results[-1].success
    assert results[-1].done
    assert results[-1].reward == 1
    assert not any(r.done or r.reward for r in results[:-1])


@pytest.mark.parametrize(
    ("actions", "said"),
    [(["take rope", "use rope"], "gate breaks ; mossy needs mirror"), ([*WIN[:2], "go up", "walk on", "walk on"], "dead end ; attic go down")],
)
def test_a_mistake_shows_later_ends_the_episode_and_is_named(actions: list[str], said: str) -> None:
    world = Gates()
    world.reset(TASK, 0)
    results = [world.step(action) for action in actions]
    assert not any(r.done for r in results[:-1])
    assert results[-1].done
    assert not results[-1].success
    assert results[-1].observation == said
    after = world.step("walk on")
    assert after.done
    assert not after.valid


@pytest.mark.parametrize(
    ("before", "action", "why"),
    [
        ([], "open gate", "unknown action"),
        ([], "go up", "no fork here"),
        ([], "walk on", "gate shut"),
        ([], "use rope", "you hold no rope"),
        ([], "take crown", "no crown here"),
        (["take rope"], "take lamp", "you hold rope"),
        (["take rope"], "use lamp", "you hold no lamp"),
        (WIN[:2], "take rope", "no rope here"),
        (WIN[:2], "walk on", "first go way"),
        (WIN[:3], "go up", "no fork here"),
        (WIN[:-1], "walk on", "no way ; take crown"),
        (WIN[:-1], "take pearl", "no pearl here"),
    ],
)
def test_an_invalid_action_is_told_why_and_changes_nothing(before: list[str], action: str, why: str) -> None:
    world = Gates()
    world.reset(TASK, 0)
    for step in before:
        assert world.step(step).valid
    state = world.snapshot()
    result = world.step(action)
    assert not result.valid
    assert result.observation.startswith(why)
    assert world.snapshot() == state


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_contract_holds(setting: str) -> None:
    world = Gates(setting)
    tasks = world.tasks("train", 40)
    for actions in (ACTIONS, sensible):
        report = check_environment(world, tasks, actions)
        assert not report.problems, report


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_task_can_be_won_within_the_horizon(setting: str) -> None:
    world = Gates(setting)
    least, most = SETTINGS[setting]
    for task in world.tasks("valid", 300):
        world.reset(task, 0)
        actions = winning(task)
        assert world.step(actions[0]).valid
        assert [world.step(a) for a in actions[1:]][-1].success
        assert len(actions) <= world.horizon
        assert least <= len(task.payload["stages"]) <= most
    longest = [["fork", place, "up", 2] for place in PLACES[:most]]
    assert len(winning(Task("l", "gates", "test", "get orb", {"stages": longest, "object": "orb"}))) <= HORIZON


def test_splits_share_no_stage_list_whatever_the_setting_and_seed() -> None:
    def lists(split: str) -> set[tuple[str, ...]]:
        return {tuple(s[1] for s in t.payload["stages"]) for setting in SETTINGS for seed in (0, 1) for t in Gates(setting).tasks(split, 400, seed)}

    train, valid, test = lists("train"), lists("valid"), lists("test")
    assert not train & valid | train & test | valid & test
    assert Gates().tasks("test", 5) == Gates().tasks("test", 50)[:5]
    assert Gates().tasks("test", 5) != Gates().tasks("test", 5, seed=1)
    assert len({t.id for t in Gates().tasks("test", 50)}) == 50


def test_tasks_are_the_same_on_every_machine() -> None:
    assert Gates("easy").tasks("test", 1)[0].payload == EASY_TEST_0


EASY_TEST_0 = {
    "stages": [
        ["gate", "silver", "feather", 0],
        ["fork", "stable", "right", 2],
        ["gate", "cracked", "chalk", 0],
        ["gate", "narrow", "spade", 0],
    ],
    "object": "goblet",
}


def test_rules_are_the_targets_or_the_tasks_own() -> None:
    for setting in ("easy", "hard"):
        gates = [s for t in Gates(setting).tasks("train", 100) for s in t.payload["stages"] if s[0] == "gate"]
        assert all(TARGET[name] == tool for _, name, tool, _ in gates)
    tools = {name: set[str]() for name in ADJECTIVES}
    for task in Gates("random").tasks("train", 300):
        for kind, name, tool, _ in task.payload["stages"]:
            if kind == "gate":
                tools[name].add(tool)
    assert all(len(seen) > 8 for seen in tools.values())


def test_under_habits_rules_the_tasks_are_the_same_but_for_their_tools() -> None:
    for setting in ("easy", "hard"):
        for plain, control in zip(Gates(setting).tasks("train", 60, 1), Gates(setting, "habit").tasks("train", 60, 1), strict=True):
            stages = [[kind, name, HABIT[name] if kind == "gate" else right, walks] for kind, name, right, walks in plain.payload["stages"]]
            assert control.payload == {"stages": stages, "object": plain.payload["object"]}
            assert control.id == plain.id.replace(setting, f"{setting}-habit")
    world = Gates("easy", "habit")
    report = check_environment(world, world.tasks("train", 10), ACTIONS)
    assert not report.problems, report


def test_five_rules_differ_from_habit_and_are_held_out_of_pretraining() -> None:
    assert {a for a in ADJECTIVES if TARGET[a] != HABIT[a]} == set(SHIFTED)
    assert len(SHIFTED) == 5
    assert {(a, TARGET[a]) for a in SHIFTED} <= HELD_OUT
    assert not {(a, HABIT[a]) for a in ADJECTIVES} & HELD_OUT
    assert {a for a, _ in HELD_OUT} == set(ADJECTIVES)


def test_the_world_says_a_rule_only_where_it_was_broken() -> None:
    rng = random.Random(3)
    world = Gates()
    told = 0
    for task in world.tasks("train", 300):
        said = world.reset(task, 0)
        stages = {name: right for _, name, right, _ in task.payload["stages"]}
        for _ in range(world.horizon):
            assert "needs" not in said
            result = world.step(sensible(task, said, rng) if rng.random() < 0.8 else rng.choice(ACTIONS))
            said = result.observation
            if result.done:
                break
        if result.done and not result.success:
            name, _, right = said.split(" ; ")[1].split()
            assert stages[name] == right
            told += 1
    assert told > 100
    assert not any(word in task.instruction.split() for task in world.tasks("train", 50) for word in (*TOOLS, *WAYS, *ADJECTIVES))


def test_all_that_the_world_says_is_in_the_vocabulary() -> None:
    rng = random.Random(4)
    world = Gates()
    said: set[str] = set()
    for task in world.tasks("train", 300):
        said |= {*task.instruction.split(), *world.reset(task, 0).split()}
        observation = world.reset(task, 0)
        for _ in range(world.horizon):
            observation = world.step(sensible(task, observation, rng) if rng.random() < 0.7 else rng.choice([*ACTIONS, "sing"])).observation
            said |= set(observation.split())
    assert said <= set(WORDS)
    assert len(set(WORDS)) == len(WORDS)


def test_wrong_options_are_the_users_mistake() -> None:
    with pytest.raises(UserError, match="no setting 'hardest'"):
        Gates("hardest")
    with pytest.raises(UserError, match="no rules 'hobbit'"):
        Gates("easy", "hobbit")
    with pytest.raises(UserError, match="no use there"):
        Gates("random", "habit")
    with pytest.raises(UserError, match="knows no rules 'hobbit'"):
        GatesReference("hobbit")
    with pytest.raises(UserError, match="no split 'dev'"):
        Gates().tasks("dev")


def ask(text: str, n: int = 1, seed: int = 0, rules: str = "target") -> dict[str, int]:
    completions = asyncio.run(GatesReference(rules).complete(Request((Message("user", text),), n=n, seed=seed)))
    return {c.text: c.count for c in completions}


def test_the_reference_knows_the_rules_and_guesses_the_ways() -> None:
    assert ask("get crown s0 mossy gate", 7) == {f"take {TARGET['mossy']}": 7}
    assert ask("s3 no fork here ; icy gate") == {f"take {TARGET['icy']}": 1}
    assert ask("s3 mossy gate", rules="habit") == {f"take {HABIT['mossy']}": 1}
    assert ask("s1 hold lamp") == {"use lamp": 1}
    assert ask("s1 first go way ; path") == {"walk on": 1}
    assert ask("s9 crown here") == {"take crown": 1}
    ways = ask("s2 attic fork", 4000)
    assert sum(ways.values()) == 4000
    assert all(900 < ways[f"go {way}"] < 1100 for way in WAYS)
    assert ways == ask("s2 attic fork", 4000)
    assert ways != ask("s2 attic fork", 4000, seed=1)
    with pytest.raises(PolicyError, match="only acts"):
        ask("s2 gate breaks ; mossy needs mirror reflect")


def test_the_reference_wins_as_often_as_its_guesses_allow() -> None:
    world, rng, wins, due = Gates(), random.Random(5), 0.0, 0.0
    for task in world.tasks("train", 200):
        forks = sum(s[0] == "fork" for s in task.payload["stages"])
        due += 0.25**forks
        for _ in range(10):
            said, done = world.reset(task, 0), False
            while not done:
                (action,) = ask(said, 1, rng.randrange(2**31))
                result = world.step(action)
                said, done = result.observation, result.done
            wins += result.success / 10
    assert abs(wins - due) < 8
    assert 20 < due < 40
