"""What `python -m studies.paper table` runs, and its figure: the arms of the table and no more,
later tables in the same folder, other environments by their recipes."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shlex
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from leafe import pipeline
from leafe.core import Completion, Request, UserError
from leafe.pipeline._run import _FREE, _GROWING, config_of
from leafe.recipes import Recipe, load_recipe
from leafe.runs import RunFolder
from studies import recipe_path
from studies.paper import (
    SETS,
    TABLES,
    all_claims,
    build,
    folders_of,
    gather,
    jobs_of,
    passk_figure,
    recipe_set,
    transfer_jobs,
)
from studies.paper.__main__ import app
from studies.paper.definitions import ARMS
from tests.envs.data import needs_sandbox
from tests.gates_policy import Fickle
from tests.studies.paper.folders import make, recipe
from tests.tiny import tiny_checkpoint

SMALL = (
    "tasks.train=8",
    "tasks.test=3",
    "evaluate.samples=6",
    "evaluate.k=[1,4]",
    "explore.limits.policy_calls=30",
    "jobs=1",
    "arms.leafe.distill.max_steps=2",
    "arms.rehearsal.distill.max_steps=2",
    "arms.rehearsal.distill.eval_steps=1",
    "arms.leafe+.distill.max_steps=2",
)


@pytest.mark.parametrize("on", list(SETS))
def test_every_set_runs_every_table_by_its_recipes(on: str, tmp_path: Path) -> None:
    for number, table in TABLES.items():
        if number == 5 and not SETS[on].tested:
            with pytest.raises(UserError, match="try gates or code"):
                jobs_of(table, recipe_set(on), (), tmp_path)
            continue
        work, said = jobs_of(table, recipe_set(on), ("policy.model=m",), tmp_path)
        names = {5: [SETS[on].trained], 2: list(SETS[on].recipes[:1])}.get(
            number, list(SETS[on].recipes)
        )
        assert [job.folder.name for job in work] == names
        for job in work:
            assert job.recipe.policy.model == "m"
            if table.kind == "explore":
                assert job.only == "explore"
                assert set(job.recipe.strategies) == {"independent", "refine", "tree"}
                assert not job.recipe.arms
            else:
                unmade = {re.split(" cannot", sentence)[0] for sentence in said}
                assert {row.key for row in table.rows if row.key in ARMS} - unmade <= set(
                    job.recipe.arms
                )


def test_a_table_runs_its_own_arms_with_the_recipes_settings(tmp_path: Path) -> None:
    work, _ = jobs_of(TABLES[4], recipe_set("gates"), (), tmp_path)
    assert [job.folder.name for job in work] == ["gates-hard", "gates-easy", "gates-random"]
    made = work[0].recipe
    assert list(made.arms) == ["rehearsal", "leafe", "leafe+"]
    assert made.arms["leafe"] == load_recipe(recipe_path("gates-hard")).arms["leafe"]
    assert made.strategies == ("tree",)
    assert [pair for pair in made.evaluate.compare if "rft" in pair] == []


def test_what_an_earlier_table_left_is_gone_on_with(tmp_path: Path) -> None:
    first, _ = jobs_of(TABLES[4], recipe_set("sokoban"), (), tmp_path)
    RunFolder.open(first[0].folder, config_of(first[0].recipe)).close()
    for number in (1, 3, 6, 4):
        work, _ = jobs_of(TABLES[number], recipe_set("sokoban"), (), tmp_path)
        assert set(first[0].recipe.arms) <= set(work[0].recipe.arms)
        RunFolder.open(
            work[0].folder, config_of(work[0].recipe), growing=_GROWING, free=_FREE
        ).close()
    changed, _ = jobs_of(
        TABLES[4], recipe_set("sokoban"), ("arms.leafe.distill.rehearsal_weight=3.0",), tmp_path
    )
    with pytest.raises(UserError, match=r"arms\.leafe\.distill\.rehearsal_weight"):
        RunFolder.open(
            changed[0].folder, config_of(changed[0].recipe), growing=_GROWING, free=_FREE
        )


def test_arms_on_arms_come_with_what_they_build_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARMS, "grpo", {"preset": "rft", "explored": "independent"})  # type: ignore[arg-type]
    work, _ = jobs_of(TABLES[6], recipe_set("sokoban"), (), tmp_path)
    assert {"grpo", "leafe from grpo", "leafe+ from grpo"} <= set(work[0].recipe.arms)
    assert set(work[0].recipe.strategies) >= {"tree", "independent"}


def first(**changes: Any) -> Recipe:
    """gates-first as `folders.make` makes it."""
    return recipe(name="gates-first", env__options={"setting": "hard", "words": "first"}, **changes)


def trained(
    tmp_path: Path, made: Recipe, rows: Sequence[str] = ("base", "leafe", "leafe+"), **more: Any
) -> Path:
    """A folder of gates-first with weights; of the rows one, two, four of 128 samples of every task
    succeed."""
    prefixes = [f"seed{s}." for s in made.seeds] if len(made.seeds) > 1 else [""]
    outcomes = {
        f"evaluate/{prefix}{row}": [2**nth] * 12
        for prefix in prefixes
        for nth, row in enumerate(rows)
    }
    path = make(tmp_path / "gates-first", made, outcomes, **more)
    for stage in path.glob("distill/*"):
        (stage / "checkpoint").mkdir()
    return path


def test_every_trained_policy_is_tested_in_the_other_envs(tmp_path: Path) -> None:
    folder = trained(tmp_path, first(seeds=(1, 2)))
    overrides = (
        "seeds=[1,2]",
        "tasks.test=7",
        "tasks.train=5",
        "policy.options.max_batch=9",
        "evaluate.compare=[['leafe','base']]",
        "env.workers=3",
    )
    work, _ = jobs_of(TABLES[5], recipe_set("gates"), overrides, tmp_path)
    assert [job.folder for job in work] == [folder]
    tests = transfer_jobs(TABLES[5], recipe_set("gates"), overrides, work[0])
    envs = ("gates-transfer", "gates-habit")
    rows = ("base", "rehearsal", "leafe", "leafe+")
    assert [job.folder.name for job in tests] == [
        f"{env}.seed{s}.{row}" for env in envs for s in (1, 2) for row in rows
    ]
    assert all(job.folder.name == job.recipe.name for job in tests)
    by_name = {job.folder.name: job.recipe for job in tests}
    assert by_name["gates-transfer.seed1.base"].policy.model == "embedded"
    leafe = by_name["gates-transfer.seed2.leafe"]
    assert leafe.policy.model == str(folder / "distill/seed2.leafe/checkpoint")
    assert (leafe.seeds, leafe.tasks.test, leafe.arms, leafe.strategies, leafe.env.workers) == (
        (2,),
        7,
        {},
        (),
        3,
    )
    assert leafe.policy.options == {"max_batch": 9, "cache_gib": 0.5}
    assert leafe.env.options == {"setting": "hard", "words": "second"}
    assert by_name["gates-habit.seed2.leafe"].env.options == {
        "setting": "hard",
        "words": "first",
        "rules": "habit",
    }


def test_who_answers_for_the_base_is_not_asked_for_trained_weights(tmp_path: Path) -> None:
    """A server that somebody started serves the base alone; one that leafe starts serves any
    weights."""
    trained(tmp_path, first(policy={"model": "m", "kind": "http"}))
    served = ("policy.model=m", "policy.kind=http", "policy.options={}")
    for how, kind, launch in (
        ("policy.options.base_url='http://h/v1'", "hf", None),
        ("policy.launch=s {checkpoint} {port}", "http", "s {checkpoint} {port}"),
    ):
        overrides = (*served, how)
        work, _ = jobs_of(TABLES[5], recipe_set("gates"), overrides, tmp_path)
        tests = transfer_jobs(TABLES[5], recipe_set("gates"), overrides, work[0])
        by_row = {job.folder.name.partition(".")[2]: job.recipe.policy for job in tests}
        assert (by_row["base"].kind, by_row["base"].model, by_row["base"].options) == (
            "http",
            "m",
            work[0].recipe.policy.options,
        )
        assert (by_row["leafe"].kind, by_row["leafe"].launch, by_row["leafe"].options) == (
            kind,
            launch,
            {},
        )


def test_a_chosen_temperature_goes_along_and_is_no_other_way_of_testing(tmp_path: Path) -> None:
    sweep = {
        "leafe": {"preset": "paper", "sweep": {"temperature": [1.0, 1.3]}},
        "leafe+": {"preset": "leafe+"},
    }
    markers = {"choose/leafe": {"chosen": "leafe.try1", "temperature": 1.3}}
    folder = trained(tmp_path, first(arms=sweep), markers=markers)
    work, _ = jobs_of(TABLES[5], recipe_set("gates"), (), tmp_path)
    tests = {
        job.folder.name: job
        for job in transfer_jobs(TABLES[5], recipe_set("gates"), ("tasks.test=12",), work[0])
    }
    found = {row: tests[f"gates-transfer.{row}"].recipe for row in ("base", "leafe", "leafe+")}
    assert {row: r.evaluate.temperature for row, r in found.items()} == {
        "base": 1.0,
        "leafe": 1.3,
        "leafe+": 1.0,
    }
    assert found["leafe"].policy.model == str(folder / "distill/leafe.try1/checkpoint")
    paths = [
        make(job.folder, job.recipe, {"evaluate/base": [3] * 12})
        for name, job in tests.items()
        if name.startswith("gates-transfer")
    ]
    (_, column) = sorted(gather([folder, *paths]).columns, key=lambda c: c.transfer)
    assert set(column.rows()) == {"base", "leafe", "leafe+"}


def transferred(tmp_path: Path, solved: Mapping[str, Sequence[int]], **more: Any) -> list[Path]:
    """gates-first and its tests, where `solved` says for each folder how many of 128 samples of
    each task succeed."""
    folder = trained(tmp_path, first(), **more)
    work, _ = jobs_of(TABLES[5], recipe_set("gates"), (), tmp_path)
    tests = transfer_jobs(TABLES[5], recipe_set("gates"), ("tasks.test=12",), work[0])
    return [
        folder,
        *(
            make(job.folder, job.recipe, {"evaluate/base": solved[job.folder.name]})
            for job in tests
            if job.folder.name in solved
        ),
    ]


TRANSFERRED = {
    "gates-transfer.base": [128] * 6 + [0] * 6,
    "gates-transfer.leafe": [128] * 12,
    "gates-transfer.leafe+": [64] * 12,
    "gates-habit.base": [128] * 12,
    "gates-habit.leafe": [0] * 12,
    "gates-habit.leafe+": [0] * 12,
}


def test_table_5_shows_policies_where_they_were_trained_and_where_not(tmp_path: Path) -> None:
    """Claims are about new words alone: where rules turn back, what was learnt is false, and the
    base is ahead by 100 points."""
    folders = transferred(tmp_path, TRANSFERRED)
    assert sorted(folders_of(TABLES[5], recipe_set("gates"), tmp_path)) == sorted(folders)
    document = build(gather(folders), 5)
    titles = [
        "gates hard first",
        "gates hard second (transfer)",
        "gates hard first habit (transfer)",
    ]
    assert document.blocks[0].head == (
        "method",
        *(f"{title} Pass@{k}" for title in titles for k in (1, 128)),
    )
    rows = {
        row[0].text: [cell.text.rstrip("=") for cell in row[1:]] for row in document.blocks[0].rows
    }
    assert rows["LEAFE"] == ["1.6", "100.0", "100.0", "100.0", "0.0", "0.0"]
    assert rows["GRPO"] == ["not run"] * 6
    assert {r["column"] for r in document.records if r["kind"] == "comparison"} == {
        "gates hard second (transfer)"
    }
    assert {r["row"]: r["verdict"] for r in document.records if r["kind"] == "claim"} == {
        "5a": "not decided",
        "5b": "holds",
    }
    assert any(
        "habit (transfer) is a control: its rules are those of pretraining" in note
        for note in document.notes
    )


def test_the_env_of_table_5_is_no_column_of_other_tables(tmp_path: Path) -> None:
    """Unless it is all there is; and the claims of all tables are those that each table prints."""
    folders = transferred(tmp_path, TRANSFERRED)
    hard = make(
        tmp_path / "gates-hard",
        recipe(name="gates-hard"),
        {f"evaluate/{row}": [c] * 12 for row, c in (("base", 1), ("leafe", 2), ("leafe+", 3))},
    )
    document = build(gather([hard, *folders]), 1)
    assert document.blocks[0].head == ("method", "gates hard Pass@1", "gates hard Pass@128")
    assert any(
        note.startswith(
            "gates hard first is left out: it is where the policies of table 5 are trained"
        )
        for note in document.notes
    )
    assert "gates hard first Pass@1" in build(gather(folders), 1).blocks[0].head
    by_table = {
        number: folders_of(table, recipe_set("gates"), tmp_path) for number, table in TABLES.items()
    }
    assert by_table[1] == [hard]
    for of in (by_table, [hard, *folders]):
        claims = {r["row"]: r["verdict"] for r in all_claims(of).records if r["kind"] == "claim"}
        for number, table in TABLES.items():
            if number in (1, 2, 4, 5, 6):
                evidence = gather(
                    by_table[number] if of is by_table else [hard, *folders], by_base=table.by_base
                )
                assert {
                    r["row"]: r["verdict"]
                    for r in build(evidence, number).records
                    if r["kind"] == "claim"
                }.items() <= claims.items()


def commands(notes: Sequence[str]) -> list[list[str]]:
    return [
        shlex.split(command)
        for note in notes
        for command in re.findall(r"`(leafe run [^`]*)`", note)
    ]


def opened(command: list[str]) -> dict[str, Any]:
    """The settings of the run that the command would go on with."""
    runs, name = (command[command.index(option) + 1] for option in ("--runs", "--name"))
    made = load_recipe(command[2], command[3 : command.index("--runs")])
    with RunFolder.open(Path(runs) / name, config_of(made), growing=_GROWING, free=_FREE):
        return config_of(made)


def test_the_commands_offered_for_a_transfer_column_work(tmp_path: Path) -> None:
    """A policy that is trained and not tested, one that is not trained, and another seed: each by
    the commands that stand there."""
    folders = transferred(
        tmp_path,
        {
            name: solved
            for name, solved in TRANSFERRED.items()
            if name not in ("gates-transfer.leafe+", "gates-habit.leafe+")
        },
    )
    notes = [note for note in build(gather(folders), 5).notes if "second (transfer)" in note]
    by_row = {
        row: commands([note for note in notes if note.startswith(f"{row} has not")])
        for row in ("LEAFE+", "GRPO")
    }
    (test,) = by_row["LEAFE+"]
    assert opened(test)["policy"]["model"] == str(
        tmp_path / "gates-first/distill/leafe+/checkpoint"
    )
    assert test[-1] == "gates-transfer.leafe+"
    assert opened(test)["env"]["options"]["words"] == "second"
    training, test = by_row["GRPO"]
    assert "grpo" in opened(training)["arms"]
    assert training[-1] == "gates-first"
    assert opened(test)["policy"]["model"] == str(tmp_path / "gates-first/distill/grpo/checkpoint")
    seed, test = commands([note for note in notes if "One seed more" in note])
    assert (opened(seed)["seeds"], seed[-1]) == ([1], "gates-first-seed1")
    assert (opened(test)["seeds"], test[-1]) == ([1], "gates-transfer.seed1.leafe")
    assert opened(test)["policy"]["model"] == str(
        tmp_path / "gates-first-seed1/distill/leafe/checkpoint"
    )


def test_an_arm_that_learnt_nothing_is_tested_nowhere_and_nobody_is_told_to(tmp_path: Path) -> None:
    why = {"empty": "the trees hold nothing", "stays": "base"}
    folders = transferred(
        tmp_path,
        TRANSFERRED,
        markers={"distill/leafe": why, "evaluate/leafe": why},
        rows=("base", "leafe+"),
    )
    assert "gates-transfer.leafe" not in {path.name for path in folders}
    document = build(gather(folders), 5)
    assert [
        cell.text for row in document.blocks[0].rows for cell in row[1:] if row[0].text == "LEAFE"
    ] == ["nothing to learn"] * 6
    notes = [note for note in document.notes if note.startswith("LEAFE has")]
    assert len(notes) == 3
    assert all(note.endswith("(embedded, seed 0): the trees hold nothing.") for note in notes)


def test_one_name_for_several_recipes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"would hold the runs of gates-hard, gates-easy, gates-random.*--runs DIR"
    ):
        jobs_of(TABLES[4], recipe_set("gates"), ("name=mine",), tmp_path)
    assert (
        jobs_of(TABLES[4], recipe_set("sokoban"), ("name=mine",), tmp_path)[0][0].folder
        == tmp_path / "mine"
    )


@pytest.mark.slow
def test_the_figure(tmp_path: Path) -> None:
    outcomes = {
        "evaluate/base": [1] * 12,
        "evaluate/leafe": [40, 0, 3] * 4,
        "evaluate/leafe+": [64] * 12,
    }
    controls = {"easy": {"options": {"setting": "easy"}, "arms": ["leafe"]}}
    folder = make(
        tmp_path / "one",
        recipe(controls=controls),
        outcomes | {"evaluate/easy.base": [9] * 12, "evaluate/easy.leafe": [99] * 12},
    )
    for name in ("a.png", "a.svg", "b.svg"):
        passk_figure([folder], tmp_path / name, csv=tmp_path / "points.csv")
    svg = (tmp_path / "a.svg").read_text()
    assert svg == (tmp_path / "b.svg").read_text()
    for text in (
        "gates hard: 12 tasks, 1 run",
        "gates easy: 12 tasks, 1 run",
        "LEAFE+",
        "Pass@k in %",
    ):
        assert text in svg
    points = list(csv.DictReader((tmp_path / "points.csv").open()))
    assert {int(p["k"]) for p in points} == {2**i for i in range(8)}
    assert [
        float(p["value"])
        for p in points
        if (p["column"], p["row"], p["k"]) == ("gates hard", "leafe+", "1")
    ] == [0.5]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"name it \.png"):
        passk_figure([folder], tmp_path / "a.gif")
    with pytest.raises(UserError, match="No folder has a row 'grpo': there are base, leafe"):
        passk_figure([folder], tmp_path / "a.png", ["leafe", "grpo"])
    with pytest.raises(UserError, match="no evaluation to draw"):
        passk_figure(
            [make(tmp_path / "two", recipe(), {"explore/tree": [1] * 12})], tmp_path / "a.png"
        )


def test_k_goes_to_1024_and_no_further(tmp_path: Path) -> None:
    made = make(tmp_path / "one", recipe(evaluate={"samples": 2000}), {"evaluate/base": [1, 2] * 6})
    passk_figure([made], tmp_path / "a.svg", csv=tmp_path / "points.csv")
    assert max(int(p["k"]) for p in csv.DictReader((tmp_path / "points.csv").open())) == 1024


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("table", "1", "--on", "mars"), "choose one of gates"),
        (("table", "1", "absent"), "absent is not a run folder"),
        (("table", "1", "absent", "seeds=[1]"), "give one or the other"),
        (("claims", "absent"), "absent is not a run folder"),
        (("claims", "--runs", "absent"), "holds no run of gates-hard"),
        (("table", "5", "--on", "sokoban"), "try gates or code"),
        (("figure", "curve"), "it is passk"),
        (("figure", "passk", "absent"), "absent is not a run folder"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, list(arguments))
    assert isinstance(found.exception, UserError)
    assert says in str(found.exception)


def test_a_table_of_folders_from_the_command_line(tmp_path: Path) -> None:
    folder = make(
        tmp_path / "one", recipe(), {"evaluate/rehearsal": [0, 64] * 6, "evaluate/leafe": [64] * 12}
    )
    files = [f"--{kind}={tmp_path / kind}" for kind in ("markdown", "csv", "latex")]
    found = CliRunner().invoke(app, ["table", "4", str(folder), *files], catch_exceptions=False)
    assert found.exit_code == 0
    assert "50.0" in found.output
    assert all((tmp_path / kind).stat().st_size for kind in ("markdown", "csv", "latex"))
    assert "4a" in CliRunner().invoke(app, ["claims", str(folder)], catch_exceptions=False).output


SCRIPTED = (
    "policy.kind=tests.gates_policy:Fickle",
    "policy.model=none",
    "policy.options={}",
    "tasks.train=3",
    "explore.limits.policy_calls=16",
    "jobs=1",
)
"""Explorations by a policy that needs no model."""


@pytest.mark.slow
def test_a_table_that_is_stopped_goes_on_to_the_same_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two recipes, and in the middle of an exploration; the command is given again
    each time, and what was finished is not done again."""
    monkeypatch.chdir(tmp_path)

    def table(where: str, name: str) -> Result:
        return CliRunner().invoke(app, ["table", "3", *SCRIPTED, "--runs", where, "--csv", name])

    assert table("whole", "whole.csv").exit_code == 0
    real, calls = pipeline.run_recipe, 0

    def stopped_before_the_second(recipe: Recipe, path: Path, **more: Any) -> RunFolder:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real(recipe, path, **more)

    monkeypatch.setattr(pipeline, "run_recipe", stopped_before_the_second)
    found = table("parts", "never.csv")
    assert type(found.exception).__name__ == "Stopped"
    assert not Path("never.csv").exists()
    kept = {
        path: path.read_bytes() for path in Path("parts/gates-hard/explore").glob("*/journal-*")
    }
    assert len(kept) == 3
    monkeypatch.setattr(pipeline, "run_recipe", real)
    answer, asked = Fickle.complete, 0

    async def stopped_at_the_twentieth(self: Fickle, request: Request) -> list[Completion]:
        nonlocal asked
        asked += 1
        if asked == 20:
            signal.raise_signal(signal.SIGINT)
        return await answer(self, request)

    with monkeypatch.context() as patch:
        patch.setattr(Fickle, "complete", stopped_at_the_twentieth)
        assert type(table("parts", "never.csv").exception).__name__ == "Stopped"
    assert asked >= 20
    assert not Path("never.csv").exists()
    assert table("parts", "parts.csv").exit_code == 0
    assert {path: path.read_bytes() for path in kept} == kept

    def figures(path: str) -> list[dict[str, str]]:
        return [
            row
            for row in csv.DictReader(io.StringIO(Path(path).read_text()))
            if "minutes" not in row["measure"]
        ]

    assert figures("parts.csv") == figures("whole.csv")
    assert {row["verdict"] for row in figures("whole.csv") if row["kind"] == "claim"} <= {
        "holds",
        "does not hold",
        "not decided",
    }


@pytest.mark.slow
def test_table_5_from_nothing_to_its_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real thing, very small: trained in gates-first, tested in both other environments; given
    again, nothing is done again."""
    monkeypatch.chdir(tmp_path)
    small = (
        "tasks.train=6",
        "tasks.test=3",
        "evaluate.samples=8",
        "evaluate.k=[1,8]",
        "explore.limits.policy_calls=20",
        "jobs=1",
    )
    steps = (
        "arms.leafe.distill.max_steps=2",
        "arms.leafe+.distill.max_steps=2",
        "arms.rehearsal.distill.max_steps=2",
        "arms.grpo.grpo.tasks_per_batch=3",
    )
    arguments = ["table", "5", *small, *steps, "--csv", "t.csv"]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    first_time = Path("t.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(first_time)))
    cells = {(r["column"], r["row"]) for r in rows if r["kind"] == "cell" and not r["note"]}
    tested = {row for column, row in cells if column == "gates hard first"}
    assert tested >= {"base", "grpo", "leafe+"}
    for column in ("gates hard second (transfer)", "gates hard first habit (transfer)"):
        assert {row for c, row in cells if c == column} == tested
    assert {r["row"] for r in rows if r["kind"] == "claim"} == {"5a", "5b"}
    assert {p.name for p in Path("runs").iterdir()} == {
        "gates-first",
        *(f"{w}.{row}" for w in ("gates-transfer", "gates-habit") for row in tested),
    }
    whole = {path: path.stat().st_mtime_ns for path in Path("runs").glob("*/*/*/journal-*")}
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in Path("runs").glob("*/*/*/journal-*")} == whole
    assert Path("t.csv").read_text() == first_time


MBPP_ROW = {
    "text": "Write a function that doubles.",
    "code": "",
    "test_list": ["assert double(2) == 4"] * 3,
    "test_setup_code": "",
    "challenge_test_list": [],
}
CONTEST_ROW = {
    "name": "double",
    "description": "Double the number.",
    "public_tests": {"input": ["2\n"], "output": ["4\n"]},
    "input_file": "",
    "output_file": "",
    "private_tests": {"input": [], "output": []},
    "generated_tests": {"input": [], "output": []},
    "time_limit": {"seconds": 2, "nanos": 0},
    "memory_limit_bytes": 256_000_000,
}


@pytest.mark.slow
@needs_sandbox
def test_code_policies_are_tested_on_mbpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CodeContests trained is there (its figures are made up, its weights are a tiny random
    model's); MBPP is really played, in the real sandbox."""
    data = tmp_path / "data"
    (data / "codecontests").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        lines = [json.dumps(CONTEST_ROW | {"name": f"{split} {n}"}) for n in range(12)]
        (data / "codecontests" / f"{split}.jsonl").write_text("\n".join(lines))
    (data / "mbpp").mkdir()
    with gzip.open(data / "mbpp/mbpp.jsonl.gz", "wt") as file:
        file.write("\n".join(json.dumps(MBPP_ROW | {"task_id": n}) for n in range(11, 15)))
    monkeypatch.setenv("LEAFE_DATA", str(data))
    monkeypatch.chdir(tmp_path)
    model = tiny_checkpoint(
        tmp_path / "tiny",
        words=("def", "double(x):", "return", "2", "*", "x"),
        context=4096,
        scale=0.2,
    )
    overrides = (
        f"policy.model={model}",
        "policy.options={}",
        "tasks.train=12",
        "tasks.test=2",
        "evaluate.samples=2",
        "evaluate.k=[1,2]",
        "jobs=1",
    )
    work, said = jobs_of(TABLES[5], recipe_set("code"), overrides, Path("runs"))
    assert not said
    stages = {
        f"evaluate/{row}": [n % 3 for n in range(12)]
        for row in ("base", "grpo", "rehearsal", "leafe", "leafe+")
    }
    make(work[0].folder, work[0].recipe, stages | {"explore/tree": [1] * 12})
    for path in work[0].folder.glob("distill/*"):
        shutil.copytree(model, path / "checkpoint")
    found = CliRunner().invoke(
        app, ["table", "5", "--on", "code", *overrides, "--csv", "t.csv"], catch_exceptions=False
    )
    assert found.exit_code == 0, found.output
    assert {p.name for p in Path("runs").iterdir()} == {
        "codecontests",
        *(f"mbpp.{row}" for row in ("base", "grpo", "rehearsal", "leafe", "leafe+")),
    }
    cells = [
        r
        for r in csv.DictReader(io.StringIO(Path("t.csv").read_text()))
        if r["kind"] == "cell" and r["measure"] == "Pass@2"
    ]
    assert [
        (r["column"], r["row"], r["tasks"]) for r in cells if r["column"] == "mbpp (transfer)"
    ] == [("mbpp (transfer)", row, "2") for row in ("base", "grpo", "rehearsal", "leafe", "leafe+")]
    assert {r["column"] for r in cells} == {"codecontests", "mbpp (transfer)"}


@pytest.mark.slow
def test_tables_run_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing, very small: table 4, then 3 in the same folders, 5 on the checkpoints of the
    first."""
    monkeypatch.chdir(tmp_path)
    outputs = {}
    for number in ("4", "3", "5", "claims"):
        arguments = ["claims"] if number == "claims" else ["table", number, *SMALL]
        found = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert found.exit_code == 0, found.output
        outputs[number] = found.output
    assert "Table 4" in outputs["4"]
    assert "not run" not in outputs["3"].partition("Claims")[0]
    assert "transfer" in outputs["5"]
    assert "no column speaks of it" not in outputs["claims"].partition("6a")[0].partition("2a")[0]
    made = {p.name for p in (tmp_path / "runs").iterdir()}
    assert made >= {
        "gates-hard",
        "gates-easy",
        "gates-random",
        "gates-first",
        "gates-transfer.base",
        "gates-transfer.leafe",
        "gates-habit.leafe",
    }
