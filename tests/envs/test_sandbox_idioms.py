"""What programs for contests do, and a box must bear: each of these runs, and what it really uses
still counts."""

from __future__ import annotations

import pytest

from leafe.envs.sandbox import Limits, Outcome, Sandbox
from tests.envs.data import needs_sandbox

LIMITS = Limits(seconds=10, memory=320 << 20, output=1 << 20)
RECURSION = (
    "import sys, functools\nsys.setrecursionlimit(10**6)\ndef f(n): return n and 1 + "
    "max(map(f, [n - 1]))\n"
)
IDIOMS = {
    "open": "print(sum(map(int, open('/dev/stdin').read().split())))",
    "open as bytes": "print(sum(map(int, open('/dev/stdin', 'rb').read().split())))",
    "by number": "print(sum(map(int, open('/proc/self/fd/0').read().split())))",
    "by os": (
        "import os\nprint(sum(map(int, os.read(os.open('/dev/fd/0', os.O_RDONLY), 99).split())))"
    ),
    "by pathlib": "from pathlib import Path\n"
    "print(sum(map(int, Path('/dev/stdin').read_text().split())))",
    "as sys.stdin": "import sys\nsys.stdin = open('/dev/stdin')\nprint(sum(map(int, sys.stdin)))",
    "dev stdout": "print(6, file=open('/dev/stdout', 'w'))",
    "its folder": "import os\nos.chdir(os.path.dirname(__file__))\nprint(sum(map(int, open(0))))",
    "input file": "import os, sys\n"
    "if os.path.exists(os.path.join(os.path.dirname(__file__), 'input.txt')): sys.stdin = "
    "open('input.txt')\nprint(sum(map(int, sys.stdin)))",
    "no limit of the stack": (
        "import resource\nresource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY, "
        "resource.RLIM_INFINITY))\n"
    )
    + RECURSION
    + "print(f(20_000) and 6)",
    "a large stack": (
        "import resource\nresource.setrlimit(resource.RLIMIT_STACK, [1 << 29, "
        "resource.RLIM_INFINITY])\nprint(6)"
    ),
    "a stack beyond the hard limit": "import resource\n"
    "resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 26))\n"
    "resource.setrlimit(resource.RLIMIT_STACK, (1 << 29, 1 << 30))\nprint(6)",
    "a thread of 512 MB": "import threading\n"
    + RECURSION
    + (
        "threading.stack_size(1 << 29)\nt = threading.Thread(target=lambda: print(f(50_000) "
        "and 6))\nt.start(); t.join()"
    ),
    "a long integer": (
        "assert len(str(7 ** 20_000)) == 16902 and int('9' * 9000) and f'{3 ** 30_000}'\nprint(6)"
    ),
}


@needs_sandbox
@pytest.mark.parametrize("way", ["fork", pytest.param("fresh", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", IDIOMS)
def test_idioms_run(name: str, way: str) -> None:
    run = Sandbox(LIMITS, way=way).run_script(IDIOMS[name], b"1\n2\n3\n")
    assert (run.outcome, run.stdout) == (Outcome.passed, b"6\n"), run


@needs_sandbox
def test_memory_behind_a_large_stack_still_counts() -> None:
    program = "import threading\nthreading.stack_size(1 << 29)\nx = b'x' * (400 << 20)\nprint(6)"
    assert Sandbox(LIMITS).run_script(program, b"").outcome is Outcome.memory
    assert Sandbox(LIMITS).run_script("x = b'x' * (400 << 20)", b"").outcome is Outcome.memory
