"""The process that forks the programs: it dies and comes back, serves many runs, and ends with what
made it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from leafe.envs.sandbox import Limits, Outcome, Sandbox, _box, _sandbox, restarts
from tests.envs.data import needs_sandbox
from tests.envs.test_sandbox import GOOD, SHORT, TESTS, _boxes, other_boxes


@needs_sandbox
class TestForkServer:
    def test_a_dead_server_is_made_anew_and_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        box = Sandbox(SHORT, way="fork")
        with other_boxes(monkeypatch) as (programs, _, _):
            assert box.run(GOOD, TESTS).outcome is Outcome.passed
            assert restarts() == 0
            os.killpg(programs._idle[0]._popen.pid, signal.SIGKILL)
            assert box.run(GOOD, TESTS).outcome is Outcome.passed
            assert restarts() == 1

    def test_one_that_dies_while_a_program_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        box = Sandbox(Limits(seconds=3, wall_seconds=20), way="fork")
        with other_boxes(monkeypatch) as (programs, _, _), ThreadPoolExecutor(1) as thread:
            started: list[_box.Zygote] = []
            give = _box.Zygote.start
            monkeypatch.setattr(
                _box.Zygote,
                "start",
                lambda zygote, *job: (started.append(zygote), give(zygote, *job))[1],
            )
            run = thread.submit(box.run_script, "import time; time.sleep(1); print(5)", b"")
            while not started:
                time.sleep(0.01)
            os.killpg(started[0]._popen.pid, signal.SIGKILL)
            assert run.result().stdout == b"5\n"
            assert programs.restarts == 1

    def test_the_same_server_serves_many_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        box = Sandbox(SHORT, way="fork")
        with other_boxes(monkeypatch) as (programs, _, tests):
            for program in (
                GOOD,
                "import os; os._exit(1)",
                "while True: print('x')",
                "import os\nfor p in range(9): os.kill(p, 9)",
                GOOD,
            ):
                box.run(program, TESTS)
            assert [len(boxes._idle) for boxes in (programs, tests)] == [1, 1]
            assert restarts() == 0

    def test_close_ends_the_servers_and_a_later_run_makes_new_ones(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_sandbox, "_USERS", weakref.WeakSet())
        with other_boxes(monkeypatch):
            before = _boxes()
            one, two = Sandbox(SHORT, way="fork"), Sandbox(SHORT, way="fork")
            one.run(GOOD, TESTS)
            assert len(_boxes() - before) == 2
            two.close()
            assert len(_boxes() - before) == 2
            one.close()
            one.close()
            assert not _boxes() - before
            assert one.run(GOOD, TESTS).outcome is Outcome.passed
            one.close()

    def test_the_servers_end_with_the_process_that_made_them(self) -> None:
        program = (
            "import os, signal, time\nfrom leafe.envs.sandbox import Sandbox, _sandbox\nbox = "
            "Sandbox(way='fork')\nbox.run('x = 1', ['assert x == 1'])\n"
        )
        program += (
            "print(*[z._popen.pid for b in _sandbox._BOXES['fork'] for z in b._idle], "
            "flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        pids = [int(word) for word in done.stdout.split()]
        assert len(pids) == 2, done.stderr
        until = time.monotonic() + 120
        while any(
            Path(f"/proc/{pid}/cmdline").exists()
            and b"bwrap" in Path(f"/proc/{pid}/cmdline").read_bytes()
            for pid in pids
        ):
            assert time.monotonic() < until
            time.sleep(0.05)

    def test_a_forked_copy_of_this_process_makes_its_own(self) -> None:
        box = Sandbox(SHORT, way="fork")
        box.run(GOOD, TESTS)
        child = os.fork()
        if child == 0:
            good = False
            try:
                good = box.run(GOOD, TESTS).outcome is Outcome.passed
                box.close()
            finally:
                os._exit(0 if good else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert box.run(GOOD, TESTS).outcome is Outcome.passed
