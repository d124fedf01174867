"""`leafe view` from outside: what it says of folders that are no runs and of ports that are taken,
and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from importlib import resources
from pathlib import Path

import pytest

from leafe.core import UserError
from leafe.view._server import HOST, PORT, listen, make_app
from tests.trees import make_tree
from tests.view.folders import make_run, new_run


def start(*arguments: str, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "leafe.cli", "view", *arguments]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def refused(*arguments: str, cache: Path) -> str:
    """The one sentence on standard error."""
    process = start(*arguments, cache=cache)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_it_serves_and_ends(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tree()])
    process = start(str(run), "--port", "0", cache=tmp_path / "cache")
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        address = next(word for word in said.split() if word.startswith(f"http://{HOST}:"))
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert b"demo" in answer.read()
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert list((tmp_path / "cache" / "leafe" / "view").glob("*.sqlite"))


@pytest.mark.parametrize(
    "what",
    [
        "nothing",
        "empty",
        "foreign",
        "other program",
        "another version",
        "half written manifest",
        "no settings",
    ],
)
def test_a_folder_that_is_no_run_is_one_sentence(tmp_path: Path, what: str) -> None:
    run = tmp_path / "run"
    words = "is not a run folder"
    if what != "nothing":
        run.mkdir()
    if what == "foreign":
        (run / "notes.txt").write_text("mine")
    elif what == "other program":
        (run / "manifest.json").write_text('{"name": "an app"}')
    elif what == "another version":
        run.rmdir()
        new_run(run)
        (run / "manifest.json").write_text(json.dumps({"run": "leafe", "format": 99, "starts": []}))
        words = "has format 99"
    elif what == "half written manifest":
        (run / "manifest.json").write_text('{"run": "lea')
        words = "cannot be read"
    elif what == "no settings":
        run.rmdir()
        new_run(run)
        (run / "config.toml").unlink()
        words = "config.toml cannot be read"
    with pytest.raises(UserError, match=words):
        make_app(run, tmp_path / "cache")
    if what in ("empty", "another version"):
        assert words in refused(str(run), cache=tmp_path / "cache")


def test_a_port_in_use_is_one_sentence_where_it_was_asked_for(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tree()])
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Port {port} of {HOST} is in use" in refused(
            str(run), "--port", str(port), cache=tmp_path / "cache"
        )
    with pytest.raises(UserError, match="no port 70000"):
        listen(70_000)


def test_without_a_wish_another_port_is_taken() -> None:
    first = listen(None)
    second = listen(None)
    ports = {bound.getsockname()[1] for bound in (first, second)}
    assert len(ports) == 2
    assert {bound.getsockname()[0] for bound in (first, second)} == {HOST}  # this machine alone
    first.close()
    second.close()
    assert PORT not in (0, None)


def test_pages_need_nothing_from_elsewhere() -> None:
    folder = resources.files("leafe.view")
    files = [*(folder / "static").iterdir(), *(folder / "templates").iterdir()]
    assert {"view.css", "view.js", "mark.svg", "base.html.j2", "tree.html.j2"} <= {
        file.name for file in files
    }
    for file in files:
        text = file.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "http:" not in text
        assert "https:" not in text
        assert "@import" not in text
        assert "innerHTML =" not in text
