"""The whole pipeline on the embedded environment and model, very small: order, folders, resume,
workers, faults."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from leafe.core import UserError
from leafe.pipeline import Watcher, plan, print_kind, report_run, run_recipe
from leafe.recipes import Recipe, load_recipe
from leafe.runs import RunFolder, load_trees

SMALL = str(Path(__file__).with_name("small.toml"))


def small(*more: str) -> Recipe:
    return load_recipe(SMALL, more)


def finished(path: Path) -> dict[str, Any]:
    run = RunFolder.read(path)
    return {s.name: run.done(s.name) for s in plan(small())}


def trees_of(path: Path, stage: str) -> list[object]:
    out: list[object] = []
    for tree in load_trees(path / stage).values():
        for episode in tree.episodes:
            data = episode.to_json()
            data.pop("seconds", None)
            data.pop("replayed", None)
            for turn in data["turns"]:
                turn.pop("seconds", None)
                turn.pop("logprob", None)
                turn.pop("usage", None)  # cached tokens depend on what was in the cache
            out.append(data)
    return out


def test_stages_run_in_order_and_are_not_done_again(tmp_path: Path) -> None:
    begun: list[str] = []
    kinds: list[str] = []
    watcher = Watcher(begins=lambda s: begun.append(s.name), kind_done=kinds.append)
    run_recipe(small(), tmp_path / "run", watcher=watcher)
    assert begun == ["explore/tree", "distill/leafe+", "evaluate/base", "evaluate/leafe+"]
    assert kinds == ["explore", "distill", "evaluate"]
    done = finished(tmp_path / "run")
    assert all(done.values())
    assert done["explore/tree"]["spent"]["policy_calls"] <= 8 * 30
    assert (tmp_path / "run/distill/leafe+/checkpoint/model.safetensors").is_file()
    for row in ("base", "leafe+"):
        trees = load_trees(tmp_path / "run/evaluate" / row)
        assert len(trees) == 3
        assert all(sum(e.count for e in t.episodes) == 6 for t in trees.values())
    _passes_are_shown(tmp_path / "run", done["distill/leafe+"])
    begun.clear()
    run_recipe(small(), tmp_path / "run", watcher=watcher)
    assert begun == []
    with pytest.raises(UserError, match="other settings"):
        run_recipe(small("tasks.train=9"), tmp_path / "run")
    run_recipe(small("tasks.train=2", "tasks.test=1"), tmp_path / "run", only="explore", fresh=True)
    assert len(load_trees(tmp_path / "run/explore/tree")) == 2


def _passes_are_shown(run: Path, marker: dict[str, Any]) -> None:
    """The stage's table and the report say how often each part was passed over."""
    passes = marker["train"]["counts"]["epochs"]
    assert passes.keys() >= {"rehearsal", "counterfactual"}
    console = Console(record=True, width=200, quiet=False, file=io.StringIO())
    print_kind(run, "distill", console)
    report_run(run, Console(quiet=True))
    table, page = console.export_text(), (run / "report.html").read_text()
    for part, number in passes.items():
        assert f"{marker['counts'][part]['samples']:,} x {number:.1f}" in table
        assert f", {number:.1f} passes" in page


def test_an_arm_more_is_all_that_is_done(tmp_path: Path) -> None:
    begun: list[str] = []
    run_recipe(small(), tmp_path / "run")
    more = small(
        "arms.cf.preset=cf",
        "arms.cf.distill.max_steps=1",
        "evaluate.compare=[['leafe+', 'cf']]",
        "evaluate.k=[1, 2]",
    )
    run_recipe(more, tmp_path / "run", watcher=Watcher(begins=lambda s: begun.append(s.name)))
    assert begun == ["distill/cf", "evaluate/cf"]
    with pytest.raises(UserError, match=r"arms\.cf"):
        run_recipe(small(), tmp_path / "run")
    with pytest.raises(UserError, match=r"leafe\+\.distill\.max_steps"):
        run_recipe(
            small(
                "arms.leafe+.distill.max_steps=3",
                "arms.cf.preset=cf",
                "arms.cf.distill.max_steps=1",
            ),
            tmp_path / "run",
        )


def test_one_kind_needs_what_comes_before(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"distill/leafe\+ needs explore/tree"):
        run_recipe(small(), tmp_path / "run", only="distill")
    run_recipe(small(), tmp_path / "run", only="explore")
    run_recipe(small(), tmp_path / "run", only="distill")
    assert (tmp_path / "run/distill/leafe+/checkpoint/config.json").is_file()


@pytest.mark.slow
def test_workers_find_the_same_trees(tmp_path: Path) -> None:
    run_recipe(small(), tmp_path / "one", only="explore")
    run_recipe(small("jobs=2", "strategies=['tree','refine']"), tmp_path / "two")
    assert trees_of(tmp_path / "one", "explore/tree") == trees_of(tmp_path / "two", "explore/tree")
    assert all(finished(tmp_path / "two").values())


def test_a_users_mistake_in_a_worker_arrives_as_such(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no option 'nowhere'"):
        run_recipe(small("policy.options.nowhere=1", "jobs=2"), tmp_path / "run")
    with pytest.raises(UserError, match=r"tasks\.train_split = 'nowhere'"):
        run_recipe(small("tasks.train_split=nowhere"), tmp_path / "split")
    with pytest.raises(UserError, match="no environment 'mars'"):
        run_recipe(small("env.name=mars", "env.options={}"), tmp_path / "mars")
    with pytest.raises(UserError, match="absent-model"):
        run_recipe(small("policy.model=./absent-model"), tmp_path / "model")


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_to_the_same_trees(tmp_path: Path) -> None:
    run_recipe(small(), tmp_path / "whole")
    command = [
        sys.executable,
        "-m",
        "leafe.cli",
        "run",
        SMALL,
        "--runs",
        str(tmp_path),
        "--name",
        "cut",
    ]
    chance = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        # some time after it began to work: its folder is there, and a random part of a second has
        # passed
        deadline = time.monotonic() + 60
        while (
            time.monotonic() < deadline
            and process.poll() is None
            and not list(tmp_path.glob("cut/*/*/journal-*"))
        ):
            time.sleep(0.05)
        time.sleep(3 * chance.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(
        command, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=280
    )
    assert done.returncode == 0, done.stderr.decode()
    assert trees_of(tmp_path / "cut", "explore/tree") == trees_of(
        tmp_path / "whole", "explore/tree"
    )
    assert trees_of(tmp_path / "cut", "evaluate/base") == trees_of(
        tmp_path / "whole", "evaluate/base"
    )


@pytest.mark.slow
def test_interrupt_stops_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "leafe.cli",
        "run",
        SMALL,
        "tasks.train=2000",
        "--jobs",
        "2",
        "--runs",
        str(tmp_path),
        "--name",
        "cut",
    ]
    listens = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # a shell's background jobs are started deaf to it
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        preexec_fn=listens,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(tmp_path.glob("cut/explore/tree/journal-*")):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "give the same command again to go on" in error
    assert "Traceback" not in error
    size = sum(p.stat().st_size for p in tmp_path.glob("cut/explore/tree/journal-*"))
    time.sleep(1.0)
    assert size == sum(p.stat().st_size for p in tmp_path.glob("cut/explore/tree/journal-*")), (
        "no worker writes on"
    )


def test_an_arm_with_nothing_to_learn_from_stops_nobody(tmp_path: Path) -> None:

    # two calls a task: no episode ends, nothing succeeds and nothing is reflected on
    recipe = small(
        "explore.limits.policy_calls=2", "arms.poor.preset=rft", "arms.poor.distill.max_steps=2"
    )
    run_recipe(recipe, tmp_path / "run")
    done = RunFolder.read(tmp_path / "run").done("distill/poor")
    assert done is not None
    assert "hold nothing that rft learns from" in done["empty"]
    report_run(tmp_path / "run", Console(quiet=True))
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert "poor" not in {row["arm"] for row in summary["evaluate"]}
    assert "hold nothing that rft learns from" in (tmp_path / "run/report.html").read_text()


def test_the_summary_is_stable(tmp_path: Path) -> None:

    run_recipe(small(), tmp_path / "run")
    report_run(tmp_path / "run", Console(quiet=True))
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [row["strategy"] for row in summary["explore"]] == ["tree"]
    assert set(summary["explore"][0]) >= {
        "strategy",
        "solved",
        "tasks",
        "coverage",
        "ci95",
        "policy_calls",
        "env_steps",
        "replayed_steps",
        "seconds",
    }
    assert {row["arm"] for row in summary["evaluate"]} == {"base", "leafe+"}
    for row in summary["evaluate"]:
        assert set(row) >= {"arm", "temperature", "tasks", "samples", "pass_at", "seconds"}
        assert set(row["pass_at"]) == {"1", "4"}
        assert all(0 <= v["value"] <= 1 and len(v["ci95"]) == 2 for v in row["pass_at"].values())
    assert {(d["a"], d["b"]) for d in summary["differences"]} == {("leafe+", "base")}
    page = (tmp_path / "run/report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_run_is_not_gone_on_with_in_another_env(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leafe.envs.gates import Gates

    monkeypatch.setattr(Gates, "versions", lambda self: {"wording": "1"}, raising=False)
    run_recipe(small("tasks.train=2", "tasks.test=1"), tmp_path / "run", only="explore")
    run = RunFolder.read(tmp_path / "run")
    assert run.manifest["envs"] == {"env": {"wording": "1"}}
    assert run.versions["env.wording"] == "1"
    monkeypatch.setattr(Gates, "versions", lambda self: {"wording": "2"}, raising=False)
    with pytest.raises(UserError, match=r"its wording was '1' and is '2'"):
        run_recipe(small("tasks.train=2", "tasks.test=1"), tmp_path / "run")
    monkeypatch.setattr(Gates, "versions", lambda self: {"wording": "1"}, raising=False)
    run_recipe(small("tasks.train=2", "tasks.test=1"), tmp_path / "run")
