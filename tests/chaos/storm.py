"""Runs `leafe explore` again and again while it breaks what the run depends on, by a seed; ends
only what it started, by process handles."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from leafe.core import Tree
from leafe.explore import EnvPool, ExploreConfig, explore
from leafe.prompts import Prompts, PromptSet
from leafe.recipes import Recipe, load_recipe
from leafe.runs import load_trees
from tests.chaos.endpoint import PLACES, RATES, Counters
from tests.chaos.envs import Oracle, Quick
from tests.chaos.machine import (
    MARK,
    fill_disk,
    free_port,
    is_marked,
    marked_processes,
    read_proc,
    signal_and_close,
    small_disk,
)
from tests.chaos.verify import Verdict, tasks_of, verify

ROOT = Path(__file__).parents[2]
DEADLINE_S = 6.0
"""Of a request with all its retries: an outage that is longer ends episodes."""
CONCURRENCY = 24
"""Tasks in flight: an outage ends so many episodes at a time."""
BODIES = ("Forked", "Hosted", "Quick")
OUTAGE = "outage beyond the deadline"
EVERY_S = {
    "kill an environment's process": 1.0,
    "stop an environment's process (hangs)": 9.0,
    "kill the run": 14.0,
    "interrupt the run": 45.0,
    "suspend the run": 15.0,
    "kill the endpoint and start it again": 8.0,
    "stop the endpoint (hangs)": 20.0,
    OUTAGE: 50.0,
    "disk full": 20.0,
    "file may not grow": 20.0,
}
"""Mean seconds between two of each."""
CALM_S = 240.0
"""So long may a wave take to end once nothing is broken any more."""

RECIPE = """
name = "chaos"
strategies = ["{strategy}"]
env = {{ name = "tests.chaos.envs:{body}", workers = 4, timeout = 2.0 }}
tasks = {{ train = {tasks} }}
prompts = "{prompts}"

[policy]
kind = "http"
model = "mock"
[policy.options]
base_url = "http://127.0.0.1:{port}/v1"
model = "mock"
api_key_env = ""
timeout_s = 1.0
deadline_s = {deadline}
retries = 60
backoff_s = 0.05

[explore]
limits = {{ policy_calls = 40 }}
stop_when = "budget"
branches_per_reflection = 2
horizon = 12
concurrency = {concurrency}
seed = {seed}
"""


class Failure(AssertionError):
    """The run did what it must not do."""


@dataclass
class Storm:
    """One wave after another until the time is up."""

    folder: Path
    """For everything; emptied by whoever made it."""
    seconds: float
    seed: int = 0
    tasks: int = 120
    """Of each wave."""
    said: Callable[[str], None] = print
    injected: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    """How starts of the run ended."""
    verdict: Verdict = field(default_factory=Verdict)
    waves: int = 0
    answered: int = 0
    skipped: str = ""
    """Why the disk was never full."""
    stormy: float = 0.0
    """Seconds during which things were broken."""

    def run(self) -> None:
        """Every wave is held against its fault-free run; `verdict` sums up."""
        self.chance = random.Random(self.seed)
        self.until = time.monotonic() + self.seconds
        while self.waves == 0 or time.monotonic() < self.until - 5:
            with small_disk(self.folder / f"disk-{self.waves}") as (disk, why):
                self.skipped = self.skipped or why
                began = time.monotonic()
                wave = Wave(
                    self,
                    disk,
                    not why,
                    BODIES[self.waves % len(BODIES)],
                    ("tree", "tree", "refine")[self.waves % 3],
                )
                found = wave.run()
                self.stormy += min(time.monotonic(), wave.until) - began
                self.verdict.add(found)
                self.waves += 1
                self.said(
                    f"wave {self.waves} ({wave.body}, {wave.recipe.strategies[0]}): "
                    f"{wave.starts} starts, {found.episodes} episodes, "
                    f"{sum(found.errors.values())} errors, {time.monotonic() - began:.0f} "
                    f"s, {len(found.problems)} problems"
                )
                if found.problems:
                    return
        outages, errors = self.injected[OUTAGE], sum(self.verdict.errors.values())
        most = 2 * CONCURRENCY * outages + self.verdict.episodes // 50
        if errors > most:
            self.verdict.problems.append(
                f"{errors} errors, where {outages} outages explain {most} at most"
            )

    def table(self) -> str:
        v = self.verdict
        rows = [
            ("injected", "times"),
            *((k, str(n)) for k, n in sorted(self.injected.items(), key=lambda kn: -kn[1])),
        ]
        if self.skipped:
            rows.append((f"disk full: not injected, {self.skipped}", "0"))
        calls = v.turns - v.errors["reflection without an answer"]
        rows += [
            ("", ""),
            ("what it cost", ""),
            (
                "starts of the run, by how they ended",
                ", ".join(f"{n} {k}" for k, n in self.ends.most_common()),
            ),
        ]
        rows += [
            (
                "requests answered for each turn in the journal",
                f"{self.answered / max(1, calls):.2f}",
            ),
            ("steps replayed", str(v.replayed)),
        ]
        rows += [
            (f"episodes that ended in {k}" if "error" in k else k, str(n))
            for k, n in v.errors.items()
            if n
        ]
        rows += [(f"  {words}", str(n)) for words, n in v.words.most_common(12)]
        rows += [
            ("", ""),
            ("what came of it", ""),
            ("seconds in which things were broken", f"{self.stormy:.0f}"),
            (f"tasks, in {self.waves} waves", str(v.tasks)),
            ("episodes", str(v.episodes)),
            ("turns", str(v.turns)),
        ]
        rows += [
            ("the fault-free run's, every turn", str(v.same)),
            ("sound, numbered after an error", str(v.after)),
        ]
        rows += [
            ("tasks given up after errors", str(v.given_up)),
            ("problems", str(len(v.problems))),
        ]
        wide = max(len(k) for k, _ in rows)
        return "\n".join(f"{k:<{wide}}  {n}" for k, n in rows)


class Wave:
    """One exploration from its first start to its end."""

    def __init__(self, storm: Storm, disk: Path, may_fill: bool, body: str, strategy: str) -> None:
        self.storm, self.disk, self.may_fill, self.body, self.chance = (
            storm,
            disk,
            may_fill,
            body,
            storm.chance,
        )
        here = storm.folder / f"wave-{storm.waves}"
        here.mkdir()
        self.notes, self.errors, self.temp = here / "notes", here / "stderr", here / "temp"
        self.temp.mkdir()
        self.counters = Counters(here / "counters")
        self.port = free_port()
        (here / "prompts.toml").write_text('name = "doors"\n')
        self.recipe_path = here / "chaos.toml"
        facts = {
            "strategy": strategy,
            "body": body,
            "tasks": storm.tasks,
            "prompts": here / "prompts.toml",
            "port": self.port,
            "concurrency": CONCURRENCY,
        }
        self.recipe_path.write_text(
            RECIPE.format(**facts, deadline=DEADLINE_S, seed=self.chance.randrange(10**6))
        )
        self.recipe: Recipe = load_recipe(str(self.recipe_path))
        self.mark = uuid.uuid4().hex
        self.until = (
            min(storm.until, time.monotonic() + storm.seconds / len(BODIES)) - DEADLINE_S - 3
        )
        """Then all is put right, and the wave comes to its end."""
        self.due: list[tuple[float, int, Callable[[], None]]] = []
        self.count = itertools.count()
        self.starts = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.endpoint: subprocess.Popen[bytes] | None = None
        self.endpoint_may_start = 0.0
        self.ended_by = ""
        self.closing = False
        self.written = 0
        """Bytes of notes when the run was last started."""
        self.disk_trouble = 0.0
        self.endpoint_trouble = 0.0
        """When it was last known to be there."""

    def run(self) -> Verdict:
        deadline = self.until + CALM_S
        for kind in EVERY_S:
            self._again(kind)
        self._later(
            self.storm.seconds / len(BODIES) * self.chance.uniform(0.2, 0.5),
            lambda: self._break(OUTAGE),
        )  # one at least
        try:
            while not self._step():
                if time.monotonic() > deadline:
                    raise Failure(f"the run does not end: {self._last_words()}")
            self._put_right()
        finally:
            self._end_all()
        self.storm.injected.update({k: self.counters[k] for k in RATES})
        self.storm.answered += self.counters["answered"]
        self._nothing_left()
        return self._verify()

    def _step(self) -> bool:
        """A moment of it; whether the run is done."""
        now = time.monotonic()
        under_way = self.process is not None and self._written() != self.written
        if now > self.until and not self.closing and (under_way or now > self.until + 20):
            # the last start of the run meets an outage too: what that costs is held against the
            # journal
            self.closing = True
            self.storm.injected[OUTAGE] += 1
            self._outage(DEADLINE_S + 2)
            self._later(DEADLINE_S + 3, self._put_right)
        while self.due and self.due[0][0] <= now:
            heapq.heappop(self.due)[2]()
        if self.endpoint is None and now >= self.endpoint_may_start:
            self.endpoint = self._start(
                [
                    "tests.chaos.endpoint",
                    str(self.port),
                    str(self.counters_path),
                    str(self.storm.seed),
                ],
                self.mark + "-endpoint",
            )
        if self.process is None:
            self.starts += 1
            self.ended_by, self.written = "", self._written()
            words = [
                "tests.chaos.run",
                str(self.notes),
                str(self.starts),
                "explore",
                str(self.recipe_path),
                "--runs",
                str(self.disk),
                "--name",
                "run",
            ]
            self.process = self._start(words, self.mark)
        elif (code := self.process.poll()) is not None:
            self.process = None
            self._judge(code)
            if code == 0:
                return True
        time.sleep(0.02)
        return False

    @property
    def counters_path(self) -> Path:
        return self.notes.with_name("counters")

    def _start(self, words: list[str], mark: str) -> subprocess.Popen[bytes]:
        with self.errors.open("wb" if mark == self.mark else "ab") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=os.environ
                | {
                    MARK: mark,
                    "TMPDIR": str(self.temp),
                    "PYTHONWARNINGS": "ignore",
                    "OMP_NUM_THREADS": "1",
                },
            )

    def _judge(self, code: int) -> None:
        """A run may end by our hand, by a failure outside that it names, or because it is done."""
        words = self._last_words()
        if "Traceback" in words and not self.ended_by:
            raise Failure(f"the run ended with code {code}:\n{words}")
        if code == 0:
            self.storm.ends["done"] += 1
        elif self.ended_by:
            self.storm.ends[self.ended_by] += 1
        elif code in (1, 2) and (
            "could not be written" in words
            or "cannot be opened" in words
            or "cannot be made" in words
            or "durable" in words
        ):
            if time.monotonic() > self.disk_trouble + 60:
                raise Failure(f"the disk was never full: {words}")
            self.storm.ends["no room on the disk"] += 1
        elif code == 1 and "in a row failed" in words:
            self.storm.ends["the endpoint or the environments failed again and again"] += 1
        elif code == 1 and ("died at its start" in words or "died in tasks" in words):
            self.storm.ends["no environment at its start"] += 1
        elif code == 2 and ("start the server" in words or "does not work" in words):
            self.storm.ends["no endpoint at its start"] += 1
        else:
            raise Failure(f"the run ended with code {code}: {words}")

    def _last_words(self) -> str:
        return self.errors.read_text(errors="replace")[-6000:] if self.errors.exists() else ""

    # --- what is broken
    # -------------------------------------------------------------------------------------------

    def _again(self, kind: str) -> None:
        self._later(self.chance.expovariate(1 / EVERY_S[kind]), lambda: self._break(kind))

    def _later(self, seconds: float, then: Callable[[], None]) -> None:
        heapq.heappush(self.due, (time.monotonic() + seconds, next(self.count), then))

    def _break(self, kind: str) -> None:
        if time.monotonic() > self.until:
            return
        if (
            self._written() == self.written and self.chance.random() < 0.9
        ):  # it is still starting: most faults wait for what they can break
            self._later(0.5, lambda: self._break(kind))
            return
        self._again(kind)
        if (
            kind
            not in ("kill the endpoint and start it again", "stop the endpoint (hangs)", OUTAGE)
            and self.process is None
        ):
            return
        chance, done = self.chance, True
        match kind:
            case "kill an environment's process":
                done = self._signal_an_env(signal.SIGKILL) is not None
            case "stop an environment's process (hangs)":
                handle = self._signal_an_env(signal.SIGSTOP, keep=True)
                done = handle is not None
                if handle is not None:
                    self._later(6.0, lambda: signal_and_close(handle, signal.SIGCONT))
            case "kill the run" | "interrupt the run":
                assert self.process is not None
                self.ended_by = "killed" if kind == "kill the run" else "interrupted"
                self.process.send_signal(
                    signal.SIGKILL if kind == "kill the run" else signal.SIGINT
                )
            case "suspend the run":
                process = self.process
                assert process is not None
                process.send_signal(signal.SIGSTOP)
                self._later(chance.uniform(0.2, 4.0), lambda: process.send_signal(signal.SIGCONT))
            case "kill the endpoint and start it again" | "outage beyond the deadline":
                wait = (
                    chance.uniform(0.0, 0.7)
                    if kind != OUTAGE
                    else DEADLINE_S + chance.uniform(1.0, 3.0)
                )
                self._outage(wait)
            case "stop the endpoint (hangs)":
                endpoint = self.endpoint
                done = endpoint is not None
                if endpoint is not None:
                    endpoint.send_signal(signal.SIGSTOP)
                    self._later(
                        chance.uniform(0.3, 2.0), lambda: endpoint.send_signal(signal.SIGCONT)
                    )
            case "disk full":
                done = self.may_fill
                if done:
                    fill_disk(self.disk / "ballast")
                    self.disk_trouble = time.monotonic()
                    self._later(chance.uniform(0.3, 2.0), self._free)
            case "file may not grow":
                assert self.process is not None
                with contextlib.suppress(ProcessLookupError):
                    shards = sorted(self.disk.glob("run/explore/*/journal-*.jsonl"))
                    size = shards[-1].stat().st_size if shards else 0
                    resource.prlimit(
                        self.process.pid,
                        resource.RLIMIT_FSIZE,
                        (size + chance.randrange(3000), resource.RLIM_INFINITY),
                    )
                self.disk_trouble = time.monotonic()
            case _:
                raise AssertionError(kind)
        self.storm.injected[kind] += done

    def _outage(self, seconds: float) -> None:
        if self.endpoint is not None:
            self.endpoint.kill()
            self.endpoint.wait()
            self.endpoint = None
        self.endpoint_may_start = max(self.endpoint_may_start, time.monotonic() + seconds)

    def _written(self) -> int:
        return self.notes.stat().st_size if self.notes.exists() else 0

    def _free(self) -> None:
        (self.disk / "ballast").unlink(missing_ok=True)
        self.disk_trouble = time.monotonic()

    def _signal_an_env(self, what: signal.Signals, keep: bool = False) -> int | None:
        """A handle of the process that got the signal, if there was one."""
        found = [
            pid
            for pid in marked_processes(self.mark)
            if b"leafe.envs.worker._child" in read_proc(pid, "cmdline")
        ]
        if not found:
            return None
        with contextlib.suppress(ProcessLookupError):
            pid = self.chance.choice(found)
            handle = os.pidfd_open(pid)
            if is_marked(pid, self.mark):  # still, now that the number cannot come to mean another
                signal.pidfd_send_signal(handle, what)
                if keep:
                    return handle
                os.close(handle)
                return 0
            os.close(handle)
        return None

    def _put_right(self) -> None:
        """Nothing is broken from here on."""
        if self.counters["calm"]:
            return
        self.counters["calm"] = 1
        for _, _, then in sorted(self.due):
            then()
        self.due.clear()
        self.endpoint_may_start = 0.0
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(
                    self.process.pid,
                    resource.RLIMIT_FSIZE,
                    (resource.RLIM_INFINITY, resource.RLIM_INFINITY),
                )

    def _end_all(self) -> None:
        for process in (self.process, self.endpoint):
            if process is not None:
                process.kill()
                process.wait()
        self.process = self.endpoint = None
        (self.disk / "ballast").unlink(missing_ok=True)

    # --- what is held against it
    # ----------------------------------------------------------------------------------

    def _nothing_left(self) -> None:
        deadline = time.monotonic() + 20
        while left := list(marked_processes(self.mark)):
            if time.monotonic() > deadline:
                names = [(pid, read_proc(pid, "cmdline")) for pid in left]
                raise Failure(f"processes were left behind: {names}")
            time.sleep(0.1)
        files = [*self.temp.rglob("*"), *self.disk.rglob("*.tmp")]
        if files:
            raise Failure(f"files were left behind: {files}")

    def _verify(self) -> Verdict:
        stage = next(self.disk.glob("run/explore/*"))
        done = json.loads((stage / "done.json").read_text())
        notes = self.notes.read_text().splitlines()
        strategy = self.recipe.strategies[0]
        config = self.recipe.explore.model_copy(
            update={"strategy": strategy, "seed": self.recipe.seeds[0]}
        )
        prompts = Prompts(PromptSet(name="doors"), Quick.actions_help)
        return verify(
            load_trees(stage),
            fault_free(config, prompts, self.storm.tasks),
            done,
            notes,
            config,
            prompts,
        )


def fault_free(config: ExploreConfig, prompts: Prompts, tasks: int) -> dict[str, Tree]:
    """The same exploration with the model and the environment in this process."""

    async def main() -> dict[str, Tree]:
        pool = EnvPool(Quick, size=config.concurrency)
        return (await explore(Oracle(), pool, tasks_of(tasks), prompts, config)).trees

    return asyncio.run(main())


assert set(RATES) < set(PLACES)
