"""Environments by name: every mistake is a sentence that says what to do."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from leafe.core import Environment, StepResult, Task, UserError
from leafe.envs import _registry, describe, env_names, load_tasks, make_env

OWN = '''
from leafe.core import Environment, StepResult, Task

class Coin(Environment):
    """A coin that is flipped."""
    name = "coin"
    splits = ("train", "test")
    horizon = 3
    def __init__(self, side: str = "heads"):
        self.side = side
    def tasks(self, split, count=None, seed=0):
        return [Task("coin-1", "coin", split, "Flip it.")][: 0 if split == "test" else None]
    def reset(self, task, seed):
        return "A coin."
    def step(self, action):
        return StepResult(self.side, done=True)

class Bare(Environment):
    def __init__(self, must):
        pass
    def reset(self, task, seed):
        return "?"
    def step(self, action):
        return StepResult("?")

def not_a_class(): ...
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_coin_env.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_coin_env", raising=False)
    return "my_coin_env:Coin"


def test_names_are_listed_without_importing_an_env() -> None:
    program = (
        "import sys, leafe.envs; print(leafe.envs.env_names()); assert not [m for m in "
        "sys.modules if 'sokoban' in m or 'mbpp' in m or m == 'torch']"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sorted(_registry.BUILTIN))
    assert {
        "alfworld",
        "codecontests",
        "gates",
        "mbpp",
        "scienceworld",
        "sokoban",
        "webshop",
    } <= set(_registry.BUILTIN)


def test_own_env_by_import_path(own: str) -> None:
    env = make_env(own, side="tails")
    task = load_tasks(env, "train")[0]
    env.reset(task, 0)
    assert env.step("flip").observation == "tails"
    info = describe(own)
    assert (info.summary, info.splits, info.horizon, info.options) == (
        "A coin that is flipped.",
        ("train", "test"),
        3,
        {"side": "side: str = 'heads'"},
    )


def test_env_of_an_installed_package(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "entry_points", lambda group: [EntryPoint("coin", own, group)])
    sys.path.append(".")
    assert "coin" in env_names()
    assert make_env("coin").horizon == 3


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("sokobann", {}, "no environment 'sokobann': give one of alfworld, codecontests, gates, "),
        ("", {}, "no environment ''"),
        (":", {}, "no environment ':'"),
        ("a.b:", {}, "no environment 'a.b:'"),
        ("no_such_module:Env", {}, "names the module 'no_such_module', which cannot be found"),
        ("leafe.core:Task", {}, "no class 'Task' that derives from"),
        ("leafe.core:Nothing", {}, "no class 'Nothing' that derives from"),
        ("my_coin_env:not_a_class", {}, "no class 'not_a_class'"),
        (
            "sokoban",
            {"level": "x"},
            "no option 'level': its options are levels, difficulty, horizon",
        ),
        ("my_coin_env:Bare", {}, "needs the option 'must'"),
        ("sokoban", {"difficulty": "easy"}, "no difficulty 'easy': give one of unfiltered, medium"),
        ("sokoban", {"horizon": 0}, "cannot have horizon = 0"),
        ("sokoban", {"horizon": "40"}, "cannot have horizon = '40'"),
    ],
)
def test_mistakes_are_named(own: str, name: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError) as caught:
        make_env(name, **options)
    assert says in str(caught.value)


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch, own: str) -> None:
    Path("needy_env.py").write_text("import surely_not_installed")
    with pytest.raises(UserError, match="run pip install surely_not_installed"):
        make_env("needy_env:Env")
    monkeypatch.setattr(
        _registry, "BUILTIN", {"needy": _registry._Builtin("needy_env:Env", extra="code")}
    )
    with pytest.raises(UserError, match=r"run pip install 'leafe\[code\]'"):
        make_env("needy")


def test_own_envs_import_error_is_not_hidden(own: str) -> None:
    Path("broken_env.py").write_text("from leafe.core import NoSuchName")
    with pytest.raises(ImportError, match="NoSuchName"):
        make_env("broken_env:Env")


def test_task_mistakes(own: str) -> None:
    coin = make_env(own)
    with pytest.raises(UserError, match="no split 'tests': its splits are train, test"):
        load_tasks(coin, "tests")
    with pytest.raises(UserError, match="no task in split 'test'"):
        load_tasks(coin, "test")
    with pytest.raises(UserError, match="task count of 0"):
        load_tasks(coin, "train", 0)

    class NoTasks(Environment):
        name = "none"

        def reset(self, task: Task, seed: int) -> str:
            return "?"

        def step(self, action: str) -> StepResult:
            return StepResult("?")

    with pytest.raises(UserError, match=r"give its class a method tasks\(split, count, seed\)"):
        load_tasks(NoTasks(), "train")


@pytest.mark.parametrize("name", ["gates", "sokoban", "mbpp"])
def test_built_in_envs_describe_themselves(name: str) -> None:
    info = describe(name)
    assert info.summary
    assert info.horizon > 0
    assert info.options
