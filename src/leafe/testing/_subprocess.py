"""Episodes played again in another process, under another hash seed.

python -m leafe.testing._subprocess < job.json
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leafe.core import StepResult, Task
from leafe.core.answers import observation_text, step_result
from leafe.core.processes import with_default_signals
from leafe.core.secret import inherited

TIMEOUT = 3600.0
"""Seconds for all episodes of one process."""


@dataclass(frozen=True, slots=True)
class Spec:
    """How to make the environment again: a name or `package.module:Class`, and plain options."""

    env: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SubprocessResult:
    """What the other process observed."""

    episodes: list[list[str]]
    """Of each episode, a fingerprint of the first observation and of each answer."""
    memory: int
    """Bytes (proportional set size) of the environment's own processes, else what the environment
    added to the other process."""
    left: int
    """Processes that were still alive after `close`."""


def fingerprint(answer: str | StepResult) -> str:
    """A hash of everything in an answer that is compared."""
    compared = answer if isinstance(answer, str) else compared_fields(answer)
    return hashlib.blake2b(json.dumps(compared).encode(), digest_size=8).hexdigest()


def compared_fields(result: StepResult) -> tuple[Any, ...]:
    """All fields but `info`."""
    return (
        result.observation,
        result.reward,
        result.done,
        result.success,
        result.valid,
        result.progress,
    )


def play_in_subprocess(
    spec: Spec, episodes: Sequence[tuple[Task, int, Sequence[str]]], hash_seed: int
) -> SubprocessResult | str:
    """Play the episodes (task, seed, actions) in a new process; a sentence if that failed."""
    job = {
        "path": sys.path,
        "env": spec.env,
        "options": dict(spec.options),
        "episodes": [
            {"task": task.to_json(), "seed": seed, "actions": list(actions)}
            for task, seed, actions in episodes
        ],
    }
    try:
        done = subprocess.run(
            with_default_signals([sys.executable, "-m", "leafe.testing._subprocess"]),
            input=json.dumps(job),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
            env=inherited(spec.options.get("env_vars") or (), PYTHONHASHSEED=str(hash_seed)),
        )
    except subprocess.TimeoutExpired:
        return f"gave no answer within {TIMEOUT:g} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return (
            f"ended with status {done.returncode}: {lines[-1] if lines else 'no output on stderr'}"
        )
    return SubprocessResult(**json.loads(done.stdout))


def main() -> None:
    """Play the job on stdin, and print its result."""
    job = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the environment must not print into the result
    sys.path[:] = job["path"]
    from leafe.envs import make_env

    before = memory_of(os.getpid())
    env = make_env(job["env"], **job["options"])
    episodes = []
    for episode in job["episodes"]:
        first = env.reset(Task.from_json(episode["task"]), episode["seed"])
        seen = [fingerprint(observation_text(first, env.name))]
        for action in episode["actions"]:
            seen.append(fingerprint(step_result(env.step(action), env.name)))
        episodes.append(seen)
    children = descendants(os.getpid())
    memory = sum(map(memory_of, children)) if children else max(0, memory_of(os.getpid()) - before)
    env.close()
    deadline = time.monotonic() + 5
    while (left := descendants(os.getpid())) and time.monotonic() < deadline:
        time.sleep(0.05)
    json.dump({"episodes": episodes, "memory": memory, "left": len(left)}, out)
    out.close()
    os._exit(0)  # a thread of the environment may never end


def descendants(pid: int) -> list[int]:
    """Living processes below `pid`; none on a system without /proc."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it just ended
            continue
        if fields[0] != "Z":
            parents.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found, waiting = [], [pid]
    while waiting:
        below = parents.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def memory_of(pid: int) -> int:
    """Proportional set size in bytes: shared pages count by their share. 0 if unknown."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    main()
