"""What the sandbox says of the machine: where it cannot be, one sentence and the remedy; where it
can, what it gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from leafe.cli import _inspect
from leafe.core import UserError
from leafe.core.processes import with_default_signals
from leafe.envs.sandbox import _box, _files, _sandbox, guarantees
from tests.envs.data import needs_sandbox

NO_NAMESPACES = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
user, group = os.getuid(), os.getgid()
assert libc.unshare(0x10000000) == 0
open('/proc/self/setgroups', 'w').write('deny')
open('/proc/self/uid_map', 'w').write(f'0 {user} 1')
open('/proc/self/gid_map', 'w').write(f'0 {group} 1')
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = with_default_signals([sys.executable, "-c", program])
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


@needs_sandbox
def test_where_user_namespaces_are_off_it_is_refused_with_the_remedy() -> None:
    """A namespace whose own limit of further ones is none, as a container that allows none."""
    off = NO_NAMESPACES + "open('/proc/sys/user/max_user_namespaces', 'w').write('0')\n"
    done = run(off + "from leafe.envs import make_env\nmake_env('humaneval')")
    last = done.stderr.strip().splitlines()[-1]
    assert "UserError: The sandbox for model-written code does not work on this machine" in last
    assert "sysctl user.max_user_namespaces" in last
    assert "docs/sandbox.md" in last
    told = run(
        off + "from leafe.envs.sandbox import guarantees\nprint(*guarantees().items())"
    ).stdout
    assert told.startswith("('model-written code', ")
    assert "is not run: The sandbox for" in told


@needs_sandbox
def test_root_of_a_container_with_one_id_has_boxes_of_that_id() -> None:
    done = run(
        NO_NAMESPACES
        + (
            "from leafe.envs.sandbox import guarantees, _box\nprint(_box.host_id(), "
            "guarantees()['boxes belong to'])"
        )
    )
    assert done.stdout.startswith("None the one id of this container"), done.stderr[-500:]


@needs_sandbox
def test_what_it_gives_is_shown_by_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    found = guarantees()
    assert found["model-written code"].startswith("runs in boxes")
    if os.geteuid() == 0:
        assert str(_box.host_id()) in found["boxes belong to"]
    else:
        assert str(os.getuid()) in found["boxes belong to"]
    monkeypatch.setattr(_inspect, "check_envs", lambda *args, **named: True)
    console = Console(record=True, width=300)
    assert _inspect.examine(console)
    shown = console.export_text()
    assert all(what in shown and here in shown for what, here in found.items())


def test_another_kind_of_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sandbox, "seccomp_filter", lambda: None)
    with pytest.raises(
        UserError,
        match=r"There is no sandbox for model-written code on \w+: run on x86_64 or aarch64\.",
    ):
        _sandbox.self_test("fork")


def test_ids_that_somebody_has_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(_box, "_exists", lambda number: number > 65530)
    assert _box.host_id.__wrapped__() in (65530, None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert _box.host_id.__wrapped__() is None


def test_packages_within_a_standard_library_are_hidden(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in an installation without a virtual environment, where HumanEval's file lies beside the
    standard library."""
    for name in ("json", "site-packages", "dist-packages"):
        (tmp_path / name).mkdir()
    (tmp_path / "site-packages" / "HumanEval.jsonl.gz").touch()
    monkeypatch.setattr(_files, "standard_library", lambda: (str(tmp_path),))
    assert _files.hidden() == [str(tmp_path / "site-packages"), str(tmp_path / "dist-packages")]
