"""The command line's surface and its exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leafe.cli import app

COMMANDS = {"demo", "run", "explore", "distill", "evaluate", "report", "envs", "doctor"}


def leafe(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "leafe.cli", *arguments], capture_output=True, text=True, cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_the_surface_is_frozen() -> None:
    import typer.main

    command = typer.main.get_command(app)
    assert set(command.commands) == COMMANDS  # type: ignore[attr-defined]
    options = {o for p in command.commands["run"].params for o in p.opts}  # type: ignore[attr-defined]
    assert options == {"recipe", "overrides", "--name", "--runs", "--fresh", "--jobs"}


def test_help_lists_every_command() -> None:
    out = CliRunner().invoke(app, ["--help"]).output
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nothing"), "There is no recipe 'nothing'"),
        (("run", "demo", "explore.depht=3"), "did you mean 'depth'"),
        (("run", "demo", "tasks.train=many"), "tasks.train"),
        (("run", "demo", "world.name=mars", "jobs=1"), "There is no world 'mars'"),
        (("run", "demo", "world.options.setting=huge", "jobs=1"), "no setting 'huge'"),
        (("run", "demo", "world.options.size=3", "jobs=1"), "no option 'size'"),
        (("run", "demo", "tasks.train_split=dev", "jobs=1"), "no split 'dev'"),
        (("run", "demo", "policy.kind=oracle", "jobs=1"), "oracle"),
        (("run", "demo", "policy.options.colour=red", "jobs=1"), "colour"),
        (("run", "demo", "prompts=absent", "jobs=1"), "no prompt set 'absent'"),
        (("distill", "demo"), "needs explore/"),
        (("report", "absent"), "absent is not a run folder"),
    ],
)
def test_users_mistakes_are_one_sentence_and_exit_code_2(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = leafe(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_no_endpoint_is_one_sentence(tmp_path: Path) -> None:
    endpoint = ("policy.kind=http", "policy.options={base_url='http://127.0.0.1:9/v1', model='m', retries=0}")
    done = leafe("explore", "demo", *endpoint, "jobs=1", "tasks.train=2", cwd=tmp_path)
    assert done.returncode in (1, 2), done.stderr
    assert "127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


def test_envs_and_doctor_print_every_world(tmp_path: Path) -> None:
    listed = leafe("envs", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert all(name in listed.stdout for name in ("gates", "sokoban", "mbpp"))
    examined = leafe("doctor", cwd=tmp_path)
    assert examined.returncode == 0, examined.stdout + examined.stderr
    assert "plays" in examined.stdout
