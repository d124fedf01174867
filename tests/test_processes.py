"""Whatever leafe starts has default signals."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from leafe.core.processes import with_default_signals

STATE = (
    "import re; print(*re.findall(r'Sig(?:Blk|Ign):\\s*(\\w+)', open('/proc/self/status').read()))"
)
SOURCES = Path(__file__).parents[1] / "src" / "leafe"
DEAF = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGCHLD,
    signal.SIGXCPU,
    signal.SIGRTMIN,
)
STARTS = re.compile(
    r"(?<!from "
    r")(?:subprocess\.(?:Popen|run|check_call|check_output|call)|create_subprocess_exec|os\.posix_spawnp?|os\.exec\w+|os\.spawn\w+)\("
)


def deaf(program: str) -> str:
    """What `program` prints, started with signals ignored and blocked as nohup, shells and careless
    parents leave them."""
    before = (
        f"import signal\nfor each in {[int(s) for s in DEAF]}: signal.signal(each, "
        "signal.SIG_IGN)\n"
    )
    before += f"signal.pthread_sigmask(signal.SIG_BLOCK, {[int(s) for s in DEAF]})\n"
    done = subprocess.run(
        [sys.executable, "-c", before + program], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_started_process_has_default_signals() -> None:
    started = (
        "import subprocess, sys\nfrom leafe.core.processes import "
        f"with_default_signals\ncommand = [sys.executable, '-S', '-c', {STATE!r}]\n"
    )
    held = re.compile(r"\w*[1-9a-f]\w* \w*[1-9a-f]\w*")
    assert held.fullmatch(
        deaf(started + "print(subprocess.run(command, capture_output=True, text=True).stdout)")
    ), "the signals are held back without it"
    own = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1  # which Python itself ignores
    for session, ignored in (
        ("True", own),
        ("False", own | 1 << signal.SIGHUP - 1 | 1 << signal.SIGINT - 1),
    ):
        start = (
            "print(subprocess.Popen(with_default_signals(command), stdout=-1, text=True, "
            f"start_new_session={session}).stdout.read())"
        )
        assert [int(word, 16) for word in deaf(started + start).split()] == [0, ignored]


def test_status_output_and_arguments_pass_through() -> None:
    command = with_default_signals(
        [sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "", "a b", "-x"]
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "['', 'a b', '-x']\n")

    async def run() -> bytes:
        process = await asyncio.create_subprocess_exec(
            *with_default_signals(["echo", "5"]), stdout=-1
        )
        return (await process.communicate())[0]

    assert asyncio.run(run()) == b"5\n"


def test_a_command_that_is_not_there_says_so() -> None:
    with pytest.raises(FileNotFoundError, match="/no/such/program"):
        with_default_signals(["/no/such/program"])
    with pytest.raises(PermissionError, match=re.escape(str(Path(__file__)))):
        with_default_signals([str(Path(__file__))])


@pytest.mark.parametrize(
    "file", sorted(SOURCES.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCES))
)
def test_all_that_leafe_starts_goes_that_way(file: Path) -> None:
    text = file.read_text()
    for found in STARTS.finditer(text):
        call = text[max(0, found.start() - 400) : found.start() + 400]
        assert (
            "with_default_signals(" in call
            or "has default signals" in call
            or file.name == "processes.py"
        ), call
