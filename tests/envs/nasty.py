"""Programs that do what they should not: a corpus for both ways of making a process, as scripts and
as modules whose function is called."""

from __future__ import annotations

SLOW = {
    "sleeps",
    "stops itself",
    "traps signals",
    "deeper recursion",
    "spins",
    "spins in C",
    "thread that stays",
    "many threads",
}
"""These run into a time limit, or take their time."""
SLEEP = {"sleeps", "stops itself", "thread that stays"}
"""Of these, into that of the wall clock."""
PROGRAMS: dict[str, str] = {
    "right": "pass",
    "forks": "import os\nos.fork()",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: break",
    "spawns": "import subprocess\nsubprocess.run(['/usr/bin/env'])",
    "execs": "import os\nos.execv('/usr/bin/env', ['env'])",
    "allocates": "kept = []\nwhile True: kept.append(bytearray(1 << 20))",
    "allocates at once": "kept = bytearray(1 << 40)",
    "catches memory errors": (
        "kept = []\ntry:\n    while True: kept.append(' ' * 10**6)\nexcept MemoryError: kept = None"
    ),
    "spins": "while True: pass",
    "spins in C": "pow(3, 10**9)",
    "sleeps": "import time\ntime.sleep(1000)",
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "prints without end": "while True: print('All tests passed')",
    "one huge line": "print('x' * 10**7)",
    "binary output": "import sys\nsys.stdout.buffer.write(bytes(range(256)) * 8)",
    "stderr without end": "import sys\nwhile True: print('x', file=sys.stderr)",
    "socket": "import socket\nsocket.create_connection(('1.1.1.1', 80), 2)",
    "socket pair": (
        "import socket\na, b = socket.socketpair()\na.send(b'x')\nassert b.recv(1) == b'x'"
    ),
    "asyncio": "import asyncio\nasyncio.run(asyncio.sleep(0))",
    "reads proc": "print(open('/proc/self/maps').read())",
    "reads files": "print(open('/etc/passwd').read())",
    "reads the guest code": "import leafe",
    "writes everywhere": (
        "import os\nfor top in os.listdir('/'):\n"
        "    for folder in ('/', '/' + top, '/' + top + '/lib'):\n"
        "        try: open(folder + '/x', 'w')\n        except OSError: pass\n"
        "        else: print(folder)"
    ),
    "writes itself": "open(__file__ if '__file__' in globals() else 'x', 'w')",
    "temporary files": "import tempfile\ntempfile.TemporaryFile()",
    "traps signals": (
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, print)\n    except "
        "(OSError, ValueError): pass\nwhile True: pass"
    ),
    "exits 0": "import sys\nsys.exit(0)",
    "exits 0 hard": "import os\nos._exit(0)",
    "exits 3": "import os\nos._exit(3)",
    "exits 137": "import os\nos._exit(137)",
    "kills itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "aborts": "import os\nos.abort()",
    "segmentation fault": "import ctypes\nctypes.string_at(0)",
    "kills its parent": "import os\nos.kill(os.getppid(), 9)",
    "kills all": (
        "import os\nfor n in (-1, 0, 1, 2):\n    try: os.kill(n, 9)\n    except OSError as "
        "error: print(error)"
    ),
    "a file's owner": "import fcntl, os\nfcntl.fcntl(0, fcntl.F_SETOWN, 1)",
    "limits of others": "import resource\nresource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))",
    "lifts its limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "fills descriptors": "import os\nwhile True: os.dup(0)",
    "closes all": "import os\nos.closerange(0, 99)",
    "writes on every descriptor": (
        "import os\nfor n in range(64):\n    try: os.write(n, b'{}\\n' * 5)\n    except "
        "OSError: pass"
    ),
    "deep recursion": "def f(n): return f(n + 1)\nf(0)",
    "deeper recursion": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return [f(n + 1)]\nf(0)"
    ),
    "deep in C": "x = []\nfor _ in range(10**5): x = [x]\nrepr(x)",
    "many threads": (
        "import threading, time\nfor _ in range(9999): threading.Thread(target=time.sleep, "
        "args=(9,), daemon=True).start()"
    ),
    "thread that stays": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()"
    ),
    "error in a thread": (
        "import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start(); t.join()"
    ),
    "exit function": "import atexit, os\natexit.register(os._exit, 7)",
    "changes builtins": "import builtins\nbuiltins.print = builtins.len = builtins.open = None",
    "changes json": "import json\njson.dumps = json.loads = None",
    "changes os": "import os\nos.write = os._exit = os.read = None",
    "raises in repr": (
        "class E(Exception):\n    def __str__(self): raise E\n    __repr__ = __str__\nraise E"
    ),
    "raises a base": "raise KeyboardInterrupt",
    "raises a generator's end": "raise GeneratorExit",
    "reads too much": "import sys\nprint(len(sys.stdin.read()), sys.stdin.read())\ninput()",
    "reads the input twice": "import os\nos.lseek(0, 0, 0)\nprint(os.read(0, 999))",
    "writes to its input": "import os\nos.write(0, b'x')",
    "traces": "import sys\nsys.settrace(lambda *a: 1 / 0)\ndef g(): pass\ng()",
    "surrogates": "print('\\udcff')",
    "null bytes": "print('\\0' * 9)",
    "no source": "\0",
    "syntax": "def f(:",
    "unicode source": "\ud800",
    "deep source": "x = " + "(" * 9999,
    "hash order": "print({str(n) for n in range(99)})",
    "random order": "import random\nprint(random.random())",
    "environment": (
        "import os, sys\nprint(sorted(os.environ), sys.argv, os.getcwd(), sys.flags, sys.path)"
    ),
    "modules": "import sys\nprint(sorted(sys.modules))",
}
