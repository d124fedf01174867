"""What is published: built from a clean copy, installed into an empty environment, and used from a
folder that knows nothing of the checkout.

The environment holds leafe's base dependencies and nothing else. The embedded demo needs torch: for
it alone all of the tests' packages are put behind them.
"""

from __future__ import annotations

import email
import email.message
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import leafe
from leafe.recipes import recipe_names

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.real]


def run(words: list[str], cwd: Path, env: dict[str, str] | None = None, code: int = 0) -> str:
    done = subprocess.run(
        words,
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, (
        f"{words}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}"
    )
    return done.stdout + done.stderr


def clean_env(**more: str) -> dict[str, str]:
    """Without what points to the checkout or the tests' environment."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("PYTHON", "VIRTUAL_ENV", "LEAFE", "PYTEST"))
    }
    return (
        kept
        | {
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
            "COLUMNS": "160",
            "TOKENIZERS_PARALLELISM": "false",
        }
        | more
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(wheel, sdist): the wheel is built from the unpacked sdist, so that the sdist holds all that
    is needed."""
    pytest.importorskip("hatchling", reason="building wants pip install hatchling")
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(out)], ROOT)
    sdist = next(out.glob("*.tar.gz"))
    with tarfile.open(sdist) as packed:
        packed.extractall(out / "unpacked", filter="data")
    run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        next((out / "unpacked").iterdir()),
    )
    return next(out.glob("*.whl")), sdist


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel, its base dependencies and theirs, and
    nothing else.

    These are links to the tests' own copies, so that nothing is fetched; pip finds them installed,
    reads the wheel's metadata, and is content or not.
    """
    place = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(place, with_pip=True, symlinks=True)
    site = next(place.glob("lib/python*/site-packages"))
    for distribution in needed(built[0]):
        for top in {
            f.parts[0] for f in distribution.files or () if f.parts[0] not in ("..", "__pycache__")
        }:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    run(
        [
            str(place / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--disable-pip-version-check",
            str(built[0]),
        ],
        place,
        clean_env(),
    )
    return place / "bin"


def needed(wheel: Path) -> list[importlib.metadata.Distribution]:
    """What the wheel asks for without extras, and what that asks for, as installed here."""
    found: dict[str, importlib.metadata.Distribution] = {}
    asked = [Requirement(text) for text in metadata_of(wheel).get_all("Requires-Dist", [])]
    while asked:
        requirement = asked.pop()
        if requirement.name in found or (
            requirement.marker and not requirement.marker.evaluate({"extra": ""})
        ):
            continue
        found[requirement.name] = importlib.metadata.distribution(requirement.name)
        asked += [Requirement(text) for text in found[requirement.name].requires or ()]
    assert "torch" not in found
    return list(found.values())


def metadata_of(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as packed:
        return email.message_from_bytes(
            packed.read(next(n for n in packed.namelist() if n.endswith(".dist-info/METADATA")))
        )


def test_the_wheel_holds_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
        entries = wheel.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    about = metadata_of(built[0])
    here = {
        str(p.relative_to(ROOT / "src"))
        for p in (ROOT / "src" / "leafe").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert here - names == set(), "in the checkout and not in the wheel"
    assert {n for n in names if n.split("/")[0] != "leafe" and ".dist-info/" not in n} == set(), (
        "beside the package"
    )
    assert {
        "leafe/py.typed",
        "leafe/embedded/base/model.safetensors",
        "leafe/recipes/demo.toml",
        "leafe/prompts/sets/gates.toml",
    } <= names
    assert "leafe = leafe.cli:main" in entries
    assert (about["Name"], about["Version"]) == ("leafe", leafe.__version__)
    assert about["Requires-Python"] == ">=3.11"
    assert about["License-Expression"] == "Apache-2.0"
    assert not [
        r
        for r in about.get_all("Requires-Dist", [])
        if r.startswith("torch") and "extra ==" not in r
    ], "torch is an extra's"
    assert built[0].stat().st_size < 20_000_000


def test_the_sdist_holds_what_a_packager_wants(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as packed:
        names = {n.partition("/")[2] for n in packed.getnames()}
    assert {
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "CHANGELOG.md",
        "src/leafe/__init__.py",
        "tests/conftest.py",
    } <= names
    assert not [n for n in names if re.match(r"(\.venv|runs|site|dist|\.git)(/|$)", n)]


def test_it_runs_where_nothing_else_is_installed(installed: Path, tmp_path: Path) -> None:
    """Not only its help: environments are listed, one is played, an environment of one's own is
    explored, a report is written; without torch."""
    env = clean_env(PATH=f"{installed}:/usr/bin:/bin", HOME=str(tmp_path))
    assert leafe.__version__ in run(["leafe", "--version"], tmp_path, env)
    where = run(
        [str(installed / "python"), "-c", "import leafe; print(leafe.__file__)"], tmp_path, env
    ).strip()
    assert where.startswith(str(installed.parent)), where
    listed = run(["leafe", "envs"], tmp_path, env)
    assert "gates" in listed
    assert "kept" in run(["leafe", "envs", "check", "gates", "--tasks", "2"], tmp_path, env)
    loads = (
        f"from leafe.recipes import load_recipe\nfor name in {recipe_names()!r}:\n    "
        "load_recipe(name)"
    )
    run([str(installed / "python"), "-c", loads], tmp_path, env)
    (tmp_path / "stand_in.py").write_text(
        "import json\nfrom leafe.core import Completion\n\n\nclass Reader:\n    name = 'reader'\n\n"
        "    async def complete(self, request):\n"
        "        steps = sum(m.role == 'assistant' for m in request.messages)\n"
        "        text = f's{steps - 1} mind it' if "
        "request.messages[-1].content.endswith('reflect') else 'go left'\n"
        "        return [Completion(text, count=request.n)]\n\n"
        "    async def close(self):\n        pass\n"
    )
    changes = [
        "policy.kind=stand_in:Reader",
        "policy.options={}",
        "tasks.train=3",
        "strategies=['tree']",
        "arms={}",
        "controls={}",
        "evaluate.compare=[]",
    ]
    said = run(
        ["leafe", "explore", "demo", *changes, "evaluate.extras={}", "--name", "small"],
        tmp_path,
        env,
    )
    assert "explore/tree" in said
    assert (tmp_path / "runs" / "small" / "explore" / "tree" / "done.json").is_file()
    told = run(["leafe", "demo"], tmp_path, env, code=2)
    assert "pip install 'leafe[hf]'" in told, "without torch the demo says what it needs"
    assert "Traceback" not in told


def test_the_demo_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the demo trains: pip install 'leafe[hf]'")
    behind = [p for p in sys.path if p.endswith("site-packages")]
    env = clean_env(PATH=f"{installed}:/usr/bin:/bin", HOME=str(tmp_path))
    (next(installed.parent.glob("lib/python*/site-packages")) / "zz_torch.pth").write_text(
        "\n".join(behind) + "\n"
    )
    try:
        where = run(
            [str(installed / "python"), "-c", "import leafe, torch; print(leafe.__file__)"],
            tmp_path,
            env,
        ).strip()
        assert where.startswith(str(installed.parent)), where
        small = [
            "tasks.train=8",
            "tasks.test=3",
            "evaluate.samples=4",
            "evaluate.k=[1,4]",
            "evaluate.compare=[]",
            "controls={}",
            "env.options.setting=easy",
        ]
        steps = [
            "explore.limits.policy_calls=30",
            "strategies=['tree']",
            "evaluate.extras={}",
            "arms={'leafe+'={preset='leafe+', distill={max_steps=2}}}",
        ]
        run(["leafe", "demo", *small, *steps, "--jobs", "1"], tmp_path, env)
        page = (tmp_path / "runs" / "demo" / "report.html").read_text("utf-8")
        assert "leafe+" in page
    finally:
        next(installed.parent.glob("lib/python*/site-packages/zz_torch.pth")).unlink()


def test_users_of_the_types_see_them(installed: Path, tmp_path: Path) -> None:
    """py.typed: a type checker reads leafe's own annotations in the environment where it is
    installed."""
    pytest.importorskip("mypy", reason="the type checker is pip install mypy")
    (tmp_path / "uses.py").write_text(
        "from leafe import StepResult\n\nx: int = StepResult('a').observation\n"
    )
    words = [
        sys.executable,
        "-m",
        "mypy",
        "--python-executable",
        str(installed / "python"),
        "--cache-dir",
        str(tmp_path / "cache"),
        "uses.py",
    ]
    said = run(words, tmp_path, clean_env(), code=1)
    assert 'expression has type "str", variable has type "int"' in said
    assert "py.typed" not in said
