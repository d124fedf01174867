"""The server: addresses to pages, on 127.0.0.1. Nothing is fetched from elsewhere, and what a model
wrote is sent as text alone.

Pages are made in threads. Every answer forbids scripts, styles and connections but the viewer's own
(Content-Security-Policy), and a request that names another host is refused, so that a page on the
web cannot read a run through the user's browser.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sqlite3
import threading
import webbrowser
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from pathlib import Path

from aiohttp import web

from leafe.core import LeafeError, UserError
from leafe.view._follow import Follower, gone
from leafe.view._index import Index
from leafe.view._pages import Pages
from leafe.view._run import Run
from leafe.view._tree_page import NotFound

HOST = "127.0.0.1"
PORT = 8765
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_STATIC = {"view.css": "text/css", "view.js": "text/javascript", "mark.svg": "image/svg+xml"}
_PAGES = web.AppKey("pages", Pages)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve(
    folder: Path,
    port: int | None = None,
    *,
    show: bool = False,
    cache: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the pages of a run until Ctrl-C.

    Args:
        folder: The run folder.
        port: Default: 8765, or a free one where that is in use; 0: a free one.
        show: Open a browser.
        cache: The folder for index files; default: the user's cache.
        say: Called once with the address.

    Raises:
        UserError: The folder is no run of this leafe, or the port is in use.
    """
    bound = listen(port)
    try:
        app = make_app(folder, cache)
    except BaseException:
        bound.close()
        raise
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(app, bound, folder, show, say))


def listen(port: int | None) -> socket.socket:
    """A listening socket of this machine; for the port see `serve`.

    Raises:
        UserError: The port is in use, or is none.
    """
    for each in (PORT, 0) if port is None else (port,):
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((HOST, each))
            bound.listen(64)
            return bound
        except OSError as error:
            bound.close()
            in_use = error.errno == errno.EADDRINUSE
            if in_use and port is None and each:
                continue
            why = "is in use" if in_use else f"cannot be listened on ({error.strerror})"
            raise UserError(
                f"Port {each} of {HOST} {why}: give another one with --port, or --port 0 for any "
                "that is free."
            ) from error
        except OverflowError as error:
            bound.close()
            raise UserError(
                f"There is no port {each}: give one from 1 to 65535, or 0 for any that is free."
            ) from error
    raise AssertionError("port 0 always binds or raises")


def make_app(folder: Path, cache: Path | None = None, *, follow: bool = True) -> web.Application:
    """The viewer of a run as an aiohttp application.

    Args:
        folder: The run folder.
        cache: The folder for index files; default: the user's cache.
        follow: Read the journals as they grow, in a thread.

    Raises:
        UserError: The folder is no run of this leafe.
    """
    path = Path(folder)
    run = Run(path, lambda: follower.notify())
    index = Index(path, cache)
    follower = Follower(index)
    pages = Pages(run, index, follower)
    app = web.Application(middlewares=[_guarded], client_max_size=1 << 16)
    app[_PAGES] = pages
    app.router.add_get("/", _page(lambda request: pages.overview()))
    for name, make in (("tasks", pages.tasks), ("tree", pages.tree)):
        app.router.add_get(f"/{name}/{{stage:.+}}", _page(_of_stage(make)))
    app.router.add_get("/search", _page(lambda request: pages.search(request.query)))
    app.router.add_get("/raw/{stage:.+}", _raw)
    app.router.add_get("/pulse", _pulse)
    app.router.add_get("/static/{name}", _static)

    async def life(app: web.Application):  # type: ignore[no-untyped-def]
        if follow:
            follower.start()
            threading.Thread(target=pages.warm, daemon=True).start()
        yield
        await asyncio.to_thread(follower.stop)
        pages.close()
        index.close()

    app.cleanup_ctx.append(life)
    return app


async def _serve(
    app: web.Application, bound: socket.socket, folder: Path, show: bool, say: Callable[[str], None]
) -> None:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.SockSite(runner, bound).start()
    port = bound.getsockname()[1]
    address = f"http://{HOST}:{port}/"
    say(
        f"{folder}: {address}  (this machine only; from another one: ssh -L "
        f"{port}:{HOST}:{port} THIS-MACHINE). Ctrl-C ends it."
    )
    if show:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
            loop.add_signal_handler(each, ended.set)
    try:
        await ended.wait()
    finally:
        await runner.cleanup()


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Headers on every answer; wrong addresses and failures as pages."""
    pages = request.app[_PAGES]
    port = ":" in request.host.rpartition("]")[2]
    host = request.host.rpartition(":")[0] if port else request.host
    if host not in (HOST, "localhost", "[::1]"):
        answer: web.StreamResponse = web.Response(
            status=421, text=f"This viewer answers at http://{HOST} and http://localhost alone."
        )
    else:
        try:
            answer = await handler(request)
        except NotFound as error:
            answer = await _error(pages, "Not there", str(error), 404)
        except web.HTTPNotFound:
            words = f"The viewer has no page {request.path[:200]}."
            answer = await _error(pages, "Not there", words, 404)
        except web.HTTPException as error:
            answer = web.Response(status=error.status, text=error.reason)
        except (LeafeError, OSError, sqlite3.Error) as error:
            words = gone(pages.index.run) or f"This page cannot be shown: {error}"
            answer = await _error(pages, "Cannot be shown", words, 503)
        except Exception as error:  # a bug: the next page works
            logging.getLogger("leafe.view").exception("%s", request.path_qs)
            words = (
                f"The viewer has a bug ({type(error).__name__}: {error}); the terminal in which it "
                "runs says where."
            )
            answer = await _error(pages, "Cannot be shown", words, 500)
    answer.headers.update(_HEADERS)
    return answer


async def _error(pages: Pages, title: str, words: str, status: int) -> web.Response:
    return _html(await asyncio.to_thread(pages.error, title, words), status)


def _html(text: str, status: int = 200) -> web.Response:
    body = text.encode("utf-8", "replace")
    return web.Response(body=body, status=status, content_type="text/html", charset="utf-8")


def _page(make: Callable[[web.Request], str]) -> Handler:
    """The handler of a page, which is made in a thread."""

    async def handle(request: web.Request) -> web.Response:
        return _html(await asyncio.to_thread(make, request))

    return handle


def _of_stage(
    make: Callable[[str, Mapping[str, str]], str],
) -> Callable[[web.Request], str]:
    return lambda request: make(request.match_info["stage"], request.query)


async def _raw(request: web.Request) -> web.Response:
    text = await asyncio.to_thread(_of_stage(request.app[_PAGES].raw), request)
    body = text.encode("utf-8", "backslashreplace")
    return web.Response(body=body, content_type="text/plain", charset="utf-8")


async def _pulse(request: web.Request) -> web.Response:
    """Whether there is anything new, for pages that are open."""
    pages = request.app[_PAGES]
    follower = pages.follower
    stages = await asyncio.to_thread(pages.states)
    return web.json_response(
        {
            "revision": follower.revision,
            "read": follower.bytes_read,
            "of": follower.bytes_total,
            "problem": follower.problem,
            "stages": stages,
        }
    )


async def _static(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    if name not in _STATIC:
        raise web.HTTPNotFound
    body = (resources.files("leafe.view") / "static" / name).read_bytes()
    return web.Response(body=body, content_type=_STATIC[name], charset="utf-8")
