"""The system-call filter: calls that `_syscalls.py` does not list are refused.

**Covered.** A program may read what is mounted (read-only), take private memory, start a bounded
number of threads, sleep, read clocks, and handle its own signals. It may start no process and
execute nothing; it signals, limits and waits for nobody but itself; it opens no socket or socket
pair, no pipe, no anonymous file, shared segment, message queue or key; it takes no lock, lease or
watch; it changes no owner, mode or time of a file and no namespace; it traces nothing. It cannot
move what the kernel counts for the whole machine: inode numbers (sockets, pipes, shared anonymous
memory, huge pages, pidfds), aio contexts, io_uring, perf events, bpf, userfaultfd, timers by
number. What tells about the machine, other mounts or the page cache is refused: fadvise64, preadv2,
cachestat, mincore, readahead, sync_file_range, statfs, statmount, listmount, sysinfo, getrusage
(page faults show what was cached), syslog. A call of another architecture ends the process. A call
newer than the list is refused with ENOSYS, as by an old kernel.

**Not covered.** Timing: how long a read, a wake-up or a computation takes tells a little about what
else runs and ran on the machine. What one program computes while another runs (a shared processor
cache). Kernel faults in the allowed calls. Threads are counted by RLIMIT_NPROC of the box
(`guest/_main.py`), not by the filter. asyncio's event loop fails: it needs a socket pair.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterable
from functools import cache

from leafe.envs.sandbox._syscalls import (
    ALLOWED,
    CLONE3,
    FUTEX,
    FUTEX_PRIVATE,
    FUTEX_SHARED,
    NEWEST,
    NOT_BITS,
    ONLY_BITS,
    ONLY_WITH,
    STAND_IN,
)

__all__ = ["STAND_IN", "seccomp_filter"]

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""machine: (column of the numbers, AUDIT_ARCH)."""
_X32 = 0x40000000

_LOAD, _EQUAL, _ABOVE, _AT_LEAST, _BITS, _AND, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x54, 0x06
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data, little endian
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_REFUSE, _UNKNOWN = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS


def _op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def _for(number: int, *steps: bytes) -> list[bytes]:
    """These steps, which end with a return, for the call `number`."""
    return [_op(_EQUAL, number, no=len(steps)), *steps]


def _argument(index: int) -> bytes:
    return _op(_LOAD, _ARGS + 8 * index)


def _one_of(values: tuple[int, ...]) -> list[bytes]:
    """Allow if the loaded value is one of these, else refuse."""
    checks = [_op(_EQUAL, value, yes=len(values) - at) for at, value in enumerate(values)]
    return [*checks, _op(_RETURN, _REFUSE), _op(_RETURN, _ALLOW)]


def _spans(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """(first, last) of each run of successive numbers."""
    spans: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    return spans


@cache
def seccomp_filter() -> bytes | None:
    """The filter (struct sock_filter[]), with `STAND_IN` for the pid; None on a machine whose call
    numbers are unknown."""
    if platform.machine() not in _MACHINES:
        return None
    column, arch = _MACHINES[platform.machine()]
    program = [_op(_LOAD, _ARCH), _op(_EQUAL, arch, yes=1), _op(_RETURN, _KILL)]
    program += [_op(_LOAD, _NR), _op(_AT_LEAST, _X32, no=1), _op(_RETURN, _KILL)]
    for first, last in _spans(
        number for numbers in ALLOWED.values() if (number := numbers[column]) is not None
    ):
        program += [_op(_AT_LEAST, first, no=2), _op(_ABOVE, last, yes=1), _op(_RETURN, _ALLOW)]
    for both, index, values in ONLY_WITH.values():
        program += _for(both[column], _argument(index), *_one_of(values))
    for both, index, bits, must in ONLY_BITS.values():
        program += _for(both[column], _argument(index), _op(_AND, bits), *_one_of((must,)))
    for both, index, pairs in NOT_BITS.values():
        checks = [
            step
            for bits, must_not in pairs
            for step in (_argument(index), _op(_AND, bits), *_for(must_not, _op(_RETURN, _REFUSE)))
        ]
        program += _for(both[column], *checks, _op(_RETURN, _ALLOW))
    program += _for(
        FUTEX[column],
        _argument(1),
        _op(_BITS, FUTEX_PRIVATE, no=1),
        _op(_RETURN, _ALLOW),
        *_one_of(FUTEX_SHARED),
    )
    program += _for(CLONE3, _op(_RETURN, _UNKNOWN))
    program += [_op(_AT_LEAST, NEWEST, no=1), _op(_RETURN, _UNKNOWN), _op(_RETURN, _REFUSE)]
    return b"".join(program)
