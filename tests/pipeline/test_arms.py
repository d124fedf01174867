"""Arms on arms, rounds, sweeps and pooled runs, run on the embedded environment and model, very
small."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file

from leafe.core import ForeignFailure, Stop, Task, UserError
from leafe.embedded import base_path
from leafe.pipeline import (
    Stage,
    Watcher,
    plan,
    report_runs,
    run_recipe,
    summarise_run,
    summarise_runs,
    waiting_stages,
)
from leafe.pipeline._choose import last_round
from leafe.pipeline._plan import find
from leafe.recipes import Recipe, TrainRecipe, load_recipe
from leafe.runs import Journal, RunFolder, load_trees, read_tasks, write_tasks
from tests.pipeline.test_dispatcher import Memory, as_trees, deal
from tests.pipeline.test_run import trees_of
from tests.trees import Ep, make_tree

SMALL = str(Path(__file__).with_name("small.toml"))
QUICK = (
    "tasks.train=6",
    "tasks.test=2",
    "evaluate.samples=4",
    "validation={tasks=3, samples=4, k=2}",
)
STILL = (
    "arms.still.preset=leafe+",
    "arms.still.distill={max_steps=1, learning_rate=1e-30, rehearsal_batch_size=2}",
)
"""A training that changes nothing: its weights are those that it starts from."""
AFTER = (*STILL, "arms.still.start=leafe+", "arms.still.explorer=leafe+")


def small(*more: str) -> Recipe:
    return load_recipe(SMALL, (*QUICK, *more))


def done(run: Path, stage: str) -> dict[str, Any]:
    found = RunFolder.read(run).done(stage)
    assert found is not None
    return found


def weights(folder: Path) -> dict[str, bytes]:
    return {
        name: tensor.numpy().tobytes()
        for name, tensor in load_file(folder / "model.safetensors").items()
    }


def policies(run: Path, stage: str) -> set[str]:
    return {
        t.policy
        for tree in load_trees(run / stage).values()
        for e in tree.episodes
        for t in e.turns
    }


def page(run: Path) -> str:
    report_runs([run], run, Console(quiet=True))
    return (run / "report.html").read_text().replace("&#39;", "'")


def test_an_arm_begins_with_the_weights_of_another_and_learns_from_its_trees(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    run_recipe(small(*AFTER), run)
    assert policies(run, "explore/tree") == {"base"}
    assert policies(run, "explore/leafe+.tree") == {"leafe+"}
    assert read_tasks(run / "explore/leafe+.tree") == read_tasks(run / "explore/tree")
    before, after = (weights(run / f"distill/{arm}/checkpoint") for arm in ("leafe+", "still"))
    assert before == after != weights(base_path())
    assert {row["strategy"] for row in summarise_run(RunFolder.read(run)).explore} == {
        "tree",
        "tree by leafe+",
    }


def test_an_arm_on_one_that_learned_nothing_has_no_row_either(tmp_path: Path) -> None:
    run = tmp_path / "run"
    # two calls a task: no episode ends
    run_recipe(
        small(
            "explore.limits.policy_calls=2",
            "arms.leafe+.preset=rft",
            "arms.leafe+.distill={max_steps=1}",
            *AFTER,
            "tasks.train=2",
        ),
        run,
    )
    assert done(run, "distill/still")["empty"] == done(run, "distill/leafe+")["empty"]
    assert "empty" in done(run, "explore/leafe+.tree")
    assert [row["arm"] for row in summarise_run(RunFolder.read(run)).evaluate] == ["base"]


def test_the_stages_of_one_kind_go_as_far_as_they_can(tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", small(*AFTER)
    run_recipe(recipe, run, only="explore")
    assert waiting_stages(RunFolder.read(run), recipe, "explore") == ["explore/leafe+.tree"]
    with pytest.raises(
        UserError, match=r"explore/leafe\+\.tree needs distill/leafe\+.*run `leafe distill`"
    ):
        run_recipe(recipe, run, only="explore")
    run_recipe(recipe, run, only="distill")
    assert waiting_stages(RunFolder.read(run), recipe, "distill") == ["distill/still"]
    run_recipe(recipe, run, only="explore")
    run_recipe(recipe, run, only="distill")
    assert waiting_stages(RunFolder.read(run), recipe, "distill") == []


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds, unbroken."""
    run = tmp_path_factory.mktemp("rounds") / "run"
    run_recipe(small("rounds=2"), run)
    return run


def test_rounds_share_the_tasks_and_go_on_from_each_other(rounds: Path) -> None:
    first, second = (
        read_tasks(rounds / f"explore/{name}.tree") for name in ("round1of2", "leafe+.round2")
    )
    whole = tmp_tasks(rounds)
    assert [*first, *second] == [*whole[::2], *whole[1::2]]
    assert policies(rounds, "explore/leafe+.round2.tree") == {"leafe+.round1"}
    assert policies(rounds, "evaluate/leafe+.round2") == {"leafe+.round2"}
    counted = [
        done(rounds, f"distill/leafe+.round{n}")["counts"]["rehearsal"]["tasks"] for n in (1, 2)
    ]
    assert counted[0] <= 3 < counted[1] <= 6, "the second round learns from both"
    choice = done(rounds, "choose/leafe+")
    chosen = choice["chosen"]
    assert chosen in ("leafe+.round1", "leafe+.round2")
    assert trees_of(rounds, "evaluate/leafe+") == trees_of(rounds, f"evaluate/{chosen}")
    summary = summarise_run(RunFolder.read(rounds)).to_json()
    assert [row["arm"] for row in summary["evaluate"]] == [
        "base",
        "leafe+ (round 1)",
        "leafe+ (round 2)",
        "leafe+",
    ]
    rows = summary["details"]["validation"]
    assert [(row["arm"], row["attempt"]) for row in rows] == [
        ("leafe+", "leafe+.round1"),
        ("leafe+", "leafe+.round2"),
    ]
    assert [row["chosen"] for row in rows] == [row["attempt"] == chosen for row in rows]
    best = max(rows, key=lambda row: (row["pass_at"]["2"]["value"], row["pass_at"]["1"]["value"]))
    assert best["chosen"]
    assert f"by Pass@2 on 3 validation tasks it is {choice['what']}" in page(rounds)


def tmp_tasks(run: Path) -> list[Task]:
    """The training tasks as a run of one round has them."""
    from leafe.envs import load_tasks, make_env

    config = RunFolder.read(run).config
    return load_tasks(make_env("gates", **config["env"]["options"]), "train", 6, 0)


def test_broken_off_between_any_two_stages_it_goes_on_to_the_same_end(
    rounds: Path, tmp_path: Path
) -> None:
    class Enough(Exception):
        pass

    begun: list[str] = []

    def begins(stage: Stage) -> None:
        begun.append(stage.name)
        if begun.count(stage.name) == 1:
            raise Enough

    recipe = small("rounds=2")
    starts = 0
    while True:
        starts += 1
        try:
            run_recipe(recipe, tmp_path / "run", watcher=Watcher(begins=begins))
            break
        except Enough:
            continue
    assert starts == len(plan(recipe)) + 1
    for stage in plan(recipe):
        if stage.kind in ("explore", "validate", "evaluate"):
            assert trees_of(tmp_path / "run", stage.name) == trees_of(rounds, stage.name)
    assert done(tmp_path / "run", "choose/leafe+") == done(rounds, "choose/leafe+") | {
        "seconds": done(tmp_path / "run", "choose/leafe+")["seconds"]
    }


@pytest.mark.slow
def test_rounds_in_workers_are_the_same(rounds: Path, tmp_path: Path) -> None:
    run_recipe(small("rounds=2", "jobs=2"), tmp_path / "run")
    for name in ("explore/leafe+.round2.tree", "evaluate/leafe+"):
        assert trees_of(tmp_path / "run", name) == trees_of(rounds, name)


def test_where_a_round_is_worse_there_is_no_further_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leafe.pipeline import _stages

    def says(run: RunFolder, recipe: Recipe, stage: Stage) -> str | None:
        return "no further round: it is worse" if stage.round[0] == 2 else None

    monkeypatch.setattr(_stages, "last_round", says)
    run = tmp_path / "run"
    run_recipe(small("rounds=3", *STILL, "arms.still.rounds=1", "arms.still.start=leafe+"), run)
    for stage in (
        "explore/leafe+.round2.tree",
        "distill/leafe+.round2",
        "validate/leafe+.round3",
        "evaluate/leafe+.round2",
    ):
        assert "it is worse" in done(run, stage)["stopped"]
    assert done(run, "choose/leafe+")["chosen"] == "leafe+.round1"
    assert trees_of(run, "evaluate/leafe+") == trees_of(run, "evaluate/leafe+.round1")
    assert weights(run / "distill/still/checkpoint") == weights(
        run / "distill/leafe+.round1/checkpoint"
    )
    assert {row["arm"] for row in summarise_run(RunFolder.read(run)).evaluate} == {
        "base",
        "leafe+ (round 1)",
        "leafe+",
        "still",
    }
    assert "no further round: it is worse" in page(run)


def sampled(run: Path, stage: str, successes: list[int], samples: int = 8) -> None:
    """A validation's journal: so many of each task's samples succeeded."""
    with RunFolder.open(run, {"a": 1}) as folder:
        out = folder.stage(stage)
        trees = [
            make_tree(*_episodes(good, samples), task_id=f"v{i}")
            for i, good in enumerate(successes)
        ]
        write_tasks(out, [tree.task for tree in trees])
        with Journal(out, fsync=False) as journal:
            for tree in trees:
                journal.append(tree.episodes)
        folder.finish(stage, {})


def _episodes(good: int, samples: int) -> list[Ep]:
    some = [Ep("right", count=good), Ep("wrong", stop=Stop.failure, count=samples - good)]
    return [episode for episode in some if episode.count]


@pytest.mark.parametrize(
    ("first", "second", "stops"),
    [
        ([4] * 10, [4] * 10, False),
        ([4] * 10, [5] * 10, False),
        ([6] * 10, [1] * 10, True),
        ([4, 5] * 5, [5, 4] * 5, False),  # worse by nothing that is sure
        (
            [8] * 10 + [0] * 10,
            [1] * 20,
            True,
        ),  # Pass@2 is higher in sum, but Pass@1 is surely lower
    ],
)
def test_the_stop_rule_is_a_paired_interval(
    tmp_path: Path, first: list[int], second: list[int], stops: bool
) -> None:
    recipe = small("rounds=3")
    sampled(tmp_path / "run", "validate/leafe+.round1", first)
    sampled(tmp_path / "run", "validate/leafe+.round2", second)
    said = last_round(
        RunFolder.read(tmp_path / "run"), recipe, find(recipe, "explore/leafe+.round3.tree")
    )
    assert (said is not None) == stops
    if said is not None:
        words = (
            rf"on {len(first)} validation tasks Pass@[12] of round 2 is [\d.]+ points below "
            r"that of round 1"
        )
        assert re.match(rf"no further round: {words} \(95 % interval", said)


def test_a_sweep_chooses_on_validation_and_keeps_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = small(
        "arms.leafe+.sweep={learning_rate=[1e-3, 1e-30], temperature=[0.3, 1.0]}",
        *STILL,
        "arms.still.start=leafe+",
    )
    run_recipe(recipe, run)
    choice = done(run, "choose/leafe+")
    rows = choice["candidates"]
    assert [row["temperature"] for row in rows] == [0.3, 1.0, 0.3, 1.0]
    assert [row["attempt"] for row in rows] == [
        "leafe+.try1",
        "leafe+.try1",
        "leafe+.try3",
        "leafe+.try3",
    ]
    best = max(rows, key=lambda row: (row["pass_at"]["2"]["value"], row["pass_at"]["1"]["value"]))
    chosen = next(row for row in rows if row.get("chosen"))
    assert chosen["pass_at"] == best["pass_at"]
    assert (choice["chosen"], choice["temperature"]) == (chosen["attempt"], chosen["temperature"])
    for attempt in ("leafe+.try1", "leafe+.try3"):
        folder = run / "distill" / attempt / "checkpoint"
        assert (folder / "model.safetensors").is_file() == (attempt == choice["chosen"])
        assert (folder / "metrics.jsonl").is_file()
    assert choice["deleted"] == [a for a in ("leafe+.try1", "leafe+.try3") if a != choice["chosen"]]
    assert done(run, "evaluate/leafe+")["temperature"] == choice["temperature"]
    assert weights(run / "distill/still/checkpoint") == weights(
        run / f"distill/{choice['chosen']}/checkpoint"
    )
    text = page(run)
    assert "learning_rate = 0.001, temperature = 0.3" in text
    assert f"the weights of {choice['deleted'][0]} were deleted" in text
    begun: list[str] = []
    run_recipe(recipe, run, watcher=Watcher(begins=lambda s: begun.append(s.name)))
    assert begun == [], "weights that were deleted are not made again"


def test_a_choice_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", small("arms.leafe+.sweep={learning_rate=[1e-3, 1e-30]}")
    run_recipe(recipe, run)
    before = done(run, "choose/leafe+")
    (run / "choose/leafe+/done.json").unlink()
    run_recipe(recipe, run)
    assert done(run, "choose/leafe+") | {"seconds": 0} == before | {"seconds": 0}


@pytest.mark.slow
def test_runs_of_other_seeds_and_bases_are_one_table(tmp_path: Path) -> None:
    shutil.copytree(base_path(), tmp_path / "base")
    together = tmp_path / "together"
    run_recipe(small("seeds=[0, 1]"), together)
    apart = [tmp_path / "apart0", tmp_path / "apart1"]
    for seed, run in enumerate(apart):
        run_recipe(
            small(f"seeds=[{seed}]", *([f"policy.model={tmp_path / 'base'}"] if seed else [])), run
        )
    pooled, whole = (
        summarise_runs([RunFolder.read(r) for r in apart]).to_json(),
        summarise_run(RunFolder.read(together)).to_json(),
    )

    def figures(summary: dict[str, Any]) -> list[Any]:
        rows = [*summary["explore"], *summary["evaluate"], *summary["differences"]]
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "cached_tokens")} for row in rows
        ]

    assert figures(pooled) == figures(whole)
    report_runs(apart, tmp_path / "out", Console(quiet=True), tables=True)
    assert json.loads((tmp_path / "out/summary.json").read_text())["seeds"] == [0, 1]
    assert "apart1: leafe+" in (tmp_path / "out/report.html").read_text()
    other = tmp_path / "other"
    run_recipe(small("explore.max_depth=1"), other, only="explore")
    with pytest.raises(
        UserError, match=r"other is another experiment than .*apart0: they differ in explore"
    ):
        report_runs([apart[0], other], None, Console(quiet=True))


@pytest.mark.slow
def test_a_launcher_starts_the_training(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_recipe(small(f"train.launch={sys.executable}"), run)
    assert (run / "distill/leafe+/checkpoint/job/launch.log").is_file(), "another process trained"
    here = tmp_path / "here"
    run_recipe(small(), here, only="explore")
    run_recipe(small(), here, only="distill")
    assert weights(run / "distill/leafe+/checkpoint") == weights(here / "distill/leafe+/checkpoint")
    run_recipe(small(), run)  # how it was started is no part of the experiment


@pytest.mark.parametrize(
    ("launch", "kind", "words"),
    [
        (
            "no-such-launcher --config x",
            UserError,
            "train.launch: the program 'no-such-launcher' is not found",
        ),
        (
            (
                f'{sys.executable} -c \'import sys; print("out of devices", file=sys.stderr); '
                "sys.exit(7)'"
            ),
            ForeignFailure,
            r"code 7.*which ends with: out of devices",
        ),
    ],
)
def test_a_launcher_that_fails_says_so(
    tmp_path: Path, launch: str, kind: type[Exception], words: str
) -> None:
    recipe = small("tasks.train=4").model_copy(update={"train": TrainRecipe(launch=launch)})
    run_recipe(recipe, tmp_path / "run", only="explore")
    with pytest.raises(kind, match=words):
        run_recipe(recipe, tmp_path / "run", only="distill")


def test_a_run_of_an_earlier_leafe_is_gone_on_with(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_recipe(small("tasks.train=2", "tasks.test=1"), run, only="explore")
    text = (run / "config.toml").read_text()
    old = re.sub(
        (
            r'(?m)^(start|explorer|sweep) = .*\n|^\[(rounds|arms\."leafe\+"\.sweep)\]\n([a-z]+ '
            r"= .*\n)*"
        ),
        "",
        text,
    )
    assert "rounds" not in old != text
    (run / "config.toml").write_text(old)
    begun: list[str] = []
    run_recipe(
        small("tasks.train=2", "tasks.test=1"),
        run,
        watcher=Watcher(begins=lambda s: begun.append(s.name)),
        only="distill",
    )
    assert begun == ["distill/leafe+"]
    (run / "config.toml").write_text(old)
    with pytest.raises(UserError, match=r"other settings \(rounds.number was 1, is 2\)"):
        run_recipe(small("tasks.train=2", "tasks.test=1", "rounds=2"), run)


def test_a_split_that_is_asked_for_at_the_end_is_looked_for_at_the_beginning(
    tmp_path: Path,
) -> None:
    for change, key in (
        ("tasks.test_split=dev", "tasks.test_split"),
        ("validation.split=dev", "validation.split"),
    ):
        with pytest.raises(
            UserError,
            match=(
                f"{key} = 'dev': the environment 'gates' has no such split; its splits are "
                "train, valid, test"
            ),
        ):
            run_recipe(small("rounds=2", change), tmp_path / key)
        assert not list((tmp_path / key).rglob("journal-*"))


@pytest.mark.slow
def test_the_first_round_can_be_explored_in_pieces(rounds: Path, tmp_path: Path) -> None:
    from leafe.pipeline import Shard, merge, recipe_of

    pieces = []
    for index in range(2):
        pieces.append(tmp_path / Shard(index, 2).name("run"))
        run_recipe(small("rounds=2"), pieces[-1], only="explore", shard=Shard(index, 2))
    merge(pieces, tmp_path / "run", recipe_of)
    run_recipe(small("rounds=2"), tmp_path / "run")
    for name in ("explore/round1of2.tree", "explore/leafe+.round2.tree", "evaluate/leafe+"):
        assert trees_of(tmp_path / "run", name) == trees_of(rounds, name)


@pytest.mark.slow
def test_killed_in_the_middle_of_rounds_it_goes_on_to_the_same_end(
    rounds: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "leafe.cli",
        "run",
        SMALL,
        *QUICK,
        "rounds=2",
        "--runs",
        str(tmp_path),
        "--name",
        "cut",
    ]
    chance = random.Random(1)
    for seen in (
        "distill/leafe+.round1",
        "explore/leafe+.round2.tree",
        "distill/leafe+.round2",
        "choose/leafe+",
    ):
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        deadline = time.monotonic() + 120
        while (
            time.monotonic() < deadline
            and process.poll() is None
            and not (tmp_path / "cut" / seen).is_dir()
        ):
            time.sleep(0.02)
        time.sleep(chance.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
    ended = subprocess.run(
        command, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=280
    )
    assert ended.returncode == 0, ended.stderr.decode()
    for name in ("explore/leafe+.round2.tree", "validate/leafe+.round2", "evaluate/leafe+"):
        assert trees_of(tmp_path / "cut", name) == trees_of(rounds, name)


@pytest.mark.parametrize("stage", ["explore/leafe+.round2.tree", "validate/leafe+.round1"])
def test_actors_play_with_the_weights_of_a_round(rounds: Path, tmp_path: Path, stage: str) -> None:
    """What a cluster's actors do, in this process."""
    memory = Memory()
    deal(small("rounds=2"), rounds, stage, memory)
    assert as_trees(rounds, stage, memory.episodes, tmp_path) == trees_of(rounds, stage)
