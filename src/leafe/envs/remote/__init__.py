"""An environment in another process or on another machine: one class that plays it over HTTP, and a
server that offers any environment so.

The protocol is JSON over HTTP/1.1 and is small enough to be written in any language in an
afternoon: docs/remote.md says it, and
docs/examples/remote_server.py is a server without leafe.
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
    """Offer the environment `name` with its options at http://host:port until SIGTERM or SIGINT;
    port 0: any free one.

    Prints one line with the address once it answers. At most `workers` sessions at a time, each
    with an environment of its own (and one more environment for
    the task list). A session without a call for `idle` seconds is closed. With a `token`, every
    request must bear it.
    UserError for an environment that cannot be made, a port that cannot be had, and a host that
    others can reach without a token.
    """
    from leafe.envs.remote._server import run

    run(name, options, host=host, port=port, workers=workers, token=token, idle=idle)
