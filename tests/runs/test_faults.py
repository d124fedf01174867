"""Faults from outside: processes killed in mid-write, disks that fill up, two processes on one
journal."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leafe.core import UserError
from leafe.runs import Journal, RunFolder, load_trees, read_journal, write_tasks
from tests.trees import make_task

WRITER = """
import sys
from pathlib import Path
from leafe.core import Episode, JournalError, Kind, Stop, Turn, turn_id
from leafe.runs import Journal, load_trees

def episode(index):
    # a few KB, so that a kill finds a line half written now and then
    turn = Turn(turn_id("t0", index, 0), None, "t0", 0, Kind.act, "x" * 50_000, str(index))
    return Episode("t0", index, Stop.failure, (turn,))

folder = Path(sys.argv[1])
done = len(load_trees(folder)["t0"].episodes)
"""

KILLED = (
    WRITER
    + """
with Journal(folder, shard_bytes=300_000) as journal:
    for index in range(done, 10_000):
        journal.append([episode(index)])
        print(index, flush=True)
"""
)

FULL = (
    WRITER
    + """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[2]) if len(sys.argv) > 2 else resource.RLIM_INFINITY
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
with Journal(folder) as journal:
    index = done
    while True:
        try:
            journal.append([episode(index)])
            index += 1
        except JournalError as error:
            print(error)
            break
    assert len(load_trees(folder)["t0"].episodes) == index, "a failed write left something behind"
    for ballast in folder.glob("ballast"):
        ballast.unlink()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    journal.append([episode(index)])  # usable on as soon as there is room
    print(index + 1)
"""
)


def run(code: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_at_random_moments_everything_that_was_reported_is_there(tmp_path: Path) -> None:
    write_tasks(tmp_path, [make_task()])
    chance, reported = random.Random(0), -1
    for _ in range(8):
        with run(KILLED, tmp_path) as writer:
            assert writer.stdout is not None
            said = [writer.stdout.readline()]
            time.sleep(chance.uniform(0, 0.05))
            writer.kill()
            said += writer.stdout.readlines()
            assert writer.wait() == -signal.SIGKILL, writer.stderr and writer.stderr.read()
        numbers = [int(line) for line in said if line.endswith("\n")]
        episodes = load_trees(tmp_path)["t0"].episodes
        assert numbers[0] == reported + 1, "resumed elsewhere than where the journal ended"
        assert len(episodes) >= numbers[-1] + 1
        assert [e.turns[0].action for e in episodes] == [str(n) for n in range(len(episodes))]
        reported = len(episodes) - 1
    with Journal(tmp_path) as journal:
        journal.append([])
        assert sum(map(len, journal.read())) == reported + 1


def test_a_full_disk_loses_nothing_and_the_journal_goes_on(tmp_path: Path) -> None:
    write_tasks(tmp_path, [make_task()])
    for limit in (175_000, 350_000):
        with run(FULL, tmp_path, limit) as writer:
            out, err = writer.communicate(timeout=60)
        assert writer.returncode == 0, err
        sentence, count = out.splitlines()
        assert "could not be written (File too large)" in sentence
        assert "journal-00000.jsonl" in sentence
        assert len(load_trees(tmp_path)["t0"].episodes) == int(count)


def test_a_file_system_without_room(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root and the right to mount")
    try:
        write_tasks(small, [make_task()])
        (small / "ballast").write_bytes(b"x" * 100_000)
        with run(FULL, small) as writer:
            out, err = writer.communicate(timeout=60)
        assert writer.returncode == 0, err
        sentence, count = out.splitlines()
        assert "No space left on device" in sentence
        assert int(count) == len(load_trees(small)["t0"].episodes) >= 2
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_second_process_on_one_journal_is_refused(tmp_path: Path) -> None:
    write_tasks(tmp_path, [make_task()])
    with run(KILLED, tmp_path) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(UserError, match="in use"):
            Journal(tmp_path)
        assert next(read_journal(tmp_path))[0].index == 0  # reading is free
        writer.kill()


def test_a_run_killed_before_its_marker_is_not_finished(tmp_path: Path) -> None:
    code = """
import os, sys
from leafe.runs import RunFolder, _folder
run = RunFolder.open(sys.argv[1], {})
(run.stage("eval/base") / "x").write_text("x")
real = os.replace
os.replace = lambda a, b: os.kill(os.getpid(), 9)
run.finish("eval/base", {})
"""
    with run(code, tmp_path) as writer:
        assert writer.wait() == -signal.SIGKILL
    with RunFolder.open(tmp_path, {}) as again:
        assert again.done("eval/base") is None
        again.finish("eval/base", {"n": 1})
        assert again.done("eval/base") == {"n": 1}
