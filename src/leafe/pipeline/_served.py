"""A policy behind a server that leafe starts by the recipe's launch command.

The base policy and every trained arm are served alike. An arm that is a bare LoRA adapter is loaded
into the server of its base model where the server supports that, and loaded again when the server
was restarted; else its folder is served like a checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from leafe.core import Policy, PolicyError, UserError
from leafe.policies import make_policy
from leafe.policies.server import Launched, load_adapter, serve
from leafe.recipes import Recipe


async def served_policy(recipe: Recipe, folder: Path, weights: str, name: str) -> Policy:
    """Start a server for the weights and wait until it answers.

    Args:
        recipe: Has `policy.launch`, the command, and the policy's options.
        folder: The run folder; the server's log goes into its `logs`.
        weights: A checkpoint, an adapter's folder or a hub id.
        name: The policy's name, which stands on its turns.
    """
    assert recipe.policy.launch is not None
    options = dict(recipe.policy.options)
    # a wrong option is reported before minutes are spent on a server
    make_policy("http", **{"model": "any", **options, "base_url": "http://127.0.0.1/v1"})
    key_env = options.get("api_key_env", "OPENAI_API_KEY")
    key = os.environ.get(key_env or "", "").strip()

    async def server_for(checkpoint: str) -> tuple[Launched, str]:
        assert recipe.policy.launch is not None
        secrets = [key_env] if key_env else []
        server = await asyncio.to_thread(
            serve,
            recipe.policy.launch,
            checkpoint,
            folder / "logs",
            start_s=recipe.policy.launch_timeout,
            secrets=secrets,
        )
        await server.ready()
        return server, str(options.get("model") or await asyncio.to_thread(server.model_name, key))

    base = _adapter_base(weights)
    found: tuple[str, dict[str, Any]] | None = None
    if base is not None:
        server, model = await server_for(base)
        load = partial(load_adapter, server.base_url, model, _adapter_name(weights), weights, key)
        deaths = server.deaths
        found = await asyncio.to_thread(load)
        ready = _with_adapter(server, load, deaths)
    if found is None:
        server, model = await server_for(weights)
        found, ready = (model, {}), server.ready
    model, extra = found
    options |= {"base_url": server.base_url, "model": model, "name": name, "ready": ready}
    options["extra"] = {**(options.get("extra") or {}), **extra}
    return make_policy("http", **options)


def _with_adapter(
    server: Launched, load: Callable[[], object], deaths: int
) -> Callable[[], Awaitable[None]]:
    """Ready is a server that holds the adapter: one that was started anew has lost it.

    Args:
        server: The server of the base model.
        load: Loads the adapter into it; None where that fails.
        deaths: How often the server had died when the adapter was loaded.

    Returns:
        What is awaited before a request; it raises PolicyError where the adapter cannot be loaded.
    """
    loading = asyncio.Lock()

    async def ready() -> None:
        nonlocal deaths
        await server.ready()
        while deaths != server.deaths:
            async with loading:
                await server.ready()
                now = server.deaths
                if deaths == now:
                    return
                if await asyncio.to_thread(load) is not None:
                    deaths = now
                elif server.deaths == now and server.state == "up":
                    raise PolicyError(
                        f"The server at {server.base_url} was started again and does not take the "
                        f"adapter any more; look at {server.log}."
                    )

    return ready


def _adapter_base(weights: str) -> str | None:
    """The base model that a bare adapter's folder names; None for anything else."""
    folder = Path(weights)
    if not (folder / "adapter_config.json").is_file() or (folder / "config.json").is_file():
        return None
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get(
        "base_model_name_or_path"
    )
    if not isinstance(base, str) or not base:
        raise UserError(f"The adapter {folder} does not name its base model: train it anew.")
    return base


def _adapter_name(weights: str) -> str:
    """Another name for other weights, so that a server which holds an adapter of that name holds
    this one."""
    digest = blake2b(digest_size=6)
    for file in sorted(Path(weights).glob("adapter_*")):
        digest.update(file.name.encode() + file.read_bytes())
    return f"leafe-{digest.hexdigest()}"
