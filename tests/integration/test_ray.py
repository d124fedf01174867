"""Stages on a Ray cluster of two nodes on this machine: nodes, actors and the driver are killed
while they work, and the trees are those of one machine.

The drivers are processes of their own (`leafe run`), the nodes are real raylets. Whatever is killed
here was started here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leafe.pipeline import run_recipe
from leafe.recipes import load_recipe
from leafe.runs import RunFolder, read_journal
from tests.pipeline.test_dispatcher import OVERRIDES, SMALL, fickle
from tests.pipeline.test_run import trees_of

pytestmark = [pytest.mark.real, pytest.mark.slow]
pytest.importorskip("ray")

ROOT = str(Path(__file__).parents[2])
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
MORE = ("tasks.train=40", "tasks.test=10", "explore.concurrency=8", "evaluate.samples=24")
STAGES = ("explore/tree", "evaluate/base")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The local engine's run."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    run_recipe(fickle(*MORE), path)
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head with one CPU. What its actors import is found from the repository."""
    before = dict(os.environ)
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": f"{ROOT}/src:{ROOT}",
        "OMP_NUM_THREADS": "1",
        "RAY_DISABLE_IMPORT_WARNING": "1",
    }
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        yield made
    finally:
        made.shutdown()
        os.environ.clear()
        os.environ |= before


@pytest.fixture
def second(cluster: Any) -> Iterator[Any]:
    """A second node, with one CPU; a test may have killed it."""
    node = cluster.add_node(**{k: v for k, v in NODE.items() if k != "include_dashboard"})
    cluster.wait_for_nodes()
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node, allow_graceful=False)


class Driver:
    """`leafe run` on the cluster (or one that it starts: None), slow enough to be caught at
    work."""

    def __init__(self, folder: Path, address: str | None, *more: str, latency: float = 0.1) -> None:
        self.folder = folder
        self.pids = folder.with_name(folder.name + ".pids")
        self.pids.mkdir(exist_ok=True)
        overrides = [*OVERRIDES, *MORE, "engine=ray", "ray.workers=2", "ray.wait=60", *more]
        overrides += [f"policy.options.latency={latency}", f"policy.options.pids={self.pids}"] + (
            [f"ray.address={address}"] if address else []
        )
        self.command = [
            sys.executable,
            "-m",
            "leafe.cli",
            "run",
            SMALL,
            *overrides,
            "--runs",
            str(folder.parent),
            "--name",
            folder.name,
        ]
        env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {
            "PYTHONPATH": f"{ROOT}/src:{ROOT}",
            "OMP_NUM_THREADS": "1",
        }
        self.log = (folder.parent / f"{folder.name}.log").open("ab+")
        self.process = subprocess.Popen(
            self.command, stdout=self.log, stderr=subprocess.STDOUT, env=env, cwd=folder.parent
        )

    def until_lines(self, stage: str, lines: int) -> None:
        """Until so many lines stand in the journal."""
        until(lambda: len(journal(self.folder, stage)) >= lines or self.process.poll() is not None)
        assert self.process.poll() is None, self.words

    def actors(self) -> list[int]:
        """Actors that were started and live."""
        return [int(p.name) for p in self.pids.iterdir() if alive(int(p.name))]

    def end(self, code: int = 0) -> str:
        assert self.process.wait(timeout=200) == code, self.words
        return self.words

    @property
    def words(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text(errors="replace")

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.log.close()


def journal(folder: Path, stage: str) -> list[tuple[Any, ...]]:
    return list(read_journal(folder / stage)) if (folder / stage).is_dir() else []


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def until(true: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def same(folder: Path, whole: Path, stages: tuple[str, ...] = STAGES) -> None:
    """The trees of the local engine, each episode once."""
    for stage in stages:
        times = Counter((e.task_id, e.index) for line in journal(folder, stage) for e in line)
        assert set(times.values()) == {1}
        assert trees_of(folder, stage) == trees_of(whole, stage)


def done(folder: Path, stage: str) -> dict[str, Any]:
    found = RunFolder.read(folder).done(stage)
    assert found is not None
    return found


@pytest.mark.timeout(300)
def test_two_nodes_find_what_one_machine_finds(
    cluster: Any, second: Any, whole: Path, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    # nobody is answered before both actors ask: one alone could be through before the other has
    # started
    hold.touch()
    with Driver(
        tmp_path / "run", cluster.address, f"policy.options.hold={hold}", latency=0.0
    ) as driver:
        until(lambda: len(list(tmp_path.glob("hold.*"))) == 2)
        hold.unlink()
        driver.end()
        until(lambda: not driver.actors())
    same(tmp_path / "run", whole)
    for stage in STAGES:
        here, there = done(tmp_path / "run", stage), done(whole, stage)
        assert here["ray"] == {"lost_actors": 0, "given_again": 0}
        assert here["policy_failures"]["asked"] == there["policy_failures"]["asked"], (
            "both actors' counts, added up"
        )
    spent = done(tmp_path / "run", "explore/tree")["spent"], done(whole, "explore/tree")["spent"]
    assert {k: v for k, v in spent[0].items() if k != "seconds"} == {
        k: v for k, v in spent[1].items() if k != "seconds"
    }
    assert done(tmp_path / "run", "explore/tree")["stops"] == done(whole, "explore/tree")["stops"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", STAGES)
def test_a_node_that_is_killed_at_work(
    cluster: Any, second: Any, whole: Path, tmp_path: Path, stage: str
) -> None:
    hold = tmp_path / "hold"
    with Driver(tmp_path / "run", cluster.address, f"policy.options.hold={hold}") as driver:
        if stage == "explore/tree":
            driver.until_lines(stage, 3)
        else:
            until(lambda: (tmp_path / "run/explore/tree/done.json").exists())
        hold.touch()  # so that both actors have tasks in hand
        until(lambda: sum(alive(int(p.suffix[1:])) for p in tmp_path.glob("hold.*")) == 2)
        cluster.remove_node(second, allow_graceful=False)
        hold.unlink()
        driver.end()
    same(tmp_path / "run", whole)
    policy_stats = done(tmp_path / "run", stage)["ray"]
    assert policy_stats["lost_actors"] >= 1
    assert policy_stats["given_again"] >= 1


@pytest.mark.timeout(300)
def test_an_actor_that_is_killed_is_replaced(
    cluster: Any, second: Any, whole: Path, tmp_path: Path
) -> None:
    with Driver(tmp_path / "run", cluster.address) as driver:
        for lines in (3, 12):
            driver.until_lines("explore/tree", lines)
            before = driver.actors()
            os.kill(before[0], signal.SIGKILL)
            until(lambda before=before: any(pid not in before for pid in driver.actors()))  # type: ignore[misc]
        driver.end()
    same(tmp_path / "run", whole)
    assert done(tmp_path / "run", "explore/tree")["ray"]["lost_actors"] == 2


@pytest.mark.timeout(300)
def test_a_driver_that_is_killed_goes_on_where_its_journal_ends(
    cluster: Any, second: Any, whole: Path, tmp_path: Path
) -> None:
    for stage, lines in (("explore/tree", 4), ("explore/tree", 15), ("evaluate/base", 1)):
        with Driver(tmp_path / "run", cluster.address) as driver:
            driver.until_lines(stage, lines)
            os.kill(driver.process.pid, signal.SIGKILL)
            driver.process.wait()
            until(lambda driver=driver: not driver.actors())  # type: ignore[misc]  # its actors end with it
    before = [e.to_json() for line in journal(tmp_path / "run", "explore/tree") for e in line]
    with Driver(tmp_path / "run", cluster.address) as driver:
        driver.end()
    same(tmp_path / "run", whole)
    assert [e.to_json() for line in journal(tmp_path / "run", "explore/tree") for e in line][
        : len(before)
    ] == before


@pytest.mark.timeout(300)
def test_a_cluster_of_its_own_ends_with_it(whole: Path, tmp_path: Path) -> None:
    """Without an address; killed in mid-run it leaves no process behind, and the local engine goes
    on with its journal."""
    with Driver(tmp_path / "run", None) as driver:
        driver.until_lines("explore/tree", 3)
        family = offspring(driver.process.pid)
        assert any("raylet" in name for name in family.values())
        os.kill(driver.process.pid, signal.SIGKILL)
        driver.process.wait()
        until(lambda: not any(alive(pid) for pid in family), 150)  # Ray's agents take a minute
    run_recipe(
        fickle(*MORE, f"policy.options.pids={driver.pids}", "policy.options.latency=0.1"),
        tmp_path / "run",
        only="explore",
    )
    same(tmp_path / "run", whole, ("explore/tree",))


@pytest.mark.timeout(300)
def test_a_trained_arm_is_evaluated_by_actors(cluster: Any, tmp_path: Path) -> None:
    """With the embedded model: both stages, and the checkpoint read by the actors."""
    few = ("tasks.train=6", "tasks.test=2")
    run_recipe(load_recipe(SMALL, few), tmp_path / "here")
    run_recipe(
        load_recipe(SMALL, (*few, "engine=ray", "ray.workers=1", f"ray.address={cluster.address}")),
        tmp_path / "there",
    )
    same(
        tmp_path / "there", tmp_path / "here", ("explore/tree", "evaluate/base", "evaluate/leafe+")
    )


@pytest.mark.timeout(300)
def test_mistakes_arrive_as_sentences(cluster: Any, tmp_path: Path) -> None:
    said = {
        "full": (
            ("ray.cpus=64", "ray.wait=3"),
            1,
            "No actor was at work for 3 s: each needs 64 CPU, and the cluster has 1 CPU in all.",
        ),
        "model": (
            ("policy.kind=hf", "policy.options={}", "policy.model=absent/model"),
            2,
            "On the node",
        ),
        "dead": (
            ("policy.options.unheard=x", "policy.kind=tests.gates_policy:Absent"),
            2,
            "the module tests.gates_policy has no Absent",
        ),
    }
    for name, (more, code, words) in said.items():
        with Driver(tmp_path / name, cluster.address, *more) as driver:
            text = driver.end(code)
            assert words in text.replace("\n", " "), text
            assert "Traceback" not in text


@pytest.mark.timeout(300)
def test_a_task_that_kills_its_actor_is_given_up_and_the_others_are_done(
    cluster: Any, second: Any, whole: Path, tmp_path: Path
) -> None:
    deadly = "gates-hard-train-0-5"
    with Driver(
        tmp_path / "run", cluster.address, f"policy.options.deadly={deadly}", latency=0.0
    ) as driver:
        assert f"1 tasks were given up after 5 workers each ({deadly})" in driver.end(1).replace(
            "\n", " "
        )
    found = Counter(e.task_id for line in journal(tmp_path / "run", "explore/tree") for e in line)
    assert set(found) == {e.task_id for line in journal(whole, "explore/tree") for e in line} - {
        deadly
    }


def offspring(pid: int) -> dict[int, str]:
    """The process's descendants and their command lines."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents.setdefault(
                    int((entry / "stat").read_text().rpartition(")")[2].split()[1]), []
                ).append(int(entry.name))
    out: dict[int, str] = {}
    queue = [pid]
    while queue:
        for child in parents.get(queue.pop(), []):
            with contextlib.suppress(OSError):
                out[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
            queue.append(child)
    return out
