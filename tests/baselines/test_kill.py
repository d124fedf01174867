"""kill -9 in the middle: what was journalled is gone on with, and the end is that of an unbroken
run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.baselines import kill_me
from tests.baselines.doors import episodes, plain


def lines(folder: Path) -> int:
    journal = folder / "journal-00000.jsonl"
    return journal.read_bytes().count(b"\n") if journal.is_file() else 0


@pytest.mark.parametrize("what", ["ace", "early"])
def test_killed_by_the_system(what: str, tmp_path: Path) -> None:
    run = {"ace": kill_me.grow, "early": kill_me.gather}[what]
    expected = run(tmp_path / "whole")
    folder = tmp_path / "broken"
    for more in (2, 4):  # twice
        before = lines(folder)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.baselines.kill_me", what, str(folder)],
            cwd=Path(__file__).parents[2],
        )
        while lines(folder) < before + more and process.poll() is None:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    kept = lines(folder)
    assert 2 < kept < lines(tmp_path / "whole")
    found = run(folder)
    assert lines(folder) == lines(tmp_path / "whole")
    assert plain(episodes(found.trees.values())) == plain(episodes(expected.trees.values()))
    if what == "ace":
        assert found.playbook == expected.playbook  # type: ignore[union-attr]
    assert found.spent.policy_calls == expected.spent.policy_calls
    assert found.spent.replayed_steps == expected.spent.replayed_steps
