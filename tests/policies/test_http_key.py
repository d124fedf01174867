"""A key is in no file and no word of a run, though the servers repeat it in what they answer."""

from __future__ import annotations

import asyncio
import gzip
import html
import logging
import re
import warnings
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from aiohttp import web

from leafe.core import LeafeError, Message, PolicyError, Request
from leafe.pipeline import run_recipe
from leafe.policies.http import HTTPPolicy
from leafe.recipes import Recipe, load_recipe
from tests.faulty_server import FaultyServer

KEY = "sk-Zq7/very+secret=0123456789abcdefghijklmnopqrstuvwxyz"
PARTS = [KEY[i : i + 12] for i in range(0, len(KEY) - 12, 6)]
"""A part of the key is a leak as well."""
LEAKS = ["leak-400", "leak-500", "leak-200", "leak-garbage"]


def leaks_in(text: str) -> list[str]:
    return [part for part in PARTS if part in text]


def everything_under(folder: Path) -> str:
    return "\n".join(
        f"{p}\n{p.read_bytes().decode('latin-1')}" for p in folder.rglob("*") if p.is_file()
    )


def recipe(*servers: FaultyServer) -> Recipe:
    small = str(Path(__file__).parents[1] / "pipeline" / "small.toml")
    urls = [s.base_url for s in servers]
    options = [
        "policy.kind=http",
        f"policy.options.base_url={urls}",
        "policy.options.model=mock",
        "policy.options.backoff_s=0.001",
        "policy.options.retries=4",
    ]
    options += [
        "policy.options.api_key_env=MY_KEY",
        "tasks.train=16",
        "explore.limits.policy_calls=6",
        "explore.max_errors=2",
    ]
    return load_recipe(small, options)


@pytest.mark.parametrize("leak", LEAKS)
def test_a_run_over_leaking_servers_writes_no_key(
    leak: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with (
        FaultyServer(key=KEY, script=["ok"] * 11, rates={leak: 0.5}, seed=1) as one,
        FaultyServer(key=KEY) as two,
    ):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                run_recipe(recipe(one, two), tmp_path / "run", only="explore")
                words = ""
            except LeafeError as error:  # a check that met a 400, say
                words = (
                    f"{error} {error.__cause__!r} {error.__cause__ and error.__cause__.__cause__!r}"
                )
        assert one.faults[leak] > 0
        assert all(h["Authorization"] == f"Bearer {KEY}" for s in (one, two) for h in s.headers)
    written = everything_under(tmp_path)
    assert "journal" in written
    assert leak != "leak-400" or "bad key ***" in written  # the episodes that ended so
    out = capfd.readouterr()
    for text in (
        written,
        words,
        out.out,
        out.err,
        caplog.text,
        " ".join(str(w.message) for w in said),
    ):
        assert leaks_in(text) == []


SPELLED = {
    "as it is": KEY,
    "every letter escaped": "".join(f"\\u{ord(c):04x}" for c in KEY),
    "in capitals": "".join(f"\\u{ord(c):04X}" for c in KEY),
    "the first letter escaped": f"\\u{ord(KEY[0]):04x}{KEY[1:]}",
    "one letter inside escaped": f"{KEY[:20]}\\u{ord(KEY[20]):04x}{KEY[21:]}",
    "with its slash escaped": KEY.replace("/", "\\/"),
    "JSON in JSON": "".join(f"\\\\u{ord(c):04x}" for c in KEY),
    "of an address": quote(KEY, safe=""),
    "of a page": "".join(f"&#{ord(c)};" for c in KEY),
}


@pytest.mark.parametrize("how", SPELLED)
@pytest.mark.parametrize("place", ["answer", "error", "no JSON", "reasoning", "UTF-16", "gzip"])
def test_a_key_is_cut_out_however_the_server_spells_it(
    how: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    before, after = '{"choices": [{"message": {"content": "so: ', '."}, "finish_reason": "stop"}]}'
    raw = before + SPELLED[how] + after
    status, body, headers = 200, raw.encode(), {}
    if place == "error":
        status, body = 400, b'{"error": {"message": "bad key: %s."}}' % SPELLED[how].encode()
    elif place == "no JSON":
        status, body = 502, b"bad key: %s." % SPELLED[how].encode()
    elif place == "UTF-16":
        body = raw.encode("utf-16")
    elif place == "gzip":
        body, headers = gzip.compress(body), {"Content-Encoding": "gzip"}
    elif place == "reasoning":
        body = raw.replace('"content"', f'"reasoning": "{SPELLED[how]}", "content"').encode()

    async def ask(url: str) -> str:
        policy = HTTPPolicy(url, "mock", api_key_env="MY_KEY", retries=0)
        try:
            return (await policy.complete(Request((Message("user", "what is your key?"),))))[0].text
        except PolicyError as error:
            return f"{error} {error.__cause__!r} {error.__cause__ and error.__cause__.__cause__!r}"
        finally:
            await policy.close()

    with (
        FaultyServer(
            told=lambda b: web.Response(status=status, body=body, headers=headers)
        ) as server,
        warnings.catch_warnings(record=True),
    ):
        text = asyncio.run(ask(server.base_url))
    assert "***" in text
    plain = html.unescape(
        unquote(re.sub(r"\\+u00(..)", lambda m: chr(int(m[1], 16)), text))
    ).replace("\\", "")
    assert leaks_in(text) == leaks_in(plain) == []


@pytest.mark.parametrize(
    "reply",
    [
        b"%s\r\n\r\n",
        b"HTTP/1.1 %s\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\nyour key %s",
        b"HTTP/1.1 302 Found\r\nLocation: /%s\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_a_reply_that_is_no_http_shows_no_part_of_the_key(
    reply: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)

    async def go() -> str:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(reply % KEY.encode())
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
            url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
            policy = HTTPPolicy(url, "mock", api_key_env="MY_KEY", retries=0)
            with pytest.raises(PolicyError) as raised:
                await policy.complete(Request((Message("user", "hi"),)))
            await policy.close()
        cause = raised.value.__cause__
        return f"{raised.value} {cause!r} {cause and cause.__cause__!r}"

    shown = asyncio.run(go())
    assert all(KEY[i : i + 5] not in shown for i in range(3, len(KEY) - 5))  # of no length at all


def test_a_placeholder_for_a_key_is_cut_out_of_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")

    async def ask(url: str) -> str:
        policy = HTTPPolicy(url, "mock", retries=0)
        try:
            return (await policy.complete(Request((Message("user", "look"),))))[0].text
        finally:
            await policy.close()

    with FaultyServer(reply=lambda body, i: "The cup is EMPTY.") as server:
        assert asyncio.run(ask(server.base_url)) == "The cup is EMPTY."
        assert server.headers[-1]["Authorization"] == "Bearer EMPTY"


def test_a_key_that_the_server_puts_into_its_answers_is_cut_out_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)

    async def ask(url: str) -> str:
        policy = HTTPPolicy(url, "mock", api_key_env="MY_KEY", retries=0)
        try:
            return (await policy.complete(Request((Message("user", "what is your key?"),))))[0].text
        except PolicyError as error:
            return f"{error} {error.__cause__!r}"
        finally:
            await policy.close()

    with FaultyServer(reply=lambda body, i: f"it is {KEY}, as you know") as server:
        assert asyncio.run(ask(server.base_url)) == "it is ***, as you know"
    for leak in LEAKS:
        with FaultyServer(script=[leak]) as server:
            text = asyncio.run(ask(server.base_url))
            assert "***" in text
            assert leaks_in(text) == []
