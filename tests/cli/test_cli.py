"""The command line's surface and its exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leafe.cli import app

COMMANDS = {
    "demo",
    "run",
    "explore",
    "merge",
    "distill",
    "evaluate",
    "report",
    "envs",
    "view",
    "doctor",
    "export",
    "import",
}


def leafe(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "leafe.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_the_surface_is_frozen() -> None:
    import typer.main

    command = typer.main.get_command(app)
    assert set(command.commands) == COMMANDS  # type: ignore[attr-defined]
    options = {o for p in command.commands["run"].params for o in p.opts}  # type: ignore[attr-defined]
    assert options == {"recipe", "overrides", "--name", "--runs", "--fresh", "--jobs", "--json"}


def test_help_lists_every_command() -> None:
    out = CliRunner().invoke(app, ["--help"]).output
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nothing"), "There is no recipe 'nothing'"),
        (("run", "demo", "explore.max_depht=3"), "did you mean 'max_depth'"),
        (("run", "demo", "tasks.train=many"), "tasks.train"),
        (("run", "demo", "env.name=mars", "jobs=1"), "There is no environment 'mars'"),
        (("run", "demo", "env.options.setting=huge", "jobs=1"), "no setting 'huge'"),
        (("run", "demo", "env.options.size=3", "jobs=1"), "no option 'size'"),
        (
            ("run", "demo", "tasks.train_split=dev", "jobs=1"),
            "has no such split; its splits are train, valid, test",
        ),
        (("run", "demo", "policy.kind=oracle", "jobs=1"), "oracle"),
        (("run", "demo", "policy.options.colour=red", "jobs=1"), "colour"),
        (("run", "demo", "prompts=absent", "jobs=1"), "no prompt set 'absent'"),
        (("distill", "demo"), "needs explore/"),
        (("report", "absent"), "absent is not a run folder"),
    ],
)
def test_users_mistakes_are_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = leafe(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_no_endpoint_is_one_sentence(tmp_path: Path) -> None:
    endpoint = (
        "policy.kind=http",
        "policy.options={base_url='http://127.0.0.1:9/v1', model='m', retries=0}",
    )
    done = leafe("explore", "demo", *endpoint, "jobs=1", "tasks.train=2", cwd=tmp_path)
    assert done.returncode in (1, 2), done.stderr
    assert "127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


def test_envs_lists_every_env(tmp_path: Path) -> None:
    listed = leafe("envs", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert all(
        name in listed.stdout
        for name in (
            "gates",
            "sokoban",
            "mbpp",
            "scienceworld",
            "alfworld",
            "webshop",
            "codecontests",
            "remote",
        )
    )


def test_an_env_is_checked_by_name_and_options(tmp_path: Path) -> None:
    checked = leafe(
        "envs",
        "check",
        "gates",
        "setting=easy",
        "--tasks",
        "3",
        "--markdown",
        "table.md",
        cwd=tmp_path,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "gates setting=easy" in checked.stdout
    assert "9 of 9" in checked.stdout
    head, _, row = (tmp_path / "table.md").read_text().splitlines()
    assert head.startswith("| env | contract |")
    assert row.startswith("| gates setting=easy | kept | 9 of 9 | snapshot |")


def test_a_broken_env_is_said_and_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "import os\nfrom leafe import Environment, StepResult, Task\n"
        "class Broken(Environment):\n"
        "    name = 'broken'\n"
        "    def tasks(self, split, count=None, seed=0): return [Task('b', 'broken', "
        "split, 'Go.')]\n"
        "    def reset(self, task, seed): return f'process {os.getpid()}'\n"
        "    def step(self, action): return StepResult('no', valid=action == 'go')\n"
        "    def valid_actions(self): return ['go']\n"
    )
    checked = leafe("envs", "check", "broken:Broken", cwd=tmp_path)
    assert checked.returncode == 1, checked.stdout + checked.stderr
    assert "BROKEN: other processes" in checked.stdout
    assert "the answer to reset is another one" in checked.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "mars"), "There is no environment 'mars'"),
        (("check", "gates", "size=3"), "no option 'size'"),
        (("check", "gates", "size"), "'size' is not an override"),
        (("check", "remote"), "needs the option 'url'"),
        (("serve", "mars"), "There is no environment 'mars'"),
        (("serve", "gates", "--token-env", "SURELY_NOT_SET"), "SURELY_NOT_SET holds no token"),
        (("serve", "gates", "--host", "0.0.0.0"), "token"),
    ],
)
def test_mistakes_with_envs(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = leafe("envs", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.real
def test_doctor_plays_in_every_env_that_is_ready(tmp_path: Path) -> None:
    examined = leafe("doctor", cwd=tmp_path)
    assert examined.returncode == 0, examined.stdout + examined.stderr
    assert examined.stdout.count("kept") >= 5
    assert "Not ready here:" in examined.stdout
    assert "remote: The environment 'remote' needs the option 'url'" in examined.stdout


SILENT = """
from leafe.core import Environment, StepResult, Task

class Silent(Environment):
    name, quick = "silent", True
    def tasks(self, split, count=None, seed=0):
        return [Task(f"{split}-{i}", "silent", split, "Say a.") for i in range(count or 5)]
    def reset(self, task, seed):
        return "Say a."
    def step(self, action):
        ok = action in ("a", "b c")
        return StepResult("Done." if ok else "What?", done=ok, success=action == "a", valid=ok)
"""


def test_an_environment_without_valid_actions_is_checked_by_actions_of_the_command_line(
    tmp_path: Path,
) -> None:
    (tmp_path / "silent.py").write_text(SILENT)
    (tmp_path / "actions.txt").write_text("a\nb c\n\n")
    refused = leafe("envs", "check", "silent:Silent", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--actions" in refused.stderr + refused.stdout
    assert "valid_actions" in refused.stderr + refused.stdout
    for given in (("--actions", "a", "--actions", "b c"), ("--actions", "@actions.txt")):
        checked = leafe("envs", "check", "silent:Silent", "--tasks", "2", *given, cwd=tmp_path)
        assert checked.returncode == 0, checked.stdout + checked.stderr
    absent = leafe("envs", "check", "silent:Silent", "--actions", "@absent.txt", cwd=tmp_path)
    assert absent.returncode == 2
