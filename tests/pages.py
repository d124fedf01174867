"""The code blocks of the documentation: found, checked, and run in order, in one folder a page.

A block is fenced and names its language. A comment on the line above, which the site does not
show, says how it is tested:

    <!-- not run: REASON -->     checked and not run: it needs a GPU, a cluster, an account
    <!-- run with: WORDS -->     the words are added to its `leafe` commands, to save time
    <!-- exit: 2 -->             its last command ends with this code
    <!-- serves: URL -->         its command runs until the end of the page; the next block waits
                                 until the URL answers

`python`: a program of its own; with `title="FILE"` it is written to that file instead, as are
blocks of any language. `console`: lines that begin with `$ ` are commands, the lines after one are
its output: each has to come, in order (`...` stands for anything). `bash`: a script. `toml` without
a title is a part of a recipe. `json` and `yaml` are parsed. `text` is no code.

`pip install` is never run; that its extras exist is checked.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LANGUAGES = ("python", "console", "bash", "toml", "json", "yaml", "text")
NOTES = ("not run", "run with", "exit", "serves")
_NOTE = re.compile(r"^<!-- ([a-z ]+): (.+?) -->$")
_FENCE = re.compile(r"^( *)(```+)([^\s`]*)(.*)$")
_TITLE = re.compile(r'title="([^"]+)"')
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    """Of the fence, from 1."""
    language: str
    title: str | None
    """The file that it is."""
    notes: dict[str, str]
    text: str

    @property
    def where(self) -> str:
        page = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page
        return f"{page}:{self.line}"

    def commands(self) -> list[tuple[str, list[str]]]:
        """(command, lines that it prints) of a console block; a command may go on after a
        backslash."""
        out: list[tuple[str, list[str]]] = []
        going_on = False
        for line in self.text.splitlines():
            if going_on:
                out[-1] = (out[-1][0] + "\n" + line.removeprefix("> "), [])
            elif line.startswith("$ "):
                out.append((line[2:], []))
            elif line.strip():
                assert out, (
                    f"{self.where}: output without a command before it: write the command "
                    "after '$ '"
                )
                out[-1][1].append(line)
            going_on = (going_on or line.startswith("$ ")) and line.endswith("\\")
        return out


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    out: list[Block] = []
    notes: dict[str, str] = {}
    lines = iter(enumerate(page.read_text("utf-8").splitlines(), 1))
    for number, line in lines:
        note = _NOTE.match(line.strip())
        if note:
            assert note[1] in NOTES, (
                f"{page}:{number}: there is no note {note[1]!r}: {', '.join(NOTES)}"
            )
            notes[note[1]] = note[2]
            continue
        fence = _FENCE.match(line)
        if fence:
            indent, ticks, language, rest = fence.groups()
            title = _TITLE.search(rest)
            text = "\n".join(body.removeprefix(indent) for body in _until(lines, indent + ticks))
            out.append(
                Block(page, number, language, title[1] if title else None, notes, text + "\n")
            )
        notes = {}
    return out


def _until(lines: Iterator[tuple[int, str]], end: str) -> Iterator[str]:
    for _, line in lines:
        if line.rstrip() == end:
            return
        yield line
    raise AssertionError(f"a block does not end: {end}")


def indented_code(page: Path) -> list[int]:
    """Lines of code blocks by indentation, whose language nobody knows: a paragraph of four spaces
    outside lists and fences."""
    out, fenced, listed, before = [], False, False, ""
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            if re.match(r"\s*([-*+]|\d+\.) ", line):
                listed = True
            elif line and not line.startswith(" "):
                listed = False
            if (
                line.startswith("    ")
                and (not before.strip() or before.startswith("#"))
                and not listed
            ):
                out.append(number)
        before = line
    return out


def play(todo: list[Block], folder: Path, timeout: float = 600.0) -> list[tuple[Block, float]]:
    """Run blocks in order in the folder, as the notes say; the seconds that each took.
    AssertionError that names the block which does not do what it says."""
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "160",
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    served: list[subprocess.Popen[str]] = []
    took = []
    try:
        for block in todo:
            began = time.monotonic()
            _play_one(block, folder, env, served, timeout)
            took.append((block, time.monotonic() - began))
    finally:
        for process in served:
            process.terminate()
        for process in served:
            process.wait(30)
    return took


def _play_one(
    block: Block,
    folder: Path,
    env: dict[str, str],
    served: list[subprocess.Popen[str]],
    timeout: float,
) -> None:
    if block.title is not None:
        target = folder / block.title
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.text, "utf-8")
    elif "not run" in block.notes:
        return
    elif block.language == "python":
        _run(block, [sys.executable, "-c", block.text], folder, env, timeout, [])
    elif block.language == "bash":
        if not _only_installs(block.text):
            _run(
                block,
                ["bash", "-euo", "pipefail", "-c", _with(block, block.text)],
                folder,
                env,
                timeout,
                [],
            )
    elif block.language == "console":
        commands = [
            (command, said) for command, said in block.commands() if not _only_installs(command)
        ]
        for n, (command, said) in enumerate(commands, 1):
            words = ["bash", "-euo", "pipefail", "-c", _with(block, command)]
            if "serves" in block.notes:
                nowhere = subprocess.DEVNULL
                process = subprocess.Popen(
                    words,
                    cwd=folder,
                    env=env,
                    stdin=nowhere,
                    stdout=nowhere,
                    stderr=nowhere,
                    text=True,
                )
                served.append(process)
                _wait(block, block.notes["serves"], process)
            else:
                _run(
                    block,
                    words,
                    folder,
                    env,
                    timeout,
                    said,
                    int(block.notes.get("exit", 0)) if n == len(commands) else 0,
                )


def _only_installs(script: str) -> bool:
    lines = [
        line for line in script.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    return all(re.match(r"(python3? -m )?(pip|pipx|uv pip) install ", line) for line in lines)


def _with(block: Block, script: str) -> str:
    """The script with what its note adds to leafe's commands."""
    words = block.notes.get("run with")
    if words is None:
        return script
    return re.sub(
        r"^( *leafe (?:run|demo|explore|distill|evaluate)\b[^\n|&;#]*)",
        lambda m: f"{m[1].rstrip()} {words}",
        script,
        flags=re.MULTILINE,
    )


def _run(
    block: Block,
    words: list[str],
    folder: Path,
    env: dict[str, str],
    timeout: float,
    said: list[str],
    code: int = 0,
) -> None:
    done = subprocess.run(
        words,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    printed = _COLOURS.sub("", done.stdout + done.stderr)
    assert done.returncode == code, (
        f"{block.where}: exit code {done.returncode} instead of "
        f"{code}\n{words[-1]}\n{printed[-3000:]}"
    )
    lines = iter(_plain(line) for line in printed.splitlines())
    for line in said:
        pattern = _plain(line).replace("[", "[[]").replace("...", "*")
        missing = (
            f"{block.where}: this was not printed (any more): {line}\nIt "
            f"printed:\n{printed[-3000:]}"
        )
        assert any(fnmatch.fnmatchcase(given, pattern) for given in lines), missing


def _plain(line: str) -> str:
    return " ".join(line.split())


def _wait(block: Block, url: str, process: subprocess.Popen[str]) -> None:
    for _ in range(240):
        assert process.poll() is None, (
            f"{block.where}: the command ended with {process.returncode} and serves nothing"
        )
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert answer.status == 200, f"{block.where}: {url} answers {answer.status}"
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    raise AssertionError(f"{block.where}: nothing answers at {url}")


def command_lines(block: Block) -> list[list[str]]:
    """The words of every command of a console or bash block; empty for lines that are no simple
    command."""
    text = (
        "\n".join(command for command, _ in block.commands())
        if block.language == "console"
        else block.text
    )
    out = []
    for line in text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        for part in _simple(words):
            while part and re.fullmatch(r"[A-Z][A-Z_]*=.*", part[0]):
                part = part[1:]
            if part:
                out.append(part)
    return out


def _simple(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word in {"|", "&&", "||", ";", "&"}:
            yield part
            part = []
        else:
            part.append(word)
    yield part
