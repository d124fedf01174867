"""One event loop in a daemon thread, shared by every environment that talks to a server: the
`Environment` contract is synchronous, aiohttp is not."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the loop and wait for it, from any thread."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except BaseException:  # an interrupt of the waiting thread ends the work too
        future.cancel()
        raise


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(_report)
    threading.Thread(target=loop.run_forever, name="leafe.envs.remote", daemon=True).start()
    return loop


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An environment that nobody closed is collected in silence, as its connection is."""
    if not context["message"].startswith("Unclosed"):
        loop.default_exception_handler(context)


os.register_at_fork(after_in_child=_loop.cache_clear)  # the thread does not live in the child
