"""What stands beside Pass@k, through the pipeline: every arm and round is probed on the base's
trees of validation tasks, and the report has a line a round."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from leafe.cli._app import app
from leafe.core import UserError
from leafe.evaluate import counts, pass_estimate
from leafe.pipeline import plan, report_runs, run_recipe, summarise_run, summarise_runs
from leafe.pipeline._plan import HELD_OUT
from leafe.recipes import Recipe, load_recipe
from leafe.runs import RunFolder, load_trees, read_tasks

SMALL = str(Path(__file__).with_name("small.toml"))
QUICK = (
    "tasks.train=6",
    "tasks.test=2",
    "evaluate.samples=4",
    "validation={tasks=3, samples=4, k=2}",
    "evaluate.probe=5",
)
MORE = (
    "arms.leafe+.rounds=2",
    "controls.random={options={setting='random'}, train=2, test=2, strategies=['tree'], arms=[]}",
)
EXTRA = (
    "evaluate.extras.hot={policy='base', temperature=1.3}",
    "evaluate.extras.knows={policy='leafe.envs.gates:GatesReference', role='ceiling'}",
)


def small(*more: str) -> Recipe:
    return load_recipe(SMALL, (*QUICK, *more))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    path = tmp_path_factory.mktemp("beside") / "run"
    return run_recipe(small(*MORE, *EXTRA), path)


def test_the_base_and_every_arm_are_probed_and_nobody_else(run: RunFolder) -> None:
    probed = {
        s.what
        for s in plan(small(*MORE, *EXTRA))
        if s.kind == "evaluate" and "probe" in (run.done(s.name) or {}) and not s.variant.control
    }
    assert probed == {"base", "leafe+", "leafe+.round1", "leafe+.round2"}
    assert not any(
        "probe" in (run.done(s.name) or {})
        for s in plan(small(*MORE, *EXTRA))
        if s.variant.control or s.kind != "evaluate"
    )
    base, arm = (run.done(f"evaluate/{row}") or {} for row in ("base", "leafe+.round1"))
    assert [base["probe"][n] for n in ("kind", "pairs", "reflections", "improved")] == [
        arm["probe"][n] for n in ("kind", "pairs", "reflections", "improved")
    ]
    assert base["probe"]["reflection"] > 0.8


def test_the_trees_are_the_bases_on_tasks_that_nobody_trains_or_is_tested_on(
    run: RunFolder,
) -> None:
    held_out = read_tasks(run.path / "explore" / HELD_OUT)
    assert [t.split for t in held_out] == ["valid"] * 5
    others = {
        t.id
        for s in plan(small(*MORE))
        if s.kind in ("explore", "evaluate") and s.what != HELD_OUT
        for t in read_tasks(run.path / s.name)
    }
    assert not {t.id for t in held_out} & others
    assert {
        t.policy
        for tree in load_trees(run.path / "explore" / HELD_OUT).values()
        for e in tree.episodes
        for t in e.turns
    } == {"base"}


def test_without_the_option_nothing_more_is_done() -> None:
    stages = plan(load_recipe(SMALL))
    assert not any(s.what == HELD_OUT for s in stages)
    assert all("explore/" not in need for s in stages if s.kind == "evaluate" for need in s.needs)


def test_a_round_is_one_line(run: RunFolder) -> None:
    summary = summarise_run(run)
    one, two = summary.details["rounds"]
    assert [(r["arm"], r["round"], r["runs"]) for r in (one, two)] == [
        ("leafe+", n, 1) for n in (1, 2)
    ]
    assert one["chosen"] + two["chosen"] == 1
    rows = {row["arm"]: row for row in summary.evaluate}
    for n, row in enumerate((one, two), 1):
        explored = load_trees(
            run.path / ("explore/round1of2.tree" if n == 1 else "explore/leafe+.round2.tree")
        ).values()
        assert (
            (row["tasks"], row["solved"])
            == (len(explored), sum(t.solved for t in explored))
            == (3, row["solved"])
        )
        tested = rows[f"leafe+ (round {n})"]
        assert row["test"] == {k: p["value"] for k, p in tested["pass_at"].items()}
        assert (row["following"], row["entropy"]) == (tested["following"], tested["entropy"])
        sampled = counts(list(load_trees(run.path / f"validate/leafe+.round{n}").values()))
        assert row["valid"]["2"] == pytest.approx(pass_estimate([sampled], 2).value, abs=1e-6)
        parts = (run.done(f"distill/leafe+.round{n}") or {})["counts"]
        assert row["samples"] == sum(
            c["samples"]
            for part, c in parts.items()
            if part in ("rehearsal", "counterfactual", "anchor", "reflection")
        )


def test_the_report_shows_it_and_compares_every_row_with_one(
    run: RunFolder, tmp_path: Path
) -> None:
    table, figures = tmp_path / "table.md", tmp_path / "table.csv"
    report_runs(
        [run.path],
        tmp_path,
        Console(quiet=True),
        tables=True,
        against="leafe+",
        markdown=table,
        table_csv=figures,
    )
    page = (tmp_path / "report.html").read_text()
    for words in (
        "<h3>Rounds</h3>",
        "Can the policies still learn from experience?",
        "Settings tried on validation",
        "Every row against leafe+",
    ):
        assert words in page
    named = [
        line.split("|")[1].strip()
        for line in table.read_text().splitlines()
        if line.startswith("|")
    ][2:]
    assert named == ["base", "leafe+ (round 1)", "leafe+ (round 2)", "leafe+"]
    assert len(figures.read_text().splitlines()) == 1 + 2 * len(named)
    against = summarise_runs([run], "base").details["against"]
    assert {row["runs"] for row in against["rows"]} == {1}
    with pytest.raises(UserError, match="no row 'nobody'"):
        summarise_runs([run], "nobody")


def test_the_command_line_says_what_is_missing(run: RunFolder, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["report", str(run.path), "--markdown", str(tmp_path / "x.md")])
    assert isinstance(found.exception, UserError)
    assert "--against" in str(found.exception)
    found = CliRunner().invoke(
        app,
        [
            "report",
            str(run.path),
            "--against",
            "base",
            "--out",
            str(tmp_path),
            "--csv",
            str(tmp_path / "x.csv"),
            "--over-tasks",
        ],
    )
    assert found.exit_code == 0, found.output
    assert "Against base" in found.output
    assert (tmp_path / "x.csv").read_text().startswith("row,k,")
