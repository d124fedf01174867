"""One request to a server on this machine, from a thread without an event loop."""

from __future__ import annotations

import asyncio
import json
from typing import Any


def fetch(url: str, body: Any = None, key: str = "", timeout_s: float = 30.0) -> tuple[int, bytes]:
    """POST `body` as JSON, or GET where it is None; proxies are not used.

    Args:
        url: The address.
        body: What to send.
        key: An API key for the server; "": none.
        timeout_s: The most seconds until the answer is read.

    Returns:
        (status, body); (0, b"") where there is no answer.
    """
    import aiohttp  # here, so that commands without a server start fast

    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}

    async def go() -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        data = None if body is None else json.dumps(body).encode()
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request("POST" if data else "GET", url, data=data, headers=headers) as answer,
        ):
            return answer.status, await answer.read()

    try:
        return asyncio.run(go())
    except (aiohttp.ClientError, OSError):  # TimeoutError is an OSError
        return 0, b""
