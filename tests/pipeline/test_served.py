"""The policy behind a server that leafe starts: its options come first, and its adapter comes
back."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from leafe.core import Message, PolicyError, Request, UserError
from leafe.pipeline._served import served_policy
from leafe.policies.server import stop_all
from leafe.recipes import Recipe, load_recipe

FAKE = str(Path(__file__).parents[1] / "fake_server.py")
SMALL = str(Path(__file__).with_name("small.toml"))
ASK = Request((Message("user", "who are you?"),), seed=7)


def recipe(*flags: str, more: tuple[str, ...] = ()) -> Recipe:
    launch = f"{shlex.join([sys.executable, FAKE])} {{checkpoint}} {{port}} {' '.join(flags)}"
    options = ["policy.options.backoff_s=0.1", "policy.options.retries=8"]
    return load_recipe(SMALL, ["policy.kind=http", f"policy.launch={launch}", *options, *more])


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    stop_all()


def adapter(folder: Path) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return str(folder)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_an_adapter_is_loaded_again_when_its_server_was_started_again(
    kind: str, tmp_path: Path
) -> None:
    weights = adapter(tmp_path / "adapter")

    async def go() -> list[str]:
        policy = await served_policy(recipe("--lora", kind), tmp_path, weights, "arm")
        said = []
        for round_ in range(3):
            if round_:
                os.kill(pid_of(tmp_path), signal.SIGKILL)
            answers = await asyncio.gather(*(policy.complete(ASK) for _ in range(8)))
            said += [c.text for got in answers for c in got]
        await policy.close()
        return said

    assert asyncio.run(go()) == [f"I am {weights}; 7."] * 24
    (log,) = (tmp_path / "logs").glob("server-*.log")
    assert log.read_text().count(f"from {weights}") == 3


def pid_of(folder: Path) -> int:
    """Of the server that runs now."""
    (log,) = (folder / "logs").glob("server-*.log")
    last = [line for line in log.read_text().splitlines() if line.startswith("fake server ")][-1]
    return int(last.split()[2])


def test_a_restarted_server_that_no_longer_takes_the_adapter_is_a_failure_from_outside(
    tmp_path: Path,
) -> None:
    weights = adapter(tmp_path / "adapter")

    async def go() -> None:
        policy = await served_policy(recipe("--lora", "vllm"), tmp_path, weights, "arm")
        (Path(weights) / "adapter_config.json").unlink()
        (Path(weights) / "adapter_model.safetensors").unlink()
        Path(weights).rmdir()
        os.kill(pid_of(tmp_path), signal.SIGKILL)
        with pytest.raises(PolicyError, match="does not take the adapter any more"):
            await policy.complete(ASK)
        await policy.close()

    asyncio.run(go())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("policy.options.timeout_s=0", "timeout_s = 0"),
        ("policy.options.extra=x", "extra"),
        ("policy.options.hedge=0.1", "hedge"),
        ("policy.options.temprature=1", "temprature"),
    ],
)
def test_options_are_checked_before_a_server_is_started(
    change: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        asyncio.run(served_policy(recipe(more=(change,)), tmp_path, "weights", "base"))
    assert not (tmp_path / "logs").exists()
