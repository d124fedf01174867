"""Give a running server new weights without starting it again: a LoRA adapter, by the route that
the server documents.

vLLM (`/v1/load_lora_adapter`, with VLLM_ALLOW_RUNTIME_LORA_UPDATING, which a launched server has)
serves it as a model of its own name;
SGLang (`/load_lora_adapter`, with --enable-lora) as `BASE:NAME`; llama.cpp lists what it was
started with (`/lora-adapters`) and takes the strength of
each with a request, so it can switch to an adapter that it was given at its start and to no other.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Any

_LOADING_S = 300.0


def load_adapter(
    base_url: str, base_model: str, name: str, path: str, key: str = ""
) -> tuple[str, dict[str, Any]] | None:
    """(model, extra fields of the request) with which requests reach the adapter in the folder or
    file `path`; None where the server knows no such route.

    `base_url` ends in /v1; `name` is what the adapter is to be called. A call takes as long as the
    server needs to read the adapter, at most five minutes.
    """
    root = base_url.removesuffix("/v1")
    body = {"lora_name": name, "lora_path": path}
    loaded = _ask(f"{base_url}/load_lora_adapter", body, key)
    if loaded is not None:
        return name, {}
    loaded = _ask(f"{root}/load_lora_adapter", body, key)
    if loaded is not None and not (isinstance(loaded, dict) and loaded.get("success") is False):
        return f"{base_model}:{name}", {}
    held = _ask(f"{root}/lora-adapters", None, key)
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


def _ask(url: str, body: dict[str, Any] | None, key: str) -> Any:
    """The answer (a text where it is no JSON); None where the server does not answer with 200. An
    adapter of that name that is there already counts."""
    headers = {"Content-Type": "application/json"} | (
        {"Authorization": f"Bearer {key}"} if key else {}
    )
    request = urllib.request.Request(
        url, None if body is None else json.dumps(body).encode(), headers
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=_LOADING_S
        ) as answer:
            text = answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        said = error.read(2000).decode("utf-8", "replace").lower()
        return said if error.code == 400 and "already" in said and "loaded" in said else None
    except (OSError, ValueError):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
