"""Child processes start with default signals, whatever this process inherited.

Under nohup, in a shell's background job or below a program that blocks signals, some signals are
ignored or blocked, and every child inherits that: a server does not end on SIGTERM, a program's
time limit does not reach it. All that leafe starts goes through `with_default_signals`.

A child in leafe's session keeps SIGHUP, SIGINT and SIGQUIT as leafe has them, so that nohup and `&`
protect the whole run.
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
    if each in kept and _signal.getsignal(each) == _signal.SIG_IGN: continue
    try: _signal.signal(each, _signal.SIG_DFL)
    except (OSError, ValueError): pass
_signal.pthread_sigmask(_signal.SIG_SETMASK, ())
first = int(sys.argv[1])
before, command = sys.argv[2:2 + first], sys.argv[2 + first:]
names = {"__name__": "first", "arguments": before[1:]}
if before: exec(compile(open(before[0]).read(), before[0], "exec"), names)
try: os.execvp(command[0], command)
except OSError as error: sys.stderr.write(f"{error.strerror}: {command[0]}\\n")
os._exit(127)
"""


def with_default_signals(command: Sequence[str], first: Sequence[str] = ()) -> list[str]:
    """The command that starts `command` with no signal ignored or blocked.

    A small interpreter resets the signals and becomes the command: the same process, some 10 ms
    later. (The parent cannot do it without its other threads noticing.)

    Args:
        command: The program and its arguments.
        first: A Python file that the interpreter runs before, and the values of `arguments` in it.
            Standard library alone.

    Returns:
        A command for subprocess.Popen, asyncio's and the like.

    Raises:
        OSError: There is no such program.
    """
    if shutil.which(command[0]) is None:
        number = errno.EACCES if os.path.exists(command[0]) else errno.ENOENT
        raise OSError(number, os.strerror(number), command[0])
    return [sys.executable, "-I", "-S", "-c", _START, str(len(first)), *first, *command]
