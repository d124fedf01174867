"""What run folders come to: columns, rows and runs; costs; and what is refused, with a sentence
that names both folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from leafe.core import JournalError, UserError
from studies.paper.evidence import gather
from studies.paper.results import RunKey
from tests.studies.paper.folders import make, recipe

TWELVE = {"evaluate/base": [1] * 12, "evaluate/leafe": [64] * 12}
SEEDS = {f"evaluate/seed{s}.{row}": [2 * s] * 12 for s in (1, 2) for row in ("base", "leafe")}


def test_rows_runs_and_what_they_hold(tmp_path: Path) -> None:
    explored = {"explore/tree": [3, 8, None] * 4, "explore/independent": [None] * 12}
    one = make(tmp_path / "one", recipe(), TWELVE | explored)
    more = make(tmp_path / "more", recipe(seeds=(1, 2), policy__model="other"), SEEDS)
    (column,) = gather([one, more, one]).columns
    assert column.title == "gates hard"
    assert column.runs() == [RunKey("embedded", 0), RunKey("other", 1), RunKey("other", 2)]
    leafe = column.results("leafe")
    assert [list(r.counts.c) for r in leafe.values()] == [[64] * 12, [2] * 12, [4] * 12]
    assert all(set(r.counts.n) == {128} and r.finished and r.tokens == 3 for r in leafe.values())
    tree = column.results("tree", "explore")[RunKey("embedded", 0)]
    # solved at call 3 and 8 of 8: none within a quarter (2 calls), a third within half (4), two
    # thirds in all
    assert {name: int(c.c.sum()) for name, c in tree.within.items()} == {
        "1/4": 0,
        "1/2": 4,
        "all": 8,
        "steps": 8,
    }


def test_the_cost_of_an_arm_holds_what_it_builds_on(tmp_path: Path) -> None:
    arms = {
        "leafe": {"preset": "paper"},
        "more": {"preset": "rft", "start": "leafe", "explorer": "leafe"},
    }
    made = recipe(arms=arms)
    stages = {
        "evaluate/base": [1] * 12,
        "evaluate/leafe": [2] * 12,
        "evaluate/more": [3] * 12,
        "explore/tree": [1] * 12,
        "explore/leafe.tree": [1] * 12,
    }
    (column,) = gather([make(tmp_path / "one", made, stages)]).columns
    costs = {
        row: column.results(row)[RunKey("embedded", 0)].cost for row in ("base", "leafe", "more")
    }
    assert [
        (c.phases, c.spent.policy_calls, c.trained_tokens, c.seconds) for c in costs.values()
    ] == [
        (0, 0, 0, 0.0),
        (1, 90, 1000, 12.0 + 30.0),
        (2, 180, 2000, 2 * (12.0 + 30.0)),
    ]


def test_base_policies_stand_apart_where_that_is_asked(tmp_path: Path) -> None:
    paths = [make(tmp_path / name, recipe(policy__model=name), TWELVE) for name in ("q", "l")]
    assert [c.title for c in gather(paths, by_base=True).columns] == [
        "gates hard q",
        "gates hard l",
    ]


def test_a_control_is_a_column_of_its_own(tmp_path: Path) -> None:
    controls = {
        "random": {
            "options": {"setting": "random"},
            "strategies": ["tree"],
            "arms": ["leafe"],
            "test": 5,
        }
    }
    stages = TWELVE | {"evaluate/random.base": [0] * 5, "evaluate/random.leafe": [1] * 5}
    columns = {
        c.title: c
        for c in gather([make(tmp_path / "one", recipe(controls=controls), stages)]).columns
    }
    assert set(columns) == {"gates hard", "gates random"}
    assert "random in every task" in columns["gates random"].why_control
    assert not columns["gates hard"].why_control
    assert len(columns["gates random"].results("leafe")[RunKey("embedded", 0)].counts.tasks) == 5


def test_a_checkpoint_of_another_run_is_that_arm_in_another_env(tmp_path: Path) -> None:
    trained = make(tmp_path / "trained", recipe(seeds=(1, 2)), SEEDS)
    untrained = {"strategies": (), "arms": {}, "env__options": {"setting": "easy"}}
    paths = [trained]
    for seed in (1, 2):
        for row, model in (
            ("base", "embedded"),
            ("leafe", str(trained / f"distill/seed{seed}.leafe/checkpoint")),
        ):
            (trained / f"distill/seed{seed}.leafe/checkpoint").mkdir(exist_ok=True)
            made = recipe(policy__model=model, seeds=(seed,), **untrained)
            paths.append(
                make(tmp_path / f"other.{row}{seed}", made, {"evaluate/base": [seed] * 12})
            )
    columns = {c.title: c for c in gather(paths).columns}
    assert set(columns) == {"gates hard", "gates easy (transfer)"}
    other = columns["gates easy (transfer)"]
    assert {row: list(other.results(row)) for row in ("base", "leafe")} == {
        row: [RunKey("embedded", 1), RunKey("embedded", 2)] for row in ("base", "leafe")
    }
    assert (
        other.results("leafe")[RunKey("embedded", 2)].cost.phases == 0
    )  # nothing was explored in the made-up folder
    assert other.results("leafe")[RunKey("embedded", 2)].cost.trained_tokens == 1000


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"explore__limits": {"policy_calls": 9}},
            r"explore\.limits\.policy_calls is 8 in the one and 9",
        ),
        ({"explore__limits": {"env_steps": 8}}, r"policy_calls is 8 in the one and not set"),
        ({"tasks__train": 13}, r"tasks\.train is 12 in the one and 13"),
        ({"tasks__test": 60}, r"tasks\.test is 12 in the one and 60"),
        ({"explore__horizon": 7}, r"explore\.horizon is not set in the one and 7"),
        ({"evaluate__temperature": 0.7}, r"evaluate\.temperature is 1 in the one and 0\.7"),
        ({"prompts": "gates"}, r"prompts is plain in the one and gates"),
    ],
)
def test_mixed_budgets_are_refused(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    one = make(tmp_path / "one", recipe(), TWELVE)
    two = make(tmp_path / "two", recipe(seeds=(1,), **changes), TWELVE)
    with pytest.raises(UserError, match=says) as error:
        gather([one, two])
    assert str(one) in str(error.value)
    assert str(two) in str(error.value)


def test_mixed_env_versions_are_refused(tmp_path: Path) -> None:
    one = make(tmp_path / "one", recipe(), TWELVE, env={"rules": "1"})
    two = make(tmp_path / "two", recipe(seeds=(1,)), TWELVE, env={"rules": "2"})
    with pytest.raises(
        UserError,
        match=(
            r"one and .*two were made in other versions of the environment 'gates' \(rules '1' "
            r"and '2'\)"
        ),
    ):
        gather([one, two])


def test_other_test_tasks_are_refused(tmp_path: Path) -> None:
    one = make(tmp_path / "one", recipe(), {"evaluate/base": [1] * 12})
    two = make(tmp_path / "two", recipe(), {"evaluate/leafe": [1] * 12}, salt="x")
    with pytest.raises(
        UserError, match=r"one/evaluate/base and .*two/evaluate/leafe hold other test tasks"
    ):
        gather([one, two])


def test_one_name_for_two_arms_is_refused_and_a_row_in_two_folders_is_said(tmp_path: Path) -> None:
    one = make(tmp_path / "one", recipe(), TWELVE)
    same = make(tmp_path / "same", recipe(), TWELVE)
    (note, _) = gather([one, same]).notes
    assert "is in" in note
    other = make(
        tmp_path / "other",
        recipe(arms={"leafe": {"preset": "paper", "distill": {"rehearsal_weight": 2.0}}}),
        TWELVE,
    )
    with pytest.raises(
        UserError, match=r"leafe was trained by other settings in .*one than in .*other"
    ):
        gather([one, other])


def test_a_finished_stage_without_its_tasks_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "one", recipe(), TWELVE)
    (folder / "evaluate/leafe/tasks.jsonl").unlink()
    with pytest.raises(
        UserError,
        match=(
            r"evaluate/leafe is marked as finished and has no tasks\.jsonl: restore it, "
            r".*`leafe run .*one/config\.toml"
        ),
    ):
        gather([folder])
    (folder / "evaluate/leafe/done.json").unlink()
    (column,) = gather([folder]).columns
    assert column.rows() == ["base"]


@pytest.mark.parametrize("file", ["config.toml", "manifest.json", "evaluate/leafe/done.json"])
@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_broken_files_of_a_run_are_named(tmp_path: Path, file: str, content: str) -> None:
    folder = make(tmp_path / "one", recipe(), TWELVE)
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=f"one/{file}|one lacks|recipe of .*one"):
        gather([folder])


def test_a_damaged_journal_ends_the_table_and_names_the_line(tmp_path: Path) -> None:
    folder = make(tmp_path / "one", recipe(), TWELVE)
    (journal,) = (folder / "evaluate/leafe").glob("journal-*")
    lines = journal.read_bytes().split(b"\n")
    lines[3] = lines[3].replace(b":", b"", 1)
    journal.write_bytes(b"\n".join(lines))
    (column,) = gather([folder]).columns
    assert column.results("base")
    with pytest.raises(JournalError, match=rf"{journal.name}, line 4 is damaged"):
        column.results("leafe")


def test_budgets_of_where_policies_were_trained_are_held_against_each_other(tmp_path: Path) -> None:
    """Two policies in the environment of other words, of which one had more calls to learn from."""
    paths = []
    for name, calls, row in (("few", 8, "leafe"), ("many", 16, "leafe+")):
        made = make(tmp_path / name, recipe(explore__limits={"policy_calls": calls}), {})
        weights = made / "distill" / row / "checkpoint"
        weights.mkdir()
        there = recipe(
            policy__model=str(weights),
            arms={},
            strategies=(),
            env__options={"setting": "hard", "words": "second"},
        )
        paths.append(make(tmp_path / f"other.{row}", there, {"evaluate/base": [1] * 12}))
    with pytest.raises(
        UserError,
        match=(
            r"few and .*many cannot stand in one table: explore\.limits\.policy_calls is 8 in "
            r"the one and 16 in the other"
        ),
    ):
        gather(paths)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        gather([tmp_path])
