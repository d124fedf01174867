"""Every environment of the registry keeps the contract, played as `leafe envs check` plays it, with
what lies on this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leafe.core import UserError
from leafe.envs import describe, env_names, make_env
from leafe.testing import check_environment

SERVED = {"remote", "openenv"}
"""Environments that need a server: the first has its own test below, the second in tests/envs."""
MADE = {"alfworld"}
"""Environments whose data is made first."""


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(env_names()) - SERVED - MADE))
def test_the_env_keeps_its_contract(name: str) -> None:
    options = dict(describe(name).example)
    try:
        make_env(name, **options).close()
    except UserError as error:
        pytest.skip(f"{name} is not ready here: {error}")
    report = check_environment(name, options=options, count=4, steps=12)
    assert report.problems == []
    assert report.replayed == 12
    assert not report.skipped.keys() & {"replay", "other processes", "close", "invalid actions"}


@pytest.fixture(scope="module")
def alfworld_games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("alfworld")
    from leafe.envs.alfworld import make_games

    folder = tmp_path_factory.mktemp("games") / "made"
    make_games(folder, games=6, seed=5)
    return folder


@pytest.mark.real
@pytest.mark.slow
def test_made_games_keep_the_contract(alfworld_games: Path) -> None:
    report = check_environment("alfworld", options={"data": str(alfworld_games)}, count=3, steps=12)
    assert report.problems == []
    assert report.rollback_method == "fork"
    assert report.replayed == 3 * report.episodes


@pytest.fixture
def served() -> Iterator[str]:
    import subprocess
    import sys

    server = subprocess.Popen(
        [sys.executable, "-m", "leafe.cli", "envs", "serve", "gates", "setting=easy"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        found: list[str] = []
        reader = threading.Thread(target=lambda: found.append(server.stdout.readline()))  # type: ignore[union-attr]
        reader.start()
        reader.join(60)
        assert found, "the server did not say where it is"
        yield found[0].split()[-1]
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.real
def test_a_served_env_keeps_the_contract(served: str) -> None:
    options: dict[str, Any] = {"url": served}
    report = check_environment("remote", options=options, count=4, steps=12)
    assert report.problems == []
    assert report.env == "gates"
