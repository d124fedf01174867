"""What `leafe table` runs, and its figure: the arms of the table and no more, later tables in the same folder, other worlds by their recipes."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leafe.cli import app
from leafe.core import UserError
from leafe.pipeline._run import _FREE, _GROWING, config_of
from leafe.recipes import load_recipe
from leafe.runs import RunFolder
from leafe.tables import SETS, TABLES, jobs_of, passk_figure, recipe_set, transfer_jobs
from leafe.tables._define import ARMS
from tests.tables.folders import make, recipe

SMALL = (
    "tasks.train=8", "tasks.test=3", "evaluate.samples=6", "evaluate.k=[1,4]", "explore.limits.policy_calls=30", "jobs=1", "arms.leafe.distill.steps=2",
    "arms.rehearsal.distill.steps=2", "arms.rehearsal.distill.eval_every=1", "arms.leafe+.distill.steps=2",
)  # fmt: skip


@pytest.mark.parametrize("on", list(SETS))
def test_every_set_runs_every_table_by_its_recipes(on: str, tmp_path: Path) -> None:
    for number, table in TABLES.items():
        if number == 5 and SETS[on].transfer is None:
            with pytest.raises(UserError, match="try gates or code"):
                jobs_of(table, recipe_set(on), (), tmp_path)
            continue
        work, said = jobs_of(table, recipe_set(on), ("policy.model=m",), tmp_path)
        assert [job.folder.name for job in work] == [load_recipe(name).name for name in SETS[on].recipes][: len(work)]
        for job in work:
            assert job.recipe.policy.model == "m"
            if table.kind == "explore":
                assert job.only == "explore"
                assert set(job.recipe.strategies) == {"independent", "refine", "tree"}
                assert not job.recipe.arms
            else:
                unmade = {re.split(" cannot", sentence)[0] for sentence in said}
                assert {row.key for row in table.rows if row.key in ARMS} - unmade <= set(job.recipe.arms)


def test_a_table_runs_its_own_arms_with_the_recipes_settings(tmp_path: Path) -> None:
    work, _ = jobs_of(TABLES[4], recipe_set("gates"), (), tmp_path)
    assert [job.folder.name for job in work] == ["gates-hard", "gates-easy", "gates-random"]
    made = work[0].recipe
    assert list(made.arms) == ["rehearsal", "leafe", "leafe+"]
    assert made.arms["leafe"] == load_recipe("gates-hard").arms["leafe"]
    assert made.strategies == ("tree",)
    assert [pair for pair in made.evaluate.compare if "rft" in pair] == []


def test_what_an_earlier_table_left_is_gone_on_with(tmp_path: Path) -> None:
    first, _ = jobs_of(TABLES[4], recipe_set("sokoban"), (), tmp_path)
    RunFolder.open(first[0].folder, config_of(first[0].recipe)).close()
    for number in (1, 3, 6, 4):
        work, _ = jobs_of(TABLES[number], recipe_set("sokoban"), (), tmp_path)
        assert set(first[0].recipe.arms) <= set(work[0].recipe.arms)
        RunFolder.open(work[0].folder, config_of(work[0].recipe), growing=_GROWING, free=_FREE).close()
    changed, _ = jobs_of(TABLES[4], recipe_set("sokoban"), ("arms.leafe.distill.beta=3.0",), tmp_path)
    with pytest.raises(UserError, match=r"arms\.leafe\.distill\.beta"):
        RunFolder.open(changed[0].folder, config_of(changed[0].recipe), growing=_GROWING, free=_FREE)


def test_arms_on_arms_come_with_what_they_build_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARMS, "grpo", {"preset": "rft", "explored": "independent"})  # type: ignore[arg-type]
    work, _ = jobs_of(TABLES[6], recipe_set("sokoban"), (), tmp_path)
    assert {"grpo", "leafe from grpo", "leafe+ from grpo"} <= set(work[0].recipe.arms)
    assert set(work[0].recipe.strategies) >= {"tree", "independent"}


def test_every_trained_policy_is_tested_in_the_other_world(tmp_path: Path) -> None:
    made = recipe(seeds=(1, 2), name="gates-hard")
    make(tmp_path / "gates-hard", made, {f"evaluate/seed{s}.base": [1] * 12 for s in (1, 2)})
    work, _ = jobs_of(TABLES[5], recipe_set("gates"), (), tmp_path)
    tests = transfer_jobs(TABLES[5], recipe_set("gates"), ("seeds=[1,2]", "tasks.test=7", "tasks.train=5", "policy.model=other"), work[0])
    assert {job.folder.name for job in tests} == {f"gates-transfer.seed{s}.{row}" for s in (1, 2) for row in ("base", "leafe", "leafe+")}
    by_name = {job.folder.name: job.recipe for job in tests}
    assert by_name["gates-transfer.seed1.base"].policy.model == "embedded"
    leafe = by_name["gates-transfer.seed2.leafe"]
    assert leafe.policy.model == str(tmp_path / "gates-hard/distill/seed2.leafe/checkpoint")
    assert (leafe.seeds, leafe.tasks.test, leafe.arms, leafe.strategies) == ((2,), 7, {}, ())
    assert leafe.world.options != load_recipe("gates-hard").world.options


def test_the_figure(tmp_path: Path) -> None:
    outcomes = {"evaluate/base": [1] * 12, "evaluate/leafe": [40, 0, 3] * 4, "evaluate/leafe+": [64] * 12}
    controls = {"easy": {"options": {"setting": "easy"}, "arms": ["leafe"]}}
    folder = make(tmp_path / "one", recipe(controls=controls), outcomes | {"evaluate/easy.base": [9] * 12, "evaluate/easy.leafe": [99] * 12})
    for name in ("a.png", "a.svg", "b.svg"):
        passk_figure([folder], tmp_path / name, csv=tmp_path / "points.csv")
    svg = (tmp_path / "a.svg").read_text()
    assert svg == (tmp_path / "b.svg").read_text()
    for text in ("gates hard: 12 tasks, 1 run", "gates easy: 12 tasks, 1 run", "LEAFE+", "Pass@k in %"):
        assert text in svg
    points = list(csv.DictReader((tmp_path / "points.csv").open()))
    assert {int(p["k"]) for p in points} == {2**i for i in range(8)}
    assert [float(p["value"]) for p in points if (p["column"], p["row"], p["k"]) == ("gates hard", "leafe+", "1")] == [0.5]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"name it \.png"):
        passk_figure([folder], tmp_path / "a.gif")
    with pytest.raises(UserError, match="No folder has a row 'grpo': there are base, leafe"):
        passk_figure([folder], tmp_path / "a.png", ["leafe", "grpo"])
    with pytest.raises(UserError, match="no evaluation to draw"):
        passk_figure([make(tmp_path / "two", recipe(), {"explore/tree": [1] * 12})], tmp_path / "a.png")


def test_k_goes_to_1024_and_no_further(tmp_path: Path) -> None:
    made = make(tmp_path / "one", recipe(evaluate={"samples": 2000}), {"evaluate/base": [1, 2] * 6})
    passk_figure([made], tmp_path / "a.svg", csv=tmp_path / "points.csv")
    assert max(int(p["k"]) for p in csv.DictReader((tmp_path / "points.csv").open())) == 1024


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("table", "7"), "There is no table '7'"),
        (("table", "1", "--on", "mars"), "choose one of gates"),
        (("table", "1", "absent"), "absent is not a run folder"),
        (("table", "1", "absent", "seeds=[1]"), "give one or the other"),
        (("table", "claims", "seeds=[1]"), "runs nothing"),
        (("table", "claims", "--runs", "absent"), "holds no run of gates-hard"),
        (("table", "5", "--on", "sokoban"), "try gates or code"),
        (("figure", "curve"), "it is passk"),
        (("figure", "passk", "absent"), "absent is not a run folder"),
    ],
)
def test_mistakes_are_one_sentence(arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, list(arguments))
    assert isinstance(found.exception, UserError)
    assert says in str(found.exception)


def test_a_table_of_folders_from_the_command_line(tmp_path: Path) -> None:
    folder = make(tmp_path / "one", recipe(), {"evaluate/rehearsal": [0, 64] * 6, "evaluate/leafe": [64] * 12})
    files = [f"--{kind}={tmp_path / kind}" for kind in ("markdown", "csv", "latex")]
    found = CliRunner().invoke(app, ["table", "4", str(folder), *files], catch_exceptions=False)
    assert found.exit_code == 0
    assert "50.0" in found.output
    assert all((tmp_path / kind).stat().st_size for kind in ("markdown", "csv", "latex"))
    assert "4a" in CliRunner().invoke(app, ["table", "claims", str(folder)], catch_exceptions=False).output


@pytest.mark.slow
def test_tables_run_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing, very small: table 4, then 3 in the same folders, 5 on the checkpoints of the first."""
    monkeypatch.chdir(tmp_path)
    outputs = {}
    for number in ("4", "3", "5", "claims"):
        arguments = ["table", number, *(SMALL if number != "claims" else ())]
        found = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert found.exit_code == 0, found.output
        outputs[number] = found.output
    assert "Table 4" in outputs["4"]
    assert "not run" not in outputs["3"].partition("Claims")[0]
    assert "transfer" in outputs["5"]
    assert "no column speaks of it" not in outputs["claims"].partition("6a")[0].partition("2a")[0]
    assert {p.name for p in (tmp_path / "runs").iterdir()} >= {"gates-hard", "gates-easy", "gates-random", "gates-transfer.base", "gates-transfer.leafe"}
