"""The embedded environment: its contract, its splits, its words, and that it keeps its rules to
itself until a mistake shows."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random

import pytest

from leafe.core import Message, PolicyError, Request, Task, UserError
from leafe.envs.gates import SETTINGS, Gates, GatesReference
from leafe.envs.gates.env import draw_stages
from leafe.envs.gates.rules import (
    ADJECTIVES,
    FAMILIES,
    HABIT,
    HELD_OUT,
    HORIZON,
    OBJECTS,
    PLACES,
    RULES,
    SHIFTED,
    TARGET,
    TOOLS,
    WAYS,
    WORDS,
)
from leafe.testing import check_environment

STAGES = [
    ["gate", "mossy", "mirror", 0],
    ["fork", "attic", "down", 2],
    ["fork", "cellar", "left", 1],
]
TASK = Task("t", "gates", "train", "get crown", {"stages": STAGES, "object": "crown"})
WIN = [
    "take mirror",
    "use mirror",
    "go down",
    "walk on",
    "walk on",
    "go left",
    "walk on",
    "take crown",
]
ACTIONS = [
    *(f"take {t}" for t in TOOLS),
    *(f"use {t}" for t in TOOLS),
    *(f"go {w}" for w in WAYS),
    *["walk on"] * 12,
    *(f"take {o}" for o in OBJECTS),
]


def winning(task: Task) -> list[str]:
    out = []
    for kind, _, right, walks in task.payload["stages"]:
        out += (
            [f"take {right}", f"use {right}"]
            if kind == "gate"
            else [f"go {right}", *["walk on"] * walks]
        )
    return [*out, f"take {task.payload['object']}"]


def sensible(task: Task, observation: str, rng: random.Random) -> str:
    """What a policy that knows nothing but the manners of the environment would do."""
    last = observation.split(" ; ")[-1].split()
    if last[-1] == "gate":
        return f"take {rng.choice(TOOLS)}"
    if last[-1] == "fork":
        return f"go {rng.choice(WAYS)}"
    return {"path": "walk on", "hold": f"use {last[-1]}"}.get(last[0], f"take {last[0]}")


def test_the_right_actions_win_and_count_up_the_stages() -> None:
    env = Gates()
    assert env.reset(TASK, 0) == "mossy gate"
    results = [env.step(action) for action in WIN]
    assert [r.observation for r in results] == [
        "hold mirror",
        "attic fork",
        "path",
        "path",
        "cellar fork",
        "path",
        "crown here",
        "you have crown",
    ]
    assert [r.progress for r in results] == [0, 1, 1, 1, 2, 2, 3, 3]
    assert results[-1].success
    assert results[-1].done
    assert results[-1].reward == 1
    assert not any(r.done or r.reward for r in results[:-1])


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        (["take rope", "use rope"], "gate breaks ; mossy needs mirror"),
        ([*WIN[:2], "go up", "walk on", "walk on"], "dead end ; attic go down"),
    ],
)
def test_a_mistake_shows_later_ends_the_episode_and_is_named(actions: list[str], said: str) -> None:
    env = Gates()
    env.reset(TASK, 0)
    results = [env.step(action) for action in actions]
    assert not any(r.done for r in results[:-1])
    assert results[-1].done
    assert not results[-1].success
    assert results[-1].observation == said
    after = env.step("walk on")
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
def test_an_invalid_action_is_told_why_and_changes_nothing(
    before: list[str], action: str, why: str
) -> None:
    env = Gates()
    env.reset(TASK, 0)
    for step in before:
        assert env.step(step).valid
    state = env.snapshot()
    result = env.step(action)
    assert not result.valid
    assert result.observation.startswith(why)
    assert env.snapshot() == state


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_contract_holds(setting: str) -> None:
    env = Gates(setting)
    tasks = env.tasks("train", 40)
    for actions in (ACTIONS, sensible):
        report = check_environment(env, tasks, actions)
        assert not report.problems, report


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_task_can_be_won_within_the_horizon(setting: str) -> None:
    env = Gates(setting)
    least, most = SETTINGS[setting]
    for task in env.tasks("valid", 300):
        env.reset(task, 0)
        actions = winning(task)
        assert env.step(actions[0]).valid
        assert [env.step(a) for a in actions[1:]][-1].success
        assert len(actions) <= env.horizon
        assert least <= len(task.payload["stages"]) <= most
    longest = [["fork", place, "up", 2] for place in PLACES[:most]]
    assert (
        len(winning(Task("l", "gates", "test", "get orb", {"stages": longest, "object": "orb"})))
        <= HORIZON
    )


def test_splits_share_no_stage_list_whatever_the_setting_and_seed() -> None:
    def lists(split: str) -> set[tuple[str, ...]]:
        return {
            tuple(s[1] for s in t.payload["stages"])
            for setting in SETTINGS
            for seed in (0, 1)
            for t in Gates(setting).tasks(split, 400, seed)
        }

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


BEFORE_FAMILIES = {
    ("easy", "target"): (
        "21511444b53c5127",
        "914b5412e49c2855",
        "c8ce2326e0f9f49b",
        "e18c99a71f8d56d7",
        "419b9037377b2875",
        "d24530af22439874",
    ),
    ("hard", "target"): (
        "28cb9cf0c168f836",
        "0cfa67e074a84297",
        "7ad4e80e7bd5fc19",
        "b42d288eb59bc6cf",
        "c3694998bb9d0dad",
        "d4573f17b9f86f34",
    ),
    ("random", "target"): (
        "e79461fbcdbc6ab0",
        "84fca978f8bf0c6b",
        "db31478f7fb560f8",
        "f936c74920854119",
        "7c0a67f260ead1bc",
        "2f54a2996a760878",
    ),
    ("easy", "habit"): (
        "4d6106f0706f98a7",
        "c8651efd94188b16",
        "2cf35d9b83949c75",
        "89576fa309fdcd1e",
        "01435042f0296bb1",
        "0d8c114acc718f29",
    ),
    ("hard", "habit"): (
        "f0b741a9d360b22c",
        "6f1352b2563b3301",
        "5c6cf316c03f0f1b",
        "deda5507fdd981ed",
        "83dc7b128913f217",
        "4abcf101bbf9789d",
    ),
}
"""Of 300 tasks of train, valid and test, task seeds 0 and 1 each: recorded before the environment
had the option `words`."""


@pytest.mark.parametrize(("setting", "rules"), list(BEFORE_FAMILIES))
def test_the_tasks_are_those_of_runs_made_before_there_were_families(
    setting: str, rules: str
) -> None:
    found = []
    for split in ("train", "valid", "test"):
        for seed in (0, 1):
            lines = [
                json.dumps(task.to_json(), sort_keys=True)
                for task in Gates(setting, rules).tasks(split, 300, seed)
            ]
            found.append(
                hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()[:16]
            )
    assert tuple(found) == BEFORE_FAMILIES[setting, rules]


def test_lessons_draw_the_stages_that_the_shipped_model_was_made_from() -> None:
    rng, found = random.Random(0), hashlib.sha256()
    for _ in range(2000):
        found.update(
            json.dumps(
                draw_stages(
                    rng, rng.choice((1, 2, 7)), HABIT, forks=rng.choice((0.2, 0.8)), long_walks=0.65
                )
            ).encode()
        )
    assert found.hexdigest()[:16] == "c128cf76b4123c48"


def test_families_part_every_word_but_tools_and_ways() -> None:
    first, second, every = (FAMILIES[name] for name in ("first", "second", "all"))
    for name in ("adjectives", "places", "objects"):
        ours, theirs, whole = (getattr(words, name) for words in (first, second, every))
        assert sorted((*ours, *theirs)) == sorted(whole)
        assert len(ours) == len(theirs) == len(whole) / 2
    for rules in RULES.values():  # no tool that opens a gate of the one opens one of the other
        assert not {rules[a] for a in first.adjectives} & {rules[a] for a in second.adjectives}
    assert [sum(a in SHIFTED for a in words.adjectives) for words in (first, second)] == [3, 2]
    owner = {tool: adjective for adjective, tool in HABIT.items()}
    strayed = [
        a
        for words in (first, second)
        for a in words.adjectives
        if owner[TARGET[a]] not in words.adjectives
    ]
    assert strayed == ["hollow", "dusty"]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("words", ["first", "second"])
def test_a_familys_tasks_hold_its_words_alone(setting: str, words: str) -> None:
    own, other = FAMILIES[words], FAMILIES["second" if words == "first" else "first"]
    theirs = {*other.adjectives, *other.places, *other.objects}
    env = Gates(setting, words=words)
    lists, rng = [], random.Random(2)
    for split, count in (("train", 240), ("valid", 60), ("test", 300)):
        tasks = env.tasks(split, count, 1)
        assert tasks[0].id == f"gates-{setting}-{words}-{split}-1-0"
        lists += [tuple(stage[1] for stage in task.payload["stages"]) for task in tasks]
        for task in tasks:
            assert set(lists[-1]) <= {*own.adjectives, *own.places}
            if setting != "random":
                assert all(
                    tool == TARGET[name]
                    for kind, name, tool, _ in task.payload["stages"]
                    if kind == "gate"
                )
            said, heard = env.reset(task), [task.instruction]
            for _ in range(env.horizon):
                heard.append(said)
                said = env.step(sensible(task, said, rng)).observation
            assert not theirs & set(" ".join(heard).split())
    assert len(set(lists)) == 600
    assert {name for names in lists for name in names} == {*own.adjectives, *own.places}
    report = check_environment(env, env.tasks("train", 10), ACTIONS)
    assert not report.problems, report


def test_families_keep_the_shape_of_the_env() -> None:
    """As many stages, forks and long walks as in the whole environment, so that it is the words
    that differ."""

    def shape(words: str) -> tuple[float, float, float]:
        stages = [
            task.payload["stages"] for task in Gates("hard", words=words).tasks("train", 1000)
        ]
        forks = [walks for chain in stages for kind, _, _, walks in chain if kind == "fork"]
        return (
            sum(map(len, stages)) / 1000,
            len(forks) / sum(map(len, stages)),
            sum(walks == 2 for walks in forks) / len(forks),
        )

    whole = shape("all")
    for words in ("first", "second"):
        assert all(abs(a - b) < 0.05 for a, b in zip(shape(words), whole, strict=True)), (
            words,
            shape(words),
            whole,
        )


def test_habits_rules_in_a_family_change_its_tools_alone() -> None:
    for plain, control in zip(
        Gates("hard", words="first").tasks("test", 60),
        Gates("hard", "habit", "first").tasks("test", 60),
        strict=True,
    ):
        stages = [
            [kind, name, HABIT[name] if kind == "gate" else right, walks]
            for kind, name, right, walks in plain.payload["stages"]
        ]
        assert control.payload == {"stages": stages, "object": plain.payload["object"]}
        assert control.id == plain.id.replace("hard", "hard-habit")


@pytest.mark.parametrize(
    ("setting", "words", "most"),
    [("easy", "first", 2640), ("easy", "all", 53433), ("hard", "second", 152064)],
)
def test_more_tasks_than_there_are_is_the_users_mistake(
    setting: str, words: str, most: int
) -> None:
    """12 words give 12 11 10 + 12 11 10 9 = 13,200 lists of 3 or 4, of which a validation split has
    two tenths."""
    with pytest.raises(
        UserError, match=rf"about {most} tasks in the split valid, and {most + 1} are asked for"
    ):
        Gates(setting, words=words).tasks("valid", most + 1)


def test_a_split_that_is_used_up_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash gives a split a few lists more or less than its tenths: then drawing ends all the
    same."""
    monkeypatch.setattr("leafe.envs.gates.env.MAX_REDRAWS", 500)
    with pytest.raises(
        UserError,
        match=(
            r"gates easy-second has hardly more than \d+ tasks in the split test, and 2640 are "
            r"asked for"
        ),
    ):
        Gates("easy", words="second").tasks("test", 2640)


def test_the_reference_knows_both_families() -> None:
    for words in ("first", "second"):
        for task in Gates("hard", words=words).tasks("test", 40):
            for kind, name, right, _ in task.payload["stages"]:
                if kind == "gate":
                    assert ask(f"s0 {name} gate", 3) == {f"take {right}": 3}


def test_rules_are_the_targets_or_the_tasks_own() -> None:
    for setting in ("easy", "hard"):
        gates = [
            s
            for t in Gates(setting).tasks("train", 100)
            for s in t.payload["stages"]
            if s[0] == "gate"
        ]
        assert all(TARGET[name] == tool for _, name, tool, _ in gates)
    tools = {name: set[str]() for name in ADJECTIVES}
    for task in Gates("random").tasks("train", 300):
        for kind, name, tool, _ in task.payload["stages"]:
            if kind == "gate":
                tools[name].add(tool)
    assert all(len(seen) > 8 for seen in tools.values())


def test_under_habits_rules_the_tasks_are_the_same_but_for_their_tools() -> None:
    for setting in ("easy", "hard"):
        for plain, control in zip(
            Gates(setting).tasks("train", 60, 1),
            Gates(setting, "habit").tasks("train", 60, 1),
            strict=True,
        ):
            stages = [
                [kind, name, HABIT[name] if kind == "gate" else right, walks]
                for kind, name, right, walks in plain.payload["stages"]
            ]
            assert control.payload == {"stages": stages, "object": plain.payload["object"]}
            assert control.id == plain.id.replace(setting, f"{setting}-habit")
    env = Gates("easy", "habit")
    report = check_environment(env, env.tasks("train", 10), ACTIONS)
    assert not report.problems, report


def test_five_rules_differ_from_habit_and_are_held_out_of_pretraining() -> None:
    assert {a for a in ADJECTIVES if TARGET[a] != HABIT[a]} == set(SHIFTED)
    assert len(SHIFTED) == 5
    assert {(a, TARGET[a]) for a in SHIFTED} <= HELD_OUT
    assert not {(a, HABIT[a]) for a in ADJECTIVES} & HELD_OUT
    assert {a for a, _ in HELD_OUT} == set(ADJECTIVES)


def test_the_env_says_a_rule_only_where_it_was_broken() -> None:
    rng = random.Random(3)
    env = Gates()
    told = 0
    for task in env.tasks("train", 300):
        said = env.reset(task, 0)
        stages = {name: right for _, name, right, _ in task.payload["stages"]}
        for _ in range(env.horizon):
            assert "needs" not in said
            result = env.step(
                sensible(task, said, rng) if rng.random() < 0.8 else rng.choice(ACTIONS)
            )
            said = result.observation
            if result.done:
                break
        if result.done and not result.success:
            name, _, right = said.split(" ; ")[1].split()
            assert stages[name] == right
            told += 1
    assert told > 100
    assert not any(
        word in task.instruction.split()
        for task in env.tasks("train", 50)
        for word in (*TOOLS, *WAYS, *ADJECTIVES)
    )


def test_all_that_the_env_says_is_in_the_vocabulary() -> None:
    rng = random.Random(4)
    env = Gates()
    said: set[str] = set()
    for task in env.tasks("train", 300):
        said |= {*task.instruction.split(), *env.reset(task, 0).split()}
        observation = env.reset(task, 0)
        for _ in range(env.horizon):
            observation = env.step(
                sensible(task, observation, rng)
                if rng.random() < 0.7
                else rng.choice([*ACTIONS, "sing"])
            ).observation
            said |= set(observation.split())
    assert said <= set(WORDS)
    assert len(set(WORDS)) == len(WORDS)


def test_wrong_options_are_the_users_mistake() -> None:
    with pytest.raises(UserError, match="no setting 'hardest'"):
        Gates("hardest")
    with pytest.raises(UserError, match="no rules 'hobbit'"):
        Gates("easy", "hobbit")
    with pytest.raises(UserError, match="no words 'third': choose one of all, first, second"):
        Gates("easy", words="third")
    with pytest.raises(UserError, match="no use there"):
        Gates("random", "habit")
    with pytest.raises(UserError, match="knows no rules 'hobbit'"):
        GatesReference("hobbit")
    with pytest.raises(UserError, match="no split 'dev'"):
        Gates().tasks("dev")


def ask(text: str, n: int = 1, seed: int = 0, rules: str = "target") -> dict[str, int]:
    completions = asyncio.run(
        GatesReference(rules).complete(Request((Message("user", text),), n=n, seed=seed))
    )
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
    env, rng, wins, due = Gates(), random.Random(5), 0.0, 0.0
    for task in env.tasks("train", 200):
        forks = sum(s[0] == "fork" for s in task.payload["stages"])
        due += 0.25**forks
        for _ in range(10):
            said, done = env.reset(task, 0), False
            while not done:
                (action,) = ask(said, 1, rng.randrange(2**31))
                result = env.step(action)
                said, done = result.observation, result.done
            wins += result.success / 10
    assert abs(wins - due) < 8
    assert 20 < due < 40
