"""Episodes played again in another process: with another hash seed, another memory, and a clean
count of what is left at the end.

python -m leafe.testing._subprocess < what to play (JSON)
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

SECONDS = 3600.0
"""For all episodes of one such process."""


@dataclass(frozen=True, slots=True)
class Spec:
    """How to make the environment anew: a name or `package.module:Class`, and its options (plain
    values)."""

    env: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What the other process saw."""

    episodes: list[list[str]]
    """A fingerprint of o_0 and of each answer."""
    memory: int
    """Bytes (proportional set size): of the environment's own processes where it has some, else
    what the environment added to this one."""
    left: int
    """Processes that were still there after `close`."""


def fingerprint(said: str | StepResult) -> str:
    """Of all that is compared in an answer."""
    what = (
        said
        if isinstance(said, str)
        else [said.observation, said.reward, said.done, said.success, said.valid, said.progress]
    )
    return hashlib.blake2b(json.dumps(what).encode(), digest_size=8).hexdigest()


def play_elsewhere(
    spec: Spec, episodes: Sequence[tuple[Task, int, Sequence[str]]], hash_seed: int
) -> Elsewhere | str:
    """The episodes (task, seed, actions) in a process of their own; a sentence where it failed."""
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
            timeout=SECONDS,
            env=inherited(spec.options.get("env_vars") or (), PYTHONHASHSEED=str(hash_seed)),
        )
    except subprocess.TimeoutExpired:
        return f"gave no answer within {SECONDS:g} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return f"ended with status {done.returncode}: {lines[-1] if lines else 'without a word'}"
    return Elsewhere(**json.loads(done.stdout))


def main() -> None:
    job = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what an environment prints is not the answer
    sys.path[:] = job["path"]
    from leafe.envs import make_env

    before = memory_of(os.getpid())
    env = make_env(job["env"], **job["options"])
    episodes = []
    for episode in job["episodes"]:
        seen = [
            fingerprint(
                observation_text(
                    env.reset(Task.from_json(episode["task"]), episode["seed"]), env.name
                )
            )
        ]
        seen += [
            fingerprint(step_result(env.step(action), env.name)) for action in episode["actions"]
        ]
        episodes.append(seen)
    theirs = descendants(os.getpid())
    memory = sum(map(memory_of, theirs)) if theirs else max(0, memory_of(os.getpid()) - before)
    env.close()
    deadline = time.monotonic() + 5
    while (left := descendants(os.getpid())) and time.monotonic() < deadline:
        time.sleep(0.05)
    json.dump({"episodes": episodes, "memory": memory, "left": len(left)}, out)
    out.close()
    os._exit(0)  # an environment's thread that never ends would keep the process


def descendants(pid: int) -> list[int]:
    """Living processes below this one; none on a system without /proc."""
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
    """Proportional set size in bytes: shared pages count by their share. 0 where the system does
    not say."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    main()
