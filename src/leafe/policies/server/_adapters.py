"""Load a LoRA adapter into a running server, by the route that the server documents.

vLLM (`/v1/load_lora_adapter`, with VLLM_ALLOW_RUNTIME_LORA_UPDATING, which a launched server has)
serves it as a model of its own name; SGLang (`/load_lora_adapter`, with --enable-lora) as
`BASE:NAME`; llama.cpp takes with each request the strength of the adapters that it was started with
(`/lora-adapters`), so it can switch to one of those and to no other.
"""

from __future__ import annotations

import json
import os
from typing import Any

from leafe.policies.server._fetch import fetch

_LOADING_S = 300.0


def load_adapter(
    base_url: str, base_model: str, name: str, path: str, key: str = ""
) -> tuple[str, dict[str, Any]] | None:
    """Load an adapter, within five minutes.

    Args:
        base_url: The server's address, which ends in /v1.
        base_model: What the server calls its base model.
        name: What the adapter is to be called.
        path: The adapter's folder or file.
        key: The server's API key.

    Returns:
        (model, extra fields) of requests that reach the adapter; None where the server has no route
        for adapters.
    """
    root = base_url.removesuffix("/v1")
    body = {"lora_name": name, "lora_path": path}
    loaded = _result(f"{base_url}/load_lora_adapter", body, key)
    if loaded is not None:
        return name, {}
    loaded = _result(f"{root}/load_lora_adapter", body, key)
    if loaded is not None and not (isinstance(loaded, dict) and loaded.get("success") is False):
        return f"{base_model}:{name}", {}
    held = _result(f"{root}/lora-adapters", None, key)
    adapters: list[Any] = held if isinstance(held, list) else []
    for adapter in adapters:
        if (
            isinstance(adapter, dict)
            and isinstance(adapter.get("path"), str)
            and os.path.realpath(adapter["path"]) == os.path.realpath(path)
        ):
            return base_model, {
                "lora": [{"id": a["id"], "scale": float(a is adapter)} for a in adapters]
            }
    return None


def _result(url: str, body: dict[str, Any] | None, key: str) -> Any:
    """The answer, a text where it is no JSON; None where the server refuses. An adapter that is
    loaded already counts as loaded."""
    status, raw = fetch(url, body, key, _LOADING_S)
    text = raw.decode("utf-8", "replace")
    refusal = text.lower()
    if status != 200 and not (status == 400 and "already" in refusal and "loaded" in refusal):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
