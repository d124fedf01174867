"""ALFWorld without the planner: games of a room made by hand and of drawn ones, the words, the
reasons, the data folder's faults."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("alfworld", reason="alfworld is not installed: pip install 'leafe[alfworld]'")

from leafe.core import Environment, Task, UserError
from leafe.envs.alfworld import AlfWorld
from leafe.envs.alfworld._make import _contents, _trajectory, _write
from leafe.envs.alfworld._scenes import (
    TASK_TYPES,
    Game,
    Goal,
    Room,
    _problem,
    draw_game,
    floor_plans,
    load_room,
    possible_goals,
)
from leafe.envs.alfworld._setup import GAME, MARKER, TRAJECTORY
from leafe.prompts import load_prompt_set
from tests.envs.test_prompt_sets import replay

PLACES = [
    "CounterTop|1",
    "Fridge|1",
    "Microwave|1",
    "Sink|1|1|1|SinkBasin",
    "Cabinet|1",
    "Cabinet|2",
    "SideTable|1",
]
THINGS = {
    "Apple|1": "CounterTop|1",
    "Apple|2": "Fridge|1",
    "Mug|1": "Cabinet|1",
    "Knife|1": "CounterTop|1",
    "DeskLamp|1": "SideTable|1",
    "Book|1": "SideTable|1",
}
ROOM = Room(
    1,
    {name: (at, 0, 0, 30) for at, name in enumerate(PLACES)},
    ("Apple", "Book", "Knife", "Mug"),
    True,
    (9, 9, 0, 0),
)


def kitchen(goal: Goal, sentence: str = "do it") -> Game:
    problem = _problem(ROOM, goal, THINGS)
    return Game(ROOM, goal, sentence, problem, problem)


def put(root: Path, split: str, game: Game, folder: str = "", **changes: Any) -> Path:
    """The game in a data folder, as if it had been solved."""
    where = root / split / (folder or f"{game.goal.folder}-{game.room.number}") / "trial_T1"
    where.mkdir(parents=True)
    _write(where / GAME, _contents(game) | {"solvable": True} | changes)
    _write(where / TRAJECTORY, _trajectory(game, where.name))
    return where


GOALS = {
    "simple": Goal("pick_and_place_simple", "Apple", "SideTable"),
    "look": Goal("look_at_obj_in_light", "Book", ""),
    "clean": Goal("pick_clean_then_place_in_recep", "Apple", "Fridge"),
    "heat": Goal("pick_heat_then_place_in_recep", "Mug", "Cabinet"),
    "cool": Goal("pick_cool_then_place_in_recep", "Mug", "CounterTop"),
    "two": Goal("pick_two_obj_and_place", "Apple", "SideTable"),
}
WINS = {
    "simple": (
        "go to countertop 1: 0, take apple 2 from countertop 1: 1, go to sidetable 1: 1, move "
        "apple 2 to sidetable 1: 2"
    ),
    "look": "go to sidetable 1: 0, use desklamp 1: 1, take book 1 from sidetable 1: 3",
    "clean": (
        "go to countertop 1: 0, take apple 2 from countertop 1: 1, go to fridge 1: 1, open "
        "fridge 1: 1, move apple 2 to fridge 1: 1, take apple "
        "2 from fridge 1: 1, go to sinkbasin 1: 1, clean apple 2 with sinkbasin 1: 2, go "
        "to fridge 1: 2, move apple 2 to fridge 1: 3"
    ),
    "heat": (
        "go to cabinet 2: 0, open cabinet 2: 0, take mug 1 from cabinet 2: 1, go to "
        "microwave 1: 1, heat mug 1 with microwave 1: 2, go to "
        "cabinet 2: 2, move mug 1 to cabinet 2: 3"
    ),
    "cool": (
        "go to cabinet 2: 0, open cabinet 2: 0, take mug 1 from cabinet 2: 1, go to fridge "
        "1: 1, cool mug 1 with fridge 1: 2, go to countertop "
        "1: 2, move mug 1 to countertop 1: 3"
    ),
    "two": (
        "go to countertop 1: 0, take apple 2 from countertop 1: 1, go to sidetable 1: 1, "
        "move apple 2 to sidetable 1: 2, go to fridge 1: 2, open "
        "fridge 1: 2, take apple 1 from fridge 1: 3, go to sidetable 1: 3, move apple 1 to "
        "sidetable 1: 4"
    ),
}
"""Actions, each with the progress after it."""


def steps(name: str) -> list[tuple[str, int]]:
    pairs = (step.rsplit(": ", 1) for step in WINS[name].split(", "))
    return [(action, int(progress)) for action, progress in pairs]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One game of each task type, in the official layout."""
    root = tmp_path_factory.mktemp("alfworld") / "json_2.1.1"
    for split, names in (
        ("train", list(GOALS)),
        ("valid_seen", ["simple"]),
        ("valid_unseen", ["two"]),
    ):
        for name in names:
            put(root, split, kitchen(GOALS[name], f"do the {name} thing"))
    return root.parent


@pytest.fixture(scope="module")
def env(data: Path) -> Iterator[AlfWorld]:
    env = AlfWorld(data=str(data))
    yield env
    env.close()


def task_of(env: Environment, name: str) -> Task:
    return next(t for t in env.tasks("train") if t.payload["goal"]["type"] == GOALS[name].task_type)


@pytest.mark.parametrize("name", list(GOALS))
def test_each_task_type_is_won_by_doing_what_it_says(env: AlfWorld, name: str) -> None:
    task = task_of(env, name)
    assert task.instruction == f"Your task is to: do the {name} thing."
    first = env.reset(task, 0)
    assert first.endswith(f"\n\n{task.instruction}")
    assert (
        "a cabinet 2, a cabinet 1, a countertop 1, a fridge 1, a microwave 1, a sidetable "
        "1, and a sinkbasin 1."
    ) in first
    for at, (action, progress) in enumerate(steps(name)):
        assert action in env.valid_actions()
        result = env.step(action)
        last = at == len(steps(name)) - 1
        assert (result.valid, result.done, result.success, result.reward, result.progress) == (
            True,
            last,
            last,
            float(last),
            progress,
        ), action
    over = env.step("look")
    assert (over.valid, over.done, over.success, over.progress) == (False, True, False, progress)
    assert env.valid_actions() == []
    assert env.reset(task, 0) == first


@pytest.mark.parametrize(
    ("before", "action", "why"),
    [
        ("", "", "There is no such command. The commands are: look, inventory, go to RECEPTACLE"),
        ("", "no such action at all", "There is no such command."),
        ("", "put apple 1 in cabinet 1", "move OBJECT to RECEPTACLE"),
        ("", "go to cabinet 7", "There is no 'cabinet 7' in this room"),
        ("go to cabinet 1", "go to cabinet 1", "You stand at the cabinet 1 already."),
        ("", "open cabinet 1", "You are not at the cabinet 1: go to cabinet 1 first."),
        ("go to countertop 1", "open countertop 1", "The countertop 1 cannot be opened or closed."),
        ("go to cabinet 1, open cabinet 1", "open cabinet 1", "The cabinet 1 is open already."),
        ("go to cabinet 1", "close cabinet 1", "The cabinet 1 is closed already."),
        ("", "take apple 2 from countertop 1", "You are not at the countertop 1"),
        (
            "go to cabinet 2",
            "take mug 1 from cabinet 2",
            "The cabinet 2 is closed: open cabinet 2 first.",
        ),
        (
            "go to countertop 1",
            "take mug 1 from countertop 1",
            "There is no 'mug 1' in or on the countertop 1.",
        ),
        ("KNIFE", "take apple 2 from countertop 1", "You carry the knife 1 and have one hand only"),
        (
            "go to sidetable 1",
            "take desklamp 1 from sidetable 1",
            "The desklamp 1 cannot be taken.",
        ),
        (
            "go to countertop 1",
            "move apple 2 to countertop 1",
            "You do not carry 'apple 2': take it first.",
        ),
        (
            "KNIFE",
            "move apple 2 to countertop 1",
            "You do not carry 'apple 2': you carry the knife 1.",
        ),
        ("APPLE", "move apple 2 to fridge 1", "You are not at the fridge 1"),
        (
            "APPLE, go to fridge 1",
            "move apple 2 to fridge 1",
            "The fridge 1 is closed: open fridge 1 first.",
        ),
        (
            "KNIFE, go to sidetable 1",
            "heat knife 1 with sidetable 1",
            "You cannot heat the knife 1 with the sidetable 1",
        ),
        (
            "KNIFE, go to microwave 1, open microwave 1",
            "move knife 1 to microwave 1",
            "The knife 1 does not belong in",
        ),
        ("", "use desklamp 1", "There is no 'desklamp 1' where you are"),
        ("go to countertop 1", "use apple 2", "The apple 2 has no switch."),
        ("", "examine apple 2", "You do not see 'apple 2' from where you are"),
        ("go to countertop 1", "slice apple 2 with knife 1", "You cannot slice 'apple 2' now"),
    ],
)
def test_nothing_happens_is_followed_by_the_reason(
    env: AlfWorld, before: str, action: str, why: str
) -> None:
    env.reset(task_of(env, "two"), 0)
    for short, whole in (("KNIFE", "knife 1"), ("APPLE", "apple 2")):
        before = before.replace(short, f"go to countertop 1, take {whole} from countertop 1")
    for each in filter(None, before.split(", ")):
        assert env.step(each).valid, each
    possible = env.valid_actions()
    result = env.step(action)
    assert result.observation.startswith("Nothing happens. ")
    assert why in result.observation
    assert (result.valid, result.done) == (False, False)
    assert env.valid_actions() == possible


def test_reasons_do_not_tell_where_hidden_things_lie(env: AlfWorld) -> None:
    env.reset(task_of(env, "heat"), 0)
    env.step("go to cabinet 2")
    for thing in ("mug 1", "mug 9"):  # one lies behind the door, one is nowhere
        said = [
            env.step(f"{verb} {thing}{rest}").observation
            for verb, rest in (("take", " from cabinet 2"), ("examine", ""), ("use", ""))
        ]
        assert [line.replace(thing, "X") for line in said] == [
            "Nothing happens. The cabinet 2 is closed: open cabinet 2 first.",
            (
                "Nothing happens. You do not see 'X' from where you are: you can examine what "
                "you carry, the receptacle before you and what lies in or on it."
            ),
            "Nothing happens. There is no 'X' where you are: go to where it stands first.",
        ]


def test_case_and_spaces_do_not_matter(env: AlfWorld) -> None:
    env.reset(task_of(env, "simple"), 0)
    assert env.step("  Go to   CounterTop 1 ").observation.startswith("You arrive at countertop 1.")


def test_possible_actions_are_listed_where_they_are_asked_for(data: Path) -> None:
    with AlfWorld(data=str(data), list_actions=True) as env:
        plain = AlfWorld(data=str(data))
        task = task_of(env, "simple")
        assert (
            env.reset(task, 0)
            == f"{plain.reset(task, 0)}\nPossible actions: {', '.join(plain.valid_actions())}."
        )
        for action in ("go to countertop 1", "nonsense"):
            assert env.step(action).observation == (
                f"{plain.step(action).observation}\nPossible actions: "
                f"{', '.join(plain.valid_actions())}."
            )
        plain.close()


@pytest.mark.parametrize("task_type", TASK_TYPES)
@pytest.mark.parametrize("seen", [True, False])
def test_drawn_games_are_possible_and_not_won_at_their_start(task_type: str, seen: bool) -> None:
    from alfworld.gen import constants

    plans = floor_plans(seen)
    assert not set(plans) & set(floor_plans(not seen))
    for seed in range(6):
        game = draw_game(task_type, plans, seed)
        assert game == draw_game(task_type, plans, seed)
        assert game.room.number in plans
        facts = re.findall(r"\(inReceptacle (\w+) (\w+)\)", game.problem)
        kinds = dict(re.findall(r"\((?:objectType|receptacleType) (\w+) (\w+)Type\)", game.problem))
        for thing, place in facts:
            assert (
                kinds[thing] == "DeskLamp"
                or kinds[thing] in constants.VAL_RECEPTACLE_OBJECTS[kinds[place]]
            )
        assert not [
            f for f in facts if (kinds[f[0]], kinds[f[1]]) == (game.goal.thing, game.goal.place)
        ], "it is won at its start"
        assert sum(kinds[thing] == game.goal.thing for thing, _ in facts) >= (
            2 if task_type == "pick_two_obj_and_place" else 1
        )
        if task_type == "look_at_obj_in_light":
            assert "DeskLamp" in kinds.values()
        reachable = dict(re.findall(r"\(receptacleAtLocation (\w+) (\w+)\)", game.problem))
        assert (
            re.findall(r"\(atLocation agent1 (\w+)\)", game.problem)[0] not in reachable.values()
        ), "it begins in the middle of the room"
        assert set(re.findall(r"\(inReceptacle (\w+) ", game.core)) < set(
            re.findall(r"\(inReceptacle (\w+) ", game.problem)
        )


def test_every_task_type_has_rooms_on_both_sides() -> None:
    for seen in (True, False):
        rooms = [load_room(number) for number in floor_plans(seen)]
        for task_type in TASK_TYPES:
            assert sum(bool(possible_goals(task_type, room)) for room in rooms) >= 2, (
                task_type,
                seen,
            )


def test_games_of_other_seeds_differ() -> None:
    assert (
        len(
            {
                draw_game("pick_and_place_simple", floor_plans(True), seed).problem
                for seed in range(10)
            }
        )
        == 10
    )


def test_the_official_filter(tmp_path: Path) -> None:
    root = tmp_path / "movable" / "json_2.1.1"  # a folder above may be called anything
    good = kitchen(GOALS["simple"])
    put(root, "train", good, "pick_and_place_simple-Apple-None-Cabinet-1")
    put(root, "train", good, "pick_and_place_with_movable_recep-Apple-Bowl-Cabinet-1")
    put(root, "train", good, "pick_and_place_simple-AppleSliced-None-Cabinet-1")
    put(root, "train", good, "pick_and_place_simple-A-None-Cabinet-1", solvable=False)
    put(root, "train", good, "pick_and_place_simple-B-None-Cabinet-1", solvable=None)
    (put(root, "train", good, "pick_and_place_simple-C-None-Cabinet-1") / GAME).unlink()
    other = put(root, "train", good, "pick_and_place_simple-D-None-Cabinet-1") / TRAJECTORY
    _write(other, json.loads(other.read_text()) | {"task_type": "another"})
    env = AlfWorld(data=str(root.parent))
    assert [t.id for t in env.tasks("train")] == [
        "alfworld-train-pick_and_place_simple-Apple-None-Cabinet-1-trial_T1"
    ]
    assert env.versions()["games"] == "official"
    assert env.versions()["wording"] == "move {o} to {r}"


def test_splits_have_the_fields_names_and_ours(data: Path) -> None:
    env = AlfWorld(data=str(data))
    for ours, field in (("valid", "valid_seen"), ("test", "valid_unseen")):
        assert [t.id for t in env.tasks(ours)] == [t.id for t in env.tasks(field)]
        assert {t.split for t in env.tasks(ours)} == {ours}
    everything = [t.id for t in env.tasks("train", seed=3)]
    assert len(everything) == 6
    for count in range(1, 7):
        assert [t.id for t in env.tasks("train", count, seed=3)] == everything[:count]
    assert any([t.id for t in env.tasks("train", seed=s)] != everything for s in range(4, 9))


def test_generated_and_official_games_are_told_apart(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "json_2.1.1", tmp_path / "made")
    _write(
        tmp_path / "made" / MARKER,
        {"generator": 1, "alfworld": "0.4.2", "seed": 5, "complete": True},
    )
    official, made = AlfWorld(data=str(data)), AlfWorld(data=str(tmp_path / "made"))
    assert official.versions()["games"] != made.versions()["games"]
    assert "generated" in made.versions()["games"]
    assert all(t.id.startswith("alfworld-generated-s5-") for t in made.tasks("train"))
    assert not {t.id for t in made.tasks("train")} & {t.id for t in official.tasks("train")}


def test_older_wording_is_recorded_and_taught(data: Path, tmp_path: Path) -> None:
    game = _contents(kitchen(GOALS["simple"]))
    game["grammar"] = game["grammar"].replace('"move {o} to {r}"', '"put {o} in/on {r}"')
    put(tmp_path, "train", kitchen(GOALS["simple"]), grammar=game["grammar"])
    with AlfWorld(data=str(tmp_path)) as env:
        assert env.versions()["wording"] == "put {o} in/on {r}"
        assert "put OBJECT in/on RECEPTACLE" in env.actions_help
        assert "move OBJECT" not in env.actions_help
        env.reset(env.tasks("train")[0], 0)
        assert (
            env.step("put apple 2 in/on sidetable 1").observation
            == "Nothing happens. You do not carry 'apple 2': take it first."
        )
        for action, _ in steps("simple")[:-1]:
            assert env.step(action).valid
        assert env.step("put apple 2 in/on sidetable 1").success


def test_a_game_that_nobody_can_win_is_refused(tmp_path: Path) -> None:
    put(
        tmp_path, "train", kitchen(Goal("pick_and_place_simple", "Apple", "Cabinet"))
    )  # no apple belongs in a cabinet
    env = AlfWorld(data=str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be won: its goal is out of reach"):
        env.reset(env.tasks("train")[0], 0)


def test_examples_are_what_the_env_says(tmp_path: Path) -> None:
    put(tmp_path, "train", draw_game("pick_clean_then_place_in_recep", floor_plans(seen=True), 27))
    with AlfWorld(data=str(tmp_path)) as env:
        task = env.tasks("train")[0]
        assert replay(load_prompt_set("alfworld"), env, [task, task]) == [
            (False, False),
            (True, True),
        ]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def lacking(path: Path, key: str) -> None:
    contents = json.loads(path.read_text())
    del contents[key]
    path.write_text(json.dumps(contents))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda root, trial: shutil.rmtree(root),
            r"There are no ALFWorld games at .*leafe envs make alfworld",
        ),
        (
            lambda root, trial: shutil.rmtree(root / "train"),
            r"holds none of the ALFWorld splits train, valid_seen, valid_unseen",
        ),
        (
            lambda root, trial: (trial / GAME).unlink(),
            r"holds no game file game.tw-pddl: it was half-downloaded",
        ),
        (
            lambda root, trial: cut(trial / GAME),
            r"game.tw-pddl cannot be read .*: it was cut off or damaged",
        ),
        (
            lambda root, trial: cut(trial / TRAJECTORY),
            r"traj_data.json cannot be read .*: it was cut off or damaged",
        ),
        (
            lambda root, trial: lacking(trial / GAME, "grammar"),
            r"game.tw-pddl has no 'grammar': it is of another version",
        ),
        (
            lambda root, trial: lacking(trial / TRAJECTORY, "pddl_params"),
            r"traj_data.json is of another version",
        ),
        (
            lambda root, trial: (root / MARKER).write_text('{"complete": false}'),
            r"were not all made: give the command leafe envs make alfworld",
        ),
        (
            lambda root, trial: (root / MARKER).write_text("{"),
            r"leafe-generated.json cannot be read",
        ),
    ],
)
def test_faults_of_the_data_are_one_sentence(tmp_path: Path, harm: Any, message: str) -> None:
    root = tmp_path / "data"
    harm(root, put(root, "train", kitchen(GOALS["simple"])))
    with pytest.raises(UserError, match=message) as error:
        AlfWorld(data=str(root)).tasks("train")
    assert "\n" not in str(error.value)


def test_a_half_downloaded_split_is_named(tmp_path: Path) -> None:
    put(tmp_path, "valid_seen", kitchen(GOALS["simple"]))
    (put(tmp_path, "train", kitchen(GOALS["simple"])) / GAME).unlink()
    env = AlfWorld(data=str(tmp_path))
    with pytest.raises(
        UserError, match=r"train has 1 traj_data.json and no game.tw-pddl: it was half-downloaded"
    ):
        env.tasks("train", 1)
    with pytest.raises(UserError, match=r"valid_unseen holds no ALFWorld game"):
        env.tasks("test", 1)


def test_a_game_that_went_away_or_broke_since_it_was_listed(tmp_path: Path) -> None:
    trial = put(tmp_path, "train", kitchen(GOALS["simple"]))
    with AlfWorld(data=str(tmp_path)) as env:
        task = env.tasks("train")[0]
        env.reset(task, 0)
        whole = json.loads((trial / GAME).read_text())
        broken = [
            ("pddl_problem", "(define (problem x)", "PDDL that cannot be translated"),
            ("grammar", 'Your task is to: x." (', "grammar that cannot"),
        ]
        for key, wrong, message in broken:
            _write(trial / GAME, whole | {key: wrong})
            with pytest.raises(UserError, match=message):
                env.reset(task, 0)
        (trial / GAME).unlink()
        with pytest.raises(UserError, match="is not there: correct the option data"):
            env.reset(task, 0)
        _write(trial / GAME, whole)
        assert env.reset(task, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon = 0"),
        ({"horizon": True}, "horizon = True"),
        ({"list_actions": 1}, "list_actions = 1"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AlfWorld(**options)


def test_the_default_folder_is_the_environments(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(data))
    assert len(AlfWorld().tasks("train")) == 6
    monkeypatch.setenv("ALFWORLD_DATA", str(data / "nowhere"))
    with pytest.raises(UserError, match=r"nowhere: set ALFWORLD_DATA"):
        AlfWorld()
