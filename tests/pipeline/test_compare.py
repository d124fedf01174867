"""Runs side by side, and what the report makes of stages and markers of any kind; on run folders
whose trees are written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from leafe.core import UserError
from leafe.pipeline import compare_runs, report_runs
from leafe.pipeline._summarise import short_names
from leafe.runs import RunFolder
from tests.evaluate.envs import play
from tests.trees import make_tree
from tests.view.folders import new_run, write_stage

SAMPLED = {"seconds": 2.0, "temperature": 1.0, "samples": 8}
FAILED = {"requests": 9, "5xx": 2}
EXPLORED = {
    "seconds": 3.0,
    "spent": {"policy_calls": 9, "prompt_tokens": 50},
    "waits": {"total": 4.0, "engine": 1.0},
    "policy_failures": FAILED,
}


def finished(path: Path, seed: int, *overrides: str) -> Path:
    run = new_run(path, "controls={}", "evaluate.extras={}", "evaluate.k=[1, 8]", *overrides)
    write_stage(run, [make_tree(task_id=f"t{n}") for n in range(3)], "explore/tree", done=EXPLORED)
    write_stage(run, play(number=8, seed=seed), "evaluate/base", together=True, done=SAMPLED)
    return run


def test_rows_of_the_same_name_are_subtracted_where_their_tasks_are_the_same(
    tmp_path: Path,
) -> None:
    a, b = finished(tmp_path / "a", 0), finished(tmp_path / "b", 5, "explore.max_depth=2")
    other = new_run(tmp_path / "other", "controls={}", "evaluate.extras={}", "evaluate.k=[1, 8]")
    write_stage(other, play(number=8)[:1], "evaluate/base", together=True, done=SAMPLED)
    summary = compare_runs([RunFolder.read(run) for run in (a, b, other)], against="base").to_json()
    assert [row["arm"] for row in summary["evaluate"]] == ["a: base", "b: base", "other: base"]
    assert {(d["a"], d["b"]) for d in summary["differences"]} == {("b: base", "a: base")}
    compare = summary["details"]["compare"]
    assert compare["other_tasks"] == ["other: base"]
    assert compare["settings"] == [{"key": "explore.max_depth", "values": ["6", "2", "6"]}]
    assert {row["row"] for row in summary["details"]["against"]["rows"]} == {"b: base"}
    rates = {row["arm"]: row["pass_at"]["1"]["value"] for row in summary["evaluate"]}
    first = next(d for d in summary["differences"] if d["k"] == 1)
    assert first["value"] == pytest.approx(rates["b: base"] - rates["a: base"], abs=2e-6)


def test_the_page_of_runs_side_by_side(tmp_path: Path) -> None:
    a, b = finished(tmp_path / "x/demo", 0), finished(tmp_path / "y/demo", 5, "explore.max_depth=2")
    console = Console(record=True, width=120, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    report_runs([a, b], tmp_path / "out", console, tables=True, compare=True)
    text = (tmp_path / "out/report.html").read_text()
    for words in (
        "x/demo | y/demo",
        "Side by side",
        "explore.max_depth",
        "y/demo: base",
        "# y/demo",
    ):
        assert words in text
    shown = " ".join(console.export_text().split())
    assert "Settings in which the runs differ" in shown
    assert "x/demo" in shown
    with pytest.raises(UserError, match="two run folders or more"):
        report_runs([a], None, console, compare=True)
    with pytest.raises(UserError, match=r"another experiment.*--compare"):
        report_runs([a, b], None, console)


def test_names_are_as_short_as_tells_them_apart(tmp_path: Path) -> None:
    assert short_names([Path("/r/a"), Path("/r/b")]) == ["a", "b"]
    assert short_names([Path("/r/1/a"), Path("/r/2/a")]) == ["1/a", "2/a"]
    with pytest.raises(UserError, match="named twice"):
        short_names([tmp_path, tmp_path / "x" / ".."])


def test_markers_of_any_method_have_their_row(tmp_path: Path) -> None:
    """A training without samples and losses (GRPO), one that found nothing, an exploration that an
    endpoint failed in."""
    run = finished(tmp_path / "run", 0)
    with RunFolder.open(run, RunFolder.read(run).config) as folder:
        folder.stage("distill/leafe")
        folder.finish(
            "distill/leafe",
            {
                "seconds": 5.0,
                "train": {
                    "steps": 1200,
                    "kept_step": 7,
                    "spent": {"policy_calls": 77},
                    "tokens": 4321,
                },
            },
        )
        folder.stage("distill/rft")
        folder.finish(
            "distill/rft",
            {"seconds": 0.1, "counts": {}, "empty": "nothing to learn from", "stays": "base"},
        )
    report_runs([run], run, Console(quiet=True), tables=True)
    summary = json.loads((run / "summary.json").read_text())
    stages = {f"{row['kind']}: {row['row']}": row for row in summary["details"]["stages"]}
    assert (
        stages["distill: leafe"]["policy_calls"],
        stages["distill: leafe"]["trained_tokens"],
    ) == (77, 4321)
    assert "distill: rft" not in stages
    assert stages["explore: tree"]["failures"] == {"endpoint: 5xx": 2}
    assert stages["explore: tree"]["prompt_tokens"] == 50
    text = (run / "report.html").read_text()
    for words in ("1,200", "4,321", "rft: nothing to learn from", "endpoint: 5xx"):
        assert words in text


def test_a_run_without_anything_finished_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No stage of .* is finished yet"):
        report_runs([new_run(tmp_path / "run")], None, Console(quiet=True))
