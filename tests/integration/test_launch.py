"""`policy.launch` with real servers and SmolLM2: they are started, killed in mid-run, started
again, and ended; new weights are served."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from leafe.pipeline import run_recipe
from leafe.policies import smollm2
from leafe.recipes import load_recipe
from leafe.runs import RunFolder, load_trees
from tests.integration.test_servers import needs
from tests.policies.test_server import gone

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(900)]

LLAMA = str(Path(__file__).with_name("llama_server.py"))
WORDS = """
name = "short"
system = "You open doors. Answer with one line, which names a key: a, b or c."
action = "react"
max_tokens = 8
reflect_max_tokens = 40
"""
SHOT = """
[[examples]]
role = "user"
content = "open all doors\\n\\n[Step 0]\\ndoor 0"

[[examples]]
role = "assistant"
content = "Action: {key}"
"""
"""Without examples a model of this size talks about doors."""


def overrides(tmp_path: Path, launch: str, model: str, *more: str) -> list[str]:
    (tmp_path / "short.toml").write_text(WORDS + "".join(SHOT.format(key=key) for key in "aba"))
    return [
        "policy.kind=http",
        "policy.options={}",
        f"policy.model={model}",
        f"policy.launch={launch}",
        "policy.launch_timeout=300",
        "env.name=tests.explore.envs:Doors",
        "env.options={depth=3}",
        f"prompts={tmp_path / 'short.toml'}",
        "strategies=['tree']",
        "tasks.train=3",
        "tasks.test=2",
        "explore.limits.policy_calls=8",
        "explore.stop_when=budget",
        "explore.horizon=4",
        "explore.max_depth=3",
        "explore.concurrency=2",
        *more,
    ]


class Killer(threading.Thread):
    """Kills the server with SIGKILL as soon as the journal holds an episode. `pid`: of the server
    that it killed."""

    def __init__(self, run: Path) -> None:
        super().__init__(daemon=True)
        self.run_folder, self.pid, self.over = run, 0, threading.Event()

    def run(self) -> None:
        from leafe.policies.server import _launch

        journal = self.run_folder / "explore/tree/journal-00000.jsonl"
        while not self.over.is_set() and not self.pid:
            if (
                journal.is_file()
                and journal.read_bytes().count(b"\n") > 1
                and _launch._running
                and _launch._running[0].pid
            ):
                self.pid = _launch._running[0].pid
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.05)


def explored_through_a_kill(run: Path, settings: list[str]) -> None:
    killer = Killer(run)
    killer.start()
    try:
        run_recipe(load_recipe("sokoban-smollm2", settings), run, only="explore")
    finally:
        killer.over.set()
        killer.join()
    assert killer.pid
    assert gone(killer.pid)
    done = RunFolder.read(run).done("explore/tree")
    assert done is not None
    assert done["server_restarts"] == 1
    assert done["stops"].get("policy_error", 0) == 0
    turns = [
        t
        for tree in load_trees(run / "explore/tree").values()
        for e in tree.episodes
        for t in e.turns
    ]
    assert len(turns) == done["spent"]["policy_calls"] == 3 * 8
    assert {t.policy for t in turns} == {"base"}
    assert done["spent"]["prompt_tokens"] == sum(t.usage.prompt for t in turns) > 0
    (log,) = (run / "logs").glob("server-*.log")
    assert "was killed by SIGKILL and is started again (1 of 5)" in log.read_text(errors="replace")


def test_llama_cpp_explores_and_outlives_a_kill(tmp_path: Path) -> None:
    needs("xllamacpp")
    launch = f"{shlex.join([sys.executable, LLAMA])} {{checkpoint}} {{port}}"
    extra = ("policy.options.extra={top_k=0, min_p=0.0}",)
    run = tmp_path / "run"
    explored_through_a_kill(run, overrides(tmp_path, launch, str(smollm2.gguf()), *extra))
    done = RunFolder.read(run).done("explore/tree")
    assert done is not None
    (server,) = done["servers"]
    assert server["schema"] == "response_format"
    assert server["seed"] is True
    assert done["spent"]["cached_tokens"] > 0


def test_transformers_serve_goes_from_exploration_to_new_weights(tmp_path: Path) -> None:
    needs("fastapi", "uvicorn", "openai", "transformers", "torch", "peft")
    program = f"{shlex.quote(sys.executable)} -m transformers.cli.transformers"
    launch = (
        f"{program} serve {{checkpoint}} --host 127.0.0.1 --port {{port}} --device cpu --dtype "
        "float32"
    )
    # one door: a success now and then, so that there is something to learn from
    plain = (
        'policy.options.extra={generation_config="{\\"do_sample\\": true, \\"eos_token_id\\": '
        '2, \\"pad_token_id\\": 2}"}'
    )
    settings = overrides(
        tmp_path,
        launch,
        "smollm2",
        plain,
        "evaluate.samples=2",
        "evaluate.k=[1,2]",
        "arms.leafe.distill.max_steps=2",
        "env.options={depth=1}",
    )
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("OMP_NUM_THREADS", "1"),
            ("HF_HUB_OFFLINE", "1"),
            ("HF_HOME", str(tmp_path / "hf")),
        ):
            patch.setenv(name, value)
        explored_through_a_kill(run, settings)
        run_recipe(load_recipe("sokoban-smollm2", settings), run)
    checkpoint = run.absolute() / "distill/leafe/checkpoint"
    logs = sorted((run / "logs").glob("server-*.log"), key=lambda p: p.stat().st_mtime)
    assert [f"serve {checkpoint} " in log.read_text(errors="replace") for log in logs] == [
        False,
        False,
        True,
    ]
    for row, weights in (("base", str(smollm2.path())), ("leafe", str(checkpoint))):
        turns = [
            t
            for tree in load_trees(run / "evaluate" / row).values()
            for e in tree.episodes
            for t in e.turns
        ]
        assert {t.policy for t in turns} == {row}
        assert weights in logs[1 if row == "base" else 2].read_text(errors="replace")
    done = RunFolder.read(run).done("evaluate/leafe")
    assert done is not None
    assert done["servers"][0]["schema"] is None  # transformers serve knows no schema, and says so
