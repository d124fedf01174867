"""`policy.launch`: a run goes from exploration to the evaluation of new weights through servers
that it starts and ends itself."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leafe.core import UserError
from leafe.pipeline import run_recipe
from leafe.policies.server import _launch
from leafe.recipes import Recipe, load_recipe
from leafe.runs import RunFolder, load_trees
from tests.policies.test_server import alive, gone, pids_in

FAKE = str(Path(__file__).parents[1] / "fake_server.py")
SMALL = str(Path(__file__).with_name("small.toml"))
KEY = "sk-launch-0123456789-abcdef"


def overrides(*flags: str, more: tuple[str, ...] = ()) -> list[str]:
    launch = (
        f"{shlex.join([sys.executable, FAKE])} {{checkpoint}} {{port}} --gates {' '.join(flags)}"
    )
    return [
        "policy.kind=http",
        f"policy.launch={launch}",
        "policy.options.api_key_env=FAKE_KEY",
        "tasks.train=4",
        "tasks.test=2",
        *more,
    ]


def recipe(*flags: str, more: tuple[str, ...] = ()) -> Recipe:
    return load_recipe(SMALL, overrides(*flags, more=more))


def logs(run: Path) -> list[Path]:
    return sorted((run / "logs").glob("server-*.log"), key=lambda p: p.stat().st_mtime)


def served(log: Path) -> str:
    """The checkpoint that a server was started for."""
    found = re.search(r"^fake server \d+ for (.*);", log.read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.slow
def test_a_run_serves_its_base_and_then_its_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_KEY", KEY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    run = tmp_path / "run"
    run_recipe(recipe("--child"), run)
    first, second, third = logs(run)
    assert (
        served(first)
        == served(second)
        != served(third)
        == str(run.absolute() / "distill/leafe+/checkpoint")
    )
    assert gone(*(pid for log in (first, second, third) for pid in pids_in(log)))
    for row in ("base", "leafe+"):
        turns = [
            t
            for tree in load_trees(run / "evaluate" / row).values()
            for e in tree.episodes
            for t in e.turns
        ]
        assert {t.policy for t in turns} == {row}
    done = RunFolder.read(run).done("evaluate/leafe+")
    assert done is not None
    assert done["server_restarts"] == 0
    assert done["servers"][0]["schema"] == "response_format"
    everything = b"".join(p.read_bytes() for p in run.rglob("*") if p.is_file())
    assert KEY.encode() not in everything
    assert b"my key is ***" in everything
    # it was started by another command, and goes on
    run_recipe(recipe(more=("policy.options.timeout_s=7",)), run)
    assert len(logs(run)) == 3


@pytest.mark.slow
def test_an_adapter_goes_into_the_running_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    lora = ('arms."leafe+".distill.lora={r=2, merge=false}',)
    run = tmp_path / "with"
    run_recipe(recipe("--lora", "vllm", more=lora), run)
    first, second = logs(run)  # one for exploration; one for both rows of the evaluation
    assert served(first) == served(second)
    checkpoint = str(run.absolute() / "distill/leafe+/checkpoint")
    loaded = re.search(
        rf"^adapter leafe-[0-9a-f]{{12}} from {re.escape(checkpoint)}$",
        second.read_text(),
        re.MULTILINE,
    )
    assert loaded is not None
    run = tmp_path / "without"
    run_recipe(recipe(more=lora), run)
    assert [served(log) for log in logs(run)][2:] == [
        str(run.absolute() / "distill/leafe+/checkpoint")
    ]


@pytest.mark.slow
def test_a_server_killed_in_mid_run_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    struck = 0

    class Strike(_launch.Launched):
        """Kills its server as soon as it is up, twice."""

        async def ready(self) -> None:
            nonlocal struck
            await super().ready()
            if (
                struck == self.deaths < 2
                and self.pid is not None
                and (tmp_path / "run/explore/tree/journal-00000.jsonl").is_file()
            ):
                struck += 1
                os.kill(self.pid, signal.SIGKILL)

    monkeypatch.setattr(_launch, "Launched", Strike)
    more = ("policy.options.backoff_s=0.2", "policy.options.retries=9")
    run_recipe(recipe(more=more), tmp_path / "run", only="explore")
    run_recipe(recipe(more=more), tmp_path / "calm", only="explore")
    assert struck == 2

    def texts(run: str) -> list[tuple[str, list[str]]]:
        trees = load_trees(tmp_path / run / "explore/tree")
        return [
            (k, [t.action_text for e in v.episodes for t in e.turns])
            for k, v in sorted(trees.items())
        ]

    assert texts("run") == texts("calm")
    done = RunFolder.read(tmp_path / "run").done("explore/tree")
    assert done is not None
    assert done["server_restarts"] == 2
    assert done["stops"].get("policy_error", 0) == 0


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_no_server_stays_behind_an_interrupted_run(how: signal.Signals, tmp_path: Path) -> None:
    more = ("tasks.train=400", "explore.limits.policy_calls=100000", "explore.stop_when=budget")
    command = [
        sys.executable,
        "-m",
        "leafe.cli",
        "run",
        SMALL,
        *overrides("--child", more=more),
        "--name",
        "run",
        "--runs",
        str(tmp_path),
    ]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
    ) as leafe:
        journal = tmp_path / "run/explore/tree/journal-00000.jsonl"
        deadline = time.monotonic() + 200
        while not journal.is_file() or journal.read_bytes().count(b"\n") < 3:
            assert leafe.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        pids = pids_in(logs(tmp_path / "run")[0])
        assert len(pids) == 2
        assert all(map(alive, pids))
        leafe.send_signal(how)
        leafe.wait(200)
    assert gone(*pids)
    if how is signal.SIGINT:
        assert leafe.returncode == 130


def test_a_server_that_does_not_come_up_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"ended with code 3 before it answered; the end of .*: 'out of memory'\.$"
    ):
        run_recipe(recipe("--dies", "'out of memory'"), tmp_path / "run", only="explore")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            "policy.kind=hf",
            "launch starts a server, and kind = 'hf' uses none: set kind = \"http\"",
        ),
        (
            "policy.launch=vllm serve {checkpoint}",
            "launch has no {port}: write something like vllm serve",
        ),
        ("policy.options.base_url=http://x/v1", "take options.base_url or launch out"),
        ("policy.launch_timeout=0", "policy.launch_timeout"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(change: str, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        load_recipe(SMALL, [*overrides(), change])


def test_where_a_server_listens_is_no_part_of_the_experiment(tmp_path: Path) -> None:
    from leafe.pipeline._run import config_of

    served_by_hand = load_recipe(
        SMALL, ["policy.kind=http", "policy.options.base_url=http://a/v1", "policy.options.model=m"]
    )
    elsewhere = load_recipe(
        SMALL,
        [
            "policy.kind=http",
            'policy.options.base_url=["http://b/v1", "http://c/v1"]',
            "policy.options.model=m",
        ],
    )
    assert config_of(served_by_hand) == config_of(elsewhere)
    assert json.dumps(config_of(recipe())) == json.dumps(config_of(recipe("--child")))
    other = load_recipe(
        SMALL,
        ["policy.kind=http", "policy.options.base_url=http://a/v1", "policy.options.model=another"],
    )
    assert config_of(served_by_hand) != config_of(other)
