"""The system calls that a program in a box may make, by number on x86_64 and aarch64."""

from __future__ import annotations

STAND_IN = 0x4C454146
"""Placeholder in the filter for the pid of the process that installs it."""

# name: (x86_64, aarch64); None if the machine has no such call
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # existing files: all mounts are read-only
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "lseek": (8, 62),
    "close": (3, 57),
    "close_range": (436, 436),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "open": (2, None),
    "openat": (257, 56),
    "stat": (4, None),
    "lstat": (6, None),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents": (78, None),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "umask": (95, 166),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    # private memory, bounded by RLIMIT_AS
    "munmap": (11, 215),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "brk": (12, 214),
    # threads
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "rseq": (334, 293),
    "sched_yield": (24, 124),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "restart_syscall": (219, 128),
    "membarrier": (324, 283),
    # time
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "alarm": (37, None),
    "setitimer": (38, 103),
    "getitimer": (36, 102),
    # its own signals
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "pause": (34, None),
    # what it is
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getgroups": (115, 158),
    "getpgrp": (111, None),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "getpriority": (140, 141),
    "getcpu": (309, 168),
    "sched_getaffinity": (204, 123),
    "uname": (63, 160),
    "getrandom": (318, 278),
    "getrlimit": (97, 163),
    "setrlimit": (160, 164),
}

# name: numbers, index of the argument, its allowed values
ONLY_WITH: dict[str, tuple[tuple[int, int], int, tuple[int, ...]]] = {
    "kill": ((62, 129), 0, (STAND_IN,)),
    "tgkill": ((234, 131), 0, (STAND_IN,)),
    "prlimit64": ((302, 261), 0, (0, STAND_IN)),
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC: no locks, leases, owners or pipe
    # sizes
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 4, 1030)),
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    "ioctl": ((16, 29), 1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    # NORMAL, RANDOM, SEQUENTIAL, WILLNEED, DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE: nothing that moves
    # a file's pages out of memory
    "madvise": ((28, 233), 2, (0, 1, 2, 3, 4, 8, 14, 15)),
    "prctl": ((157, 167), 0, (15, 16)),  # PR_SET_NAME, PR_GET_NAME
}

# name: numbers, index of the argument, bits, the value of these bits
ONLY_BITS: dict[str, tuple[tuple[int, int], int, int, int]] = {
    # CLONE_THREAD, and no CLONE_PIDFD, whose inode number counts the processes of the whole machine
    "clone": ((56, 220), 0, 0x10000 | 0x1000, 0x10000),
}

# name: numbers, index of the argument, (bits, the refused value of these bits) ...
NOT_BITS: dict[str, tuple[tuple[int, int], int, tuple[tuple[int, int], ...]]] = {
    # MAP_SHARED with MAP_ANONYMOUS, and MAP_HUGETLB, make inodes, whose numbers count for the whole
    # machine
    "mmap": ((9, 222), 3, ((0x21, 0x21), (0x40000, 0x40000))),
}

FUTEX = (202, 98)
FUTEX_PRIVATE = 128
FUTEX_SHARED = (0, 9, 9 | 256)
"""WAIT and WAIT_BITSET, needed to join a thread. Waking others through the pages of a file is
refused."""
CLONE3 = 435
NEWEST = 450
"""From this number on, and for clone3, the answer is ENOSYS: libc then uses older calls."""
