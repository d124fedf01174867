"""Environments in another process or on another machine: `Remote` plays one over HTTP, `serve`
offers any environment of leafe's.

A server speaks two protocols for the same sessions. leafe's is JSON over HTTP/1.1 with numbered
calls and snapshots, small enough to be written in any language: docs/remote.md describes it, and
docs/examples/remote_server.py is a server without leafe. OpenEnv's is for its own clients (`/ws`).
`leafe.envs.adapters.openenv` plays other people's OpenEnv servers.

This package imports `leafe.core` and its own part. Importing it loads no server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leafe.envs.remote._client import Remote
from leafe.envs.remote._conformance import check_server
from leafe.envs.remote._wire import MAX_BODY, PROTOCOL

__all__ = ["MAX_BODY", "PROTOCOL", "Remote", "check_server", "serve"]


def serve(
    name: str,
    options: Mapping[str, Any],
    host: str = "127.0.0.1",
    port: int = 0,
    workers: int = 8,
    token: str | None = None,
    idle: float = 1200.0,
) -> None:
    """Serve an environment until SIGTERM or SIGINT, over leafe's protocol and OpenEnv's.

    Prints one line with the address once it answers.

    Args:
        name: The environment, as `leafe.envs.make_env` takes it.
        options: Its options.
        host: The address to listen at; one that others can reach needs a token.
        port: The port; 0 takes any free one.
        workers: The most sessions at a time, each with an environment of its own. One more
            environment answers for the description and the task list.
        token: Every request must bear it; None: only localhost is answered.
        idle: Seconds without a call after which a session is closed.

    Raises:
        UserError: The environment cannot be made, the port cannot be had, or a setting is not
            usable.
    """
    from leafe.envs.remote._server import run

    run(name, options, host=host, port=port, workers=workers, token=token, idle=idle)
