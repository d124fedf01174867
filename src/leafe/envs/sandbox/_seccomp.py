"""A system-call filter, for what namespaces and rlimits leave open: a root user's processes, and memory that no rlimit counts.

The program may start threads (bounded by its address space) and no processes. Refused besides: new namespaces and mounts, tracing,
anonymous files and shared segments (memory beside RLIMIT_AS), and kernel interfaces that a solution has no use for.
"""

from __future__ import annotations

import errno
import platform
import struct

# name: (x86_64, aarch64); None where the machine has no such call
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}
_MACHINES = {"x86_64": (0, 0xC000003E, 56), "aarch64": (1, 0xC00000B7, 220)}
"""machine: column above, AUDIT_ARCH, number of clone."""
_CLONE3 = 435
_CLONE_THREAD = 0x10000
_X32 = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NR, _ARCH, _ARG0 = 0, 4, 16  # offsets in struct seccomp_data, little endian
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def seccomp_filter() -> bytes | None:
    """The filter as bubblewrap takes it (struct sock_filter[]); None on a machine whose call numbers are not known here."""
    if platform.machine() not in _MACHINES:
        return None
    column, arch, clone = _MACHINES[platform.machine()]

    def op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    program = [
        op(_LOAD, _ARCH),
        op(_EQUAL, arch, yes=1),
        op(_RETURN, _KILL),
        op(_LOAD, _NR),
        op(_AT_LEAST, _X32, no=1),
        op(_RETURN, _KILL),
        op(_EQUAL, _CLONE3, no=1),
        op(_RETURN, _ERRNO | errno.ENOSYS),  # libc falls back on clone, whose flags a filter can read
    ]
    for numbers in _REFUSED.values():
        number = numbers[column]
        if number is not None:
            program += [op(_EQUAL, number, no=1), op(_RETURN, _ERRNO | errno.EPERM)]
    program += [
        op(_EQUAL, clone, no=3),
        op(_LOAD, _ARG0),
        op(_BITS, _CLONE_THREAD, yes=1),
        op(_RETURN, _ERRNO | errno.EPERM),
        op(_RETURN, _ALLOW),
    ]
    return b"".join(program)
