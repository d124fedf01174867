"""Processes are started with default signals, whoever started this one.

Under nohup, in a shell's background job or below a program that blocks signals, some are ignored or
blocked, and every process that is started inherits
that: a server does not end on SIGTERM, a program's time limit does not reach it. Whatever leafe
starts goes through `with_default_signals`.

A process that stays in leafe's session keeps SIGHUP, SIGINT and SIGQUIT as the user left them for
leafe: what nohup or `&` protects, it protects whole.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Sequence

_START = """\
import os, sys, _signal
kept = () if os.getsid(0) == os.getpid() else (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT)
for each in range(1, _signal.NSIG):
    try: each in kept and _signal.getsignal(each) == _signal.SIG_IGN or _signal.signal(each, _signal.SIG_DFL)
    except (OSError, ValueError): pass
_signal.pthread_sigmask(_signal.SIG_SETMASK, ())
first = int(sys.argv[1])
before, command = sys.argv[2:2 + first], sys.argv[2 + first:]
if before: exec(compile(open(before[0]).read(), before[0], "exec"), {"__name__": "first", "arguments": before[1:]})
try: os.execvp(command[0], command)
except OSError as error: sys.stderr.write(f"{error.strerror}: {command[0]}\\n")
os._exit(127)
"""


def with_default_signals(command: Sequence[str], first: Sequence[str] = ()) -> list[str]:
    """The command that starts `command` with no signal ignored or blocked, for subprocess.Popen,
    asyncio's and the like.

    A small interpreter resets the signals and becomes the command (the process stays the same,
    about 10 ms): in the
    parent there is no way to do it that other threads do not see. `first`: a file of Python that it
    runs before, and
    the file's `arguments`; standard library alone. OSError where there is no such program, as by
    Popen.
    """
    if shutil.which(command[0]) is None:
        number = errno.EACCES if os.path.exists(command[0]) else errno.ENOENT
        raise OSError(number, os.strerror(number), command[0])
    return [sys.executable, "-I", "-S", "-c", _START, str(len(first)), *first, *command]
