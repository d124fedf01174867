"""What is shown while stages run: the same facts in a live view, in lines and as JSON, at any
width, in any encoding, with a terminal and without."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from leafe.cli import _app, _envs
from leafe.cli._console import SafeConsole
from leafe.cli._display import Display
from leafe.cli._encoding import plain_where_needed
from leafe.cli._json import JsonLines
from leafe.cli._watch import StageProgress, clock_time, short
from leafe.core import EnvError, Spent, UserError
from leafe.core.text import HOSTILE
from leafe.explore import Progress
from leafe.pipeline import Stage, StageResult, Variant
from leafe.pipeline._progress import exploring, went_wrong

STAGE = Stage("explore", Variant(0), "tree")
OTHER = Stage(
    "distill",
    Variant(0),
    (
        "an arm with a name that is much longer than any terminal of the last century was "
        "wide, and then some"
    ),
)
counts = st.integers(0, 10**9)
events = st.fixed_dictionaries(
    {"done": counts},
    optional={
        "of": st.integers(1, 10**9),
        "solved": counts,
        "by_rollback": counts,
        "samples": counts,
        "successes": counts,
        "turns": counts,
        "tokens": counts,
        "prompt_tokens": counts,
        "cached_tokens": counts,
        "words": st.text(max_size=300),
        "errors": st.dictionaries(st.text(max_size=20), counts, max_size=4),
        "budget": st.none()
        | st.fixed_dictionaries({"of": st.just("policy_calls"), "spent": counts, "limit": counts}),
        "what nobody knows": st.text(),
    },
)


class Clock:
    """Time as the test says it goes."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def course(clock: Clock, *told: tuple[float, dict[str, Any]]) -> StageProgress:
    out = StageProgress(STAGE, clock.now, clock)
    for wait, event in told:
        clock.now += wait
        out.take(event)
    return out


def test_speeds_are_those_of_this_start() -> None:
    """A stage that goes on from 10,000 turns has not made them in its first seconds."""
    gone_on = course(
        Clock(),
        (3, {"done": 50, "of": 100, "turns": 10_000, "tokens": 0}),
        (10, {"done": 60, "of": 100, "turns": 10_500, "tokens": 40}),
    )
    assert gone_on.rate("turns") == pytest.approx(50)
    assert gone_on.rate("tokens") == pytest.approx(4)
    assert gone_on.eta == pytest.approx(40)  # 10 tasks took 10 s, 40 are left
    assert course(Clock(), (1, {"done": 0, "of": 9, "turns": 5})).rate("turns") is None


@given(st.floats(3, 1e4), st.integers(1, 99), st.integers(0, 99))
def test_the_end_is_near_as_the_larger_share_says(seconds: float, tasks: int, calls: int) -> None:
    budget = {"of": "policy_calls", "spent": calls, "limit": 100}
    told = course(
        Clock(),
        (0, {"done": 0, "of": 100}),
        (seconds, {"done": tasks, "of": 100, "budget": budget}),
    )
    behind = max(tasks, calls) / 100
    assert told.eta == pytest.approx(seconds * (1 - behind) / behind, rel=1e-6, abs=1e-6)


def test_an_event_of_exploration_names_the_closest_limit_and_errors_alone() -> None:
    p = Progress(
        10,
        tasks_done=4,
        solved=3,
        solved_by_rollback=2,
        unusable_reflections=5,
        spent=Spent(policy_calls=50, env_steps=45, generated_tokens=90),
    )
    p.stops.update({"success": 3, "failure": 9, "diverged": 1, "policy_error": 2})
    event = exploring(
        p,
        {"policy_calls": 10.0, "env_steps": 30.0, "seconds": 1.0},
        {"policy_calls": 60.0},
        failures={"requests": 70, "5xx": 2, "timeout": 0},
    )
    assert event["budget"] == {
        "of": "policy_calls",
        "spent": 50,
        "limit": 60.0,
    }  # 50 of 60 is more than 45 of 300
    assert event["errors"] == {
        "diverged": 1,
        "policy error": 2,
        "5xx": 2,
        "unusable reflections": 5,
    }
    assert exploring(p)["budget"] is None
    json.dumps(event)
    assert went_wrong({"requests": 3, "hedge_won": 1, "given_up": 2}) == {"given up": 2}


class Terminal(io.TextIOWrapper):
    """A file that says of itself that it is one."""

    def isatty(self) -> bool:
        return True


def drawn(
    width: int, height: int, *told: tuple[Stage, dict[str, Any] | None], encoding: str = "utf-8"
) -> list[str]:
    """The live view's lines on such a screen."""
    plain_where_needed()
    file = Terminal(io.BytesIO(), encoding=encoding, errors="leafe.plain")
    console = Console(
        file=file,
        width=width,
        height=height,
        force_terminal=True,
        color_system=None,
        legacy_windows=False,
    )
    display = Display(console, lambda kind: None, 29, 3)
    for stage, event in told:
        display.begins(stage)
        if event is not None:
            display.progress(stage, event)
    console.print(display)
    file.flush()
    written: bytes = file.buffer.getvalue()  # type: ignore[attr-defined]
    return written.decode(encoding).splitlines()


@given(st.integers(20, 200), st.integers(2, 50), events, st.booleans())
def test_any_event_fits_any_width(
    width: int, height: int, event: dict[str, Any], ascii_only: bool
) -> None:
    lines = drawn(
        width, height, (STAGE, event), (OTHER, None), encoding="ascii" if ascii_only else "utf-8"
    )
    assert all(cell_len(line) <= width for line in lines)
    assert "3 of 29 stages" in lines[-1] or width < 30


def test_the_view_says_what_is_asked_of_it() -> None:
    event = {
        "done": 143,
        "of": 240,
        "solved": 49,
        "by_rollback": 45,
        "turns": 1,
        "tokens": 2,
        "prompt_tokens": 100,
        "cached_tokens": 78,
        "budget": {"of": "policy_calls", "spent": 2832, "limit": 4800},
        "errors": {"diverged": 2},
    }
    lines = drawn(100, 30, (STAGE, event))
    shown = " ".join(lines)
    for words in (
        "explore/tree",
        "143/240",
        "49 solved (20.4 %, 45 by rollback)",
        "2 diverged",
        "budget 59 % of 4,800 policy calls",
        "cache 78 %",
    ):
        assert words in shown
    narrow = " ".join(drawn(40, 30, (STAGE, event)))
    assert "143/240" in narrow
    assert "49 solved (20.4 %, 45 by rollback)" in narrow, (
        "what matters most has its place before the rest"
    )


def test_more_stages_than_lines_are_counted() -> None:
    stages = [Stage("evaluate", Variant(0), f"row {n}") for n in range(20)]
    lines = drawn(
        80,
        12,
        *(
            (stage, {"done": 1, "of": 2, "solved": 1, "samples": 2, "successes": 1})
            for stage in stages
        ),
    )
    assert len(lines) <= 12
    assert "17 not shown" in lines[-1]


def test_lines_where_there_is_no_terminal() -> None:
    for forced in (False, True):  # FORCE_COLOR makes rich believe in a terminal
        out = io.StringIO()
        with Display(
            Console(file=out, width=200, force_terminal=forced), lambda kind: None
        ) as display:
            display.begins(STAGE)
            display.progress(STAGE, {"done": 1, "of": 2})
            display._logged[STAGE.name] -= 60
            display.progress(STAGE, {"done": 1, "of": 2, "solved": 1})
            display.ends(STAGE, StageResult.empty("nothing [to] learn", seconds=1.25))
        lines = out.getvalue().splitlines()
        assert [lines[0], lines[1]] == [
            "explore/tree: begins",
            "explore/tree: 1/2, 1 solved (50.0 %)",
        ]
        assert "explore/tree in 1.2 s: nothing [to] learn" in lines[2]
        assert len(lines) == 3
        assert "\x1b[" not in lines[0]


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with JsonLines() as said:
        said.plan("runs/x", "x", "why?", [STAGE], ["explore/independent"])
        said.begins(STAGE)
        said.progress(STAGE, {"done": 1, "of": 4, "turns": 3, "words": "é\n\x1b[31m"})
        said.ends(STAGE, StageResult.completed(seconds=2.0, spent={}))
    lines = capsys.readouterr().out.splitlines()
    told = [json.loads(line) for line in lines]
    assert [t["event"] for t in told] == ["plan", "begin", "progress", "end"]
    assert told[0]["stages"] == [{"stage": "explore/tree", "kind": "explore", "row": "tree"}]
    assert told[0]["done"] == ["explore/independent"]
    assert (told[2]["done"], told[2]["of"], told[2]["turns"], told[2]["stage"]) == (
        1,
        4,
        3,
        "explore/tree",
    )
    assert told[3]["seconds"] == 2.0
    assert all(line.isascii() for line in lines), "readable in any locale"


def test_figures_in_short() -> None:
    assert [short(v) for v in (0.123, 3.44, 127.4, 1234)] == ["0.12", "3.4", "127", "1.2k"]
    assert [clock_time(v) for v in (5, 65.9, 7265)] == ["0:05", "1:05", "2:01:05"]


# ---- the program, as a user meets it

PLAY = """
import sys, time
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from leafe.cli._encoding import plain_where_needed
from leafe.cli import _app, _envs
from leafe.cli._console import SafeConsole
from leafe.cli._display import Display
from leafe.cli._encoding import plain_where_needed
from leafe.pipeline import Stage, StageResult, Variant
plain_where_needed()
stages = [Stage("explore", Variant(0), "tree"), Stage("evaluate", Variant(0), "base")]
console = Console()
with Display(console, lambda kind: None, 9) as display:
    for stage in stages:
        display.begins(stage)
    for n in range(12):
        for stage in stages:
            event = {"done": n, "of": 12, "solved": n, "by_rollback": n, "turns": 7 * n}
            display.progress(stage, event | {"tokens": 30 * n, "errors": {"diverged": 1}})
        time.sleep(0.15)
    for stage in stages:
        display.ends(stage, StageResult.completed(seconds=1.0))
    console.print("a table \u2013 \u2026 \u201cquoted\u201d")
"""


def in_terminal(
    columns: int, rows: int, resize: tuple[int, int] | None = None, **environment: str
) -> tuple[int, bytes]:
    """(exit code, all that the program wrote) of `PLAY` on a terminal of that size, which may
    change on the way."""
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
    }
    process = subprocess.Popen(
        [sys.executable, "-c", PLAY],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=clean | {"TERM": "xterm-256color"} | environment,
    )
    os.close(slave)
    out = b""
    while True:
        ready, _, _ = select.select([master], [], [], 60)
        try:
            piece = os.read(master, 65536) if ready else b""
        except OSError:  # the other end is closed
            piece = b""
        if not piece:
            break
        out += piece
        if resize and b"solved" in out:
            ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", *resize[::-1], 0, 0))
            resize = None
    os.close(master)
    return process.wait(60), out


def test_a_terminal_of_any_size_that_changes_on_the_way() -> None:
    code, out = in_terminal(100, 24, resize=(30, 8))
    assert code == 0
    text = out.decode()
    assert "by rollback" in text
    assert "✓" in text
    assert "a table – …" in text
    assert "\x1b[?25h" in text, "the cursor is shown again"
    code, out = in_terminal(20, 4)
    assert code == 0


def test_no_colour_where_none_is_wanted() -> None:
    code, out = in_terminal(80, 24, NO_COLOR="1")
    assert code == 0
    assert b"\x1b[3" not in out.replace(b"\x1b[3A", b"").replace(b"\x1b[3m", b"")
    assert b"\x1b[9" not in out
    assert "━" in out.decode()


def test_a_dumb_terminal_gets_lines() -> None:
    code, out = in_terminal(80, 24, TERM="dumb")
    assert code == 0
    assert b"explore/tree: begins" in out
    assert b"\x1b[" not in out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_signs_that_an_encoding_lacks(encoding: str) -> None:
    code, out = in_terminal(80, 24, PYTHONIOENCODING=encoding)
    assert code == 0, out
    text = out.decode(encoding)
    assert "ok explore/tree in 1.0 s" in text or "explore/tree in 1.0 s" in text
    assert "a table " in text
    assert "Traceback" not in text


def leafe(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "leafe.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
    )


@pytest.mark.slow
def test_json_of_a_run_and_of_a_mistake(tmp_path: Path) -> None:
    small = str(Path(__file__).parents[1] / "pipeline" / "small.toml")
    asked = (
        "run",
        small,
        "tasks.train=2",
        "tasks.test=1",
        "evaluate.samples=2",
        "evaluate.k=[1]",
        "evaluate.compare=[]",
        "arms={}",
        "jobs=1",
        "--json",
    )
    done = leafe(*asked, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told[0]["event"] == "plan"
    assert told[-1]["event"] == "finished"
    assert all({"event", "time"} <= t.keys() for t in told)
    assert Path(tmp_path, told[-1]["report"]).is_file()
    stages = [s["stage"] for s in told[0]["stages"]]
    assert [t["stage"] for t in told if t["event"] == "begin"] == stages
    assert [t["stage"] for t in told if t["event"] == "end"] == stages
    again = [
        json.loads(line)
        for line in leafe(*asked, cwd=tmp_path, OMP_NUM_THREADS="1").stdout.splitlines()
    ]
    assert again[0]["done"] == stages
    assert [t["event"] for t in again] == ["plan", "finished"]
    wrong = leafe("run", small, "explore.depht=3", "--json", cwd=tmp_path)
    assert wrong.returncode == 2
    error = json.loads(wrong.stdout)
    assert (error["event"], error["exit_code"]) == ("error", 2)
    assert wrong.stderr.strip() == f"error: {error['message']}"


def test_a_reader_that_goes_away_does_not_end_the_run() -> None:
    told = (
        "from leafe.cli._json import JsonLines\nimport sys, time\nsaid = JsonLines()\nfor n in "
        "range(20):\n    said.write('x', n=n); time.sleep(0.02)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", told + "sys.stderr.write('whole')"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"whole"
    assert process.wait(60) == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_for_shells(shell: str, tmp_path: Path) -> None:
    printed = leafe("--completion", shell, cwd=tmp_path)
    assert printed.returncode == 0
    assert "_LEAFE_COMPLETE=complete_" + shell in printed.stdout
    if shell == "bash":
        checked = subprocess.run(
            ["bash", "-n"], input=printed.stdout, text=True, capture_output=True
        )
        assert checked.returncode == 0, checked.stderr


WORDS = [
    ("ru", {"run"}),
    ("run scien", {"scienceworld"}),
    ("run mi", {"mine.toml"}),
    ("report ru", {"runs/"}),
    ("report runs/", {"runs/a"}),
]


@pytest.mark.parametrize(("typed", "offered"), WORDS)
def test_what_a_word_may_become(typed: str, offered: set[str], tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("")
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/manifest.json").write_text("{}")
    asked = {
        "_LEAFE_COMPLETE": "complete_bash",
        "COMP_WORDS": f"leafe {typed}",
        "COMP_CWORD": str(len(typed.split())),
    }
    program = "from leafe.cli import app; app(prog_name='leafe')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | asked,
    )
    assert set(done.stdout.split()) == offered, done.stderr


@pytest.mark.parametrize("terminal", [True, False])
@given(
    words=st.text(
        st.characters(codec=None) | st.sampled_from("\x1b\x07\x08\r\x9b\u202e\ud800[]31m"),
        max_size=60,
    )
)
def test_nothing_that_is_printed_steers_the_terminal(terminal: bool, words: str) -> None:
    out = io.StringIO()
    console = SafeConsole(
        file=out, force_terminal=terminal, width=80, color_system=None, legacy_windows=False
    )
    table = Table(words, title=Text(words))
    table.add_row(Text(words), escape(words))
    for what in (table, Text(words), Text.assemble((words, "bold"), words), Panel(Text(words))):
        console.print(what)
    console.print(words, markup=False, highlight=True)
    console.out(words)
    shown = out.getvalue()
    assert not HOSTILE.search(re.sub("\x1b\\[[0-9;]*m", "", shown))
    if "\x1b" in words:
        assert "␛" in shown


@pytest.mark.parametrize("error", [UserError, EnvError])
def test_errors_that_quote_others_steer_nothing(
    error: type[Exception], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: object) -> None:
        raise error("the server says \x1b[2J\u202e.")

    assert isinstance(_envs.console(), SafeConsole)
    monkeypatch.setattr(_app, "app", fails)
    with pytest.raises(SystemExit):
        _app.main()
    assert capsys.readouterr().err == "error: the server says ␛[2J⟨U+202E⟩.\n"
