"""Checks that games can be won, in a process that is killed if the planner hangs.

python -m leafe.envs.alfworld._planner         reads and writes one JSON value a line

A request is `{"game": FILE, "core": PDDL}`. The answer is the commands that win the whole game, or
null. The plan is made on the core (the game without what its goal does not name) and then played in
the whole game, which must report that it is won.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from leafe.core.processes import with_default_signals
from leafe.core.secret import inherited
from leafe.envs.alfworld._engine import Engine


class Planner:
    """The planner's process, started at the first request and again after it was killed."""

    def __init__(
        self,
        seconds: float,
        command: tuple[str, ...] = (sys.executable, "-m", "leafe.envs.alfworld._planner"),
    ) -> None:
        self.seconds = seconds
        """Limit for one game; a planner that takes longer is killed."""
        self.command = command
        self._process: subprocess.Popen[bytes] | None = None

    def win(self, game: Path, core: str) -> list[str] | None:
        """The commands that win a game; None if the planner finds none, takes too long or dies."""
        process = self._process
        if process is None or process.poll() is not None:
            # the planner's operators, and so the plan, depend on PYTHONHASHSEED
            environment = inherited() | {
                "PYTHONHASHSEED": "0",
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(sys.path),
            }
            process = self._process = subprocess.Popen(
                with_default_signals(self.command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"game": str(game), "core": core}).encode() + b"\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], self.seconds)
            answer = json.loads(process.stdout.readline()) if ready else None
        except (OSError, json.JSONDecodeError):
            ready, answer = [], None
        if not ready or answer is None:
            self.close()
        return list(answer) if answer else None

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            self._process = None

    def __enter__(self) -> Planner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # the planner logs its search on stdout
    engine = Engine()
    for line in sys.stdin:
        request = json.loads(line)
        engine.start(Path(request["game"]))
        commands = engine.plan(request["core"])
        for command in commands or ():
            engine.act(command)
        answers.write(json.dumps(commands if commands and engine.won else None) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
