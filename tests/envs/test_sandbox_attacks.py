"""Attempts to get out of a box, to change the machine, and to leave or find a trace: each is made
for real, and fails.

As root (with ids of nobody), as an unprivileged user (the last test runs this file as one), in kept
boxes and in fresh ones.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from leafe.core.processes import with_default_signals
from leafe.envs.sandbox import Limits, Outcome, Run, Sandbox, _box, _files, _sandbox
from leafe.envs.sandbox._syscalls import ALLOWED, ONLY_WITH
from tests.envs.data import needs_sandbox

pytestmark = needs_sandbox
LIMITS = Limits(seconds=4, output=1 << 20)
Runner = Callable[..., Run]
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["fork", pytest.param("fresh", marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest) -> Runner:
    """Runs a script in a box of either kind; `walls_only`: without the filter of system calls, so
    that what is below it is seen to hold by itself."""
    box = Sandbox(LIMITS, way=request.param)

    def ran(
        program: str, stdin: bytes = b"", walls_only: bool = False, limits: Limits = LIMITS
    ) -> Run:
        if walls_only:
            return _sandbox._script(
                _sandbox._BOXES[box.way][0], program, stdin, limits, filtered=False
            )
        return box.run_script(program, stdin, limits)

    return ran


def lines(run: Run) -> list[str]:
    assert run.outcome is Outcome.passed, run
    return run.stdout.decode().splitlines()


# --- the machine's devices and files

# what it would change, it would change to what it is: a hole in the box breaks nothing
CHANGE = """
import os
done = []
def tried(what, act):
    try: act()
    except OSError: return
    done.append(what)
def change(path):
    seen = os.lstat(path)
    tried(('mode', path), lambda: os.chmod(path, seen.st_mode & 0o7777))
    tried(('times', path), lambda: os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns)))
    tried(('now', path), lambda: os.utime(path))
    tried(
        ('owner', path),
        lambda: os.chown(path, -1, -1) or os.chown(path, seen.st_uid, seen.st_gid),
    )
    tried(('attribute', path), lambda: os.setxattr(path, 'user.x', b''))
    tried(('link', path), lambda: os.link(path, path + '.leafe-test'))
for folder, folders, files in os.walk('/'):
    if folder.count('/') > 6: folders.clear()
    for name in ('', *files[:20]): change(os.path.join(folder, name) if name else folder)
for what in done: print(*what)
"""


@pytest.mark.parametrize("walls_only", [False, True])
def test_nothing_in_the_box_can_be_changed(run: Runner, walls_only: bool) -> None:
    assert lines(run(CHANGE, walls_only=walls_only)) == []


def test_the_devices_work_and_are_few(run: Runner) -> None:
    program = (
        "import os, stat\nprint(*sorted(os.listdir('/dev')))\nopen('/dev/null', "
        "'w').write('x')\nprint(len(open('/dev/urandom', 'rb').read(3)))"
    )
    assert lines(run(program)) == ["null random urandom", "3"]


def test_the_program_is_nobody_on_this_machine() -> None:
    """Seen from outside: who it is, what it may do."""
    status: dict[str, str] = {}
    sandbox = Sandbox(LIMITS)
    sleeper = threading.Thread(target=sandbox.run_script, args=("import time; time.sleep(3)", b""))
    sleeper.start()
    while sleeper.is_alive() and status.get("Seccomp") != "2":
        for process in _below(os.getpid()):
            try:
                text = Path(f"/proc/{process}/status").read_text()
            except OSError:
                continue
            found = dict(re.findall(r"(\w+):\t(.*)", text))
            status = found if found.get("Seccomp") == "2" else status
    sleeper.join()
    number = _box.host_id() if os.geteuid() == 0 else os.getuid()
    assert status["Uid"].split() == [str(number)] * 4
    assert status["Gid"].split() == [str(number if os.geteuid() == 0 else os.getgid())] * 4
    assert [int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Amb")] == [0] * 4
    assert status["NoNewPrivs"] == "1"
    assert status["NSpid"].split()[-1] == "2"
    if os.geteuid() == 0:
        assert number is not None
        assert not status["Groups"].strip()


def _below(process: int) -> list[int]:
    try:
        children = [
            int(n)
            for task in Path(f"/proc/{process}/task").iterdir()
            for n in (task / "children").read_text().split()
        ]
    except OSError:
        return []
    return [*children, *(n for child in children for n in _below(child))]


# --- what lies in the box


def test_the_box_holds_the_interpreter_and_the_standard_library_alone(run: Runner) -> None:
    folders = _files.standard_library()
    program = (
        "import os\nfor folder, folders, files in os.walk('/'):\n    if folder in "
        f"{folders!r}: folders.clear(); continue\n"
    )
    program += "    for name in files: print(os.path.join(folder, name))"
    places = {place for _, place in _files.mounted()} | {f"/dev/{name}" for name in _files.DEVICES}
    assert all(
        path in places or path.startswith("/code/leafe/envs/sandbox/guest/")
        for path in lines(run(program))
    )
    assert {source for source, _ in _files.mounted() if os.path.isdir(source)} == set(folders)


def test_no_installed_package_lies_in_the_box(run: Runner) -> None:
    program = (
        "import os\nfor folder, folders, files in os.walk('/'):\n    if "
        "folder.endswith('-packages'): print(folder, *os.listdir(folder))\n"
    )
    program += (
        "    for name in files:\n        if name.startswith('HumanEval') or "
        "name.endswith('.dist-info'): print(name)"
    )
    assert lines(run(program)) == _files.hidden()
    assert run("import pip").detail.endswith("ModuleNotFoundError: No module named 'pip'")


# --- traces

# x86_64, aarch64
TELLTALE = {
    "fadvise64": (221, 223),
    "preadv2": (327, 286),
    "pwritev2": (328, 287),
    "cachestat": (451, 451),
    "mincore": (27, 232),
    "readahead": (187, 213),
    "sync_file_range": (277, 84),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "sysinfo": (99, 179),
    "getrusage": (98, 165),
    "syslog": (103, 116),
    "quotactl": (179, 60),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "process_madvise": (440, 440),
    "map_shadow_stack": (453, 453),
    "mlock": (149, 228),
    "mlockall": (151, 230),
    "fsync": (74, 82),
    "sync": (162, 81),
    "futex_waitv": (449, 449),
    "futex_wake": (454, 454),
}
COUNTED = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "pipe2": (293, 59),
    "eventfd2": (290, 19),
    "epoll_create1": (291, 20),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "timerfd_create": (283, 85),
    "signalfd4": (289, 74),
    "timer_create": (222, 107),
    "io_setup": (206, 0),
    "io_uring_setup": (425, 425),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "pidfd_open": (434, 434),
    "landlock_create_ruleset": (444, 444),
    "pkey_alloc": (330, 289),
}
OUTWARD = {
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "setuid": (105, 146),
    "setresuid": (117, 147),
    "setgroups": (116, 159),
    "capset": (126, 91),
    "personality": (135, 92),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "setpriority": (141, 140),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "mbind": (237, 235),
    "flock": (73, 32),
    "mknodat": (259, 33),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "utimensat": (280, 88),
    "fchown": (93, 55),
    "fsetxattr": (190, 7),
    "symlinkat": (266, 36),
    "mkdirat": (258, 34),
    "unlinkat": (263, 35),
    "renameat2": (316, 276),
    "ftruncate": (77, 46),
    "fallocate": (285, 47),
    "sendfile": (40, 71),
    "splice": (275, 76),
    "tee": (276, 77),
    "vmsplice": (278, 75),
    "copy_file_range": (326, 285),
    "seccomp": (317, 277),
    "wait4": (61, 260),
    "waitid": (247, 95),
    "rt_sigqueueinfo": (129, 138),
    "pidfd_send_signal": (424, 424),
    "tkill": (200, 130),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "clock_settime": (227, 112),
    "settimeofday": (164, 170),
    "adjtimex": (159, 171),
    "swapon": (167, 224),
    "acct": (163, 89),
    "sethostname": (170, 161),
    "vhangup": (153, 58),
    "lookup_dcookie": (212, 18),
    "clone3": (435, 435),
}


def test_every_other_system_call_is_refused(run: Runner) -> None:
    """Told by the error: it is the filter's, not the one that the kernel has for such arguments."""
    column = ["x86_64", "aarch64"].index(os.uname().machine)
    numbers = {
        name: both[column]
        for name, both in {**TELLTALE, **COUNTED, **OUTWARD}.items()
        if both[column] is not None
    }
    listed = {both[column] for both in ALLOWED.values()} | {
        both[column] for both, *_ in ONLY_WITH.values()
    }
    assert not set(numbers.values()) & listed
    program = "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    program += f"for name, number in {numbers!r}.items():\n    ctypes.set_errno(0)\n"
    program += (
        "    if libc.syscall(number, *[ctypes.c_long(-1)] * 6) != -1 or ctypes.get_errno() not "
        "in (errno.EPERM, errno.ENOSYS): print(name)"
    )
    assert lines(run(program)) == []


@pytest.mark.parametrize(
    "act",
    [
        "mmap.mmap(-1, 4096)",
        "mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)",
        "mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).madvise(21)",
        "mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).madvise(20)",
        "mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).madvise(22)",
        "os.posix_fadvise(os.open(os.__file__, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)",
        "os.preadv(os.open(os.__file__, os.O_RDONLY), [bytearray(9)], 0, os.RWF_NOWAIT)",
        "os.statvfs('/')",
        "os.pipe()",
        "socket.socketpair()",
        "socket.socket(socket.AF_UNIX)",
        "fcntl.fcntl(0, fcntl.F_SETLEASE, fcntl.F_RDLCK)",
        "fcntl.fcntl(1, 1031, 1 << 20)",
        "fcntl.lockf(os.open(os.__file__, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)",
        "fcntl.ioctl(0, 0x8901, b'1234')",
        "resource.getrusage(resource.RUSAGE_SELF)",
        "resource.prlimit(1, resource.RLIMIT_NOFILE)",
        "os.kill(1, 0)",
        "futex(1)",
        "futex(3)",
        "prctl(22, 2)",
        "prctl(1, 9)",
    ],
)
def test_what_would_leave_or_find_a_trace_is_refused(run: Runner, act: str) -> None:
    program = (
        "import ctypes, fcntl, mmap, os, resource, socket, sys\nlibc = ctypes.CDLL(None, "
        "use_errno=True)\n"
    )
    program += (
        "def called(*words):\n    if libc.syscall(*words) == -1 and ctypes.get_errno() == 1: "
        "raise PermissionError\n"
    )
    column = os.uname().machine == "aarch64"
    program += (
        f"def futex(op): called({(202, 98)[column]}, ctypes.byref(ctypes.c_int()), op, 1, "
        "None, None, 0)\n"
    )
    program += f"def prctl(*words): called({(157, 167)[column]}, *words, 0, 0)\n"
    program += f"try: {act}\nexcept PermissionError: print('refused')"
    assert lines(run(program)) == ["refused"]


SEEN = """
import os, sys, threading
def numbers():
    found = []
    for _ in range(5):
        thread = threading.Thread(target=lambda: found.append(threading.get_native_id()))
        thread.start(); thread.join()
    return found
print(os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0), threading.get_native_id(), numbers())
for folder, folders, files in os.walk('/'):
    if folder.count('/') > 4: folders.clear()
    for name in ('', *files):
        seen = os.stat(os.path.join(folder, name))
        times = seen.st_atime_ns, seen.st_mtime_ns, seen.st_ctime_ns
        print(folder, name, seen.st_dev, seen.st_ino, seen.st_nlink, *times, seen.st_blocks)
"""
TRACES = """
import mmap, os, socket, sys, threading
def tried(act, *words):
    try: return act(*words)
    except OSError: pass
for n in range(300):
    thread = threading.Thread(target=len, args=((),)); thread.start(); thread.join()
    tried(os.pipe); tried(socket.socketpair); tried(mmap.mmap, -1, 4096)
    tried(os.eventfd, 0); tried(os.memfd_create, 'x'); tried(os.fork)
for name in os.listdir('/dev'):
    tried(os.utime, '/dev/' + name)
    open('/dev/' + name, 'rb').read(9)
for folder, folders, files in os.walk(os.path.dirname(os.__file__)):
    folders.clear()
    for name in files: open(os.path.join(folder, name), 'rb').read(1)
"""


def test_nothing_that_a_program_sees_tells_what_ran_before(
    run: Runner, request: pytest.FixtureRequest
) -> None:
    """Numbers of processes and threads, times, inodes: the same before and after a program that
    moves all that it can. What a fresh box
    is made of has the time at which it was made."""
    began = time.time_ns() - 10**9
    fresh = "fresh" in request.node.name

    def seen() -> list[str]:
        def made(found: re.Match[str]) -> str:
            return "new" if fresh and int(found[0]) > began else found[0]

        return [re.sub(r"\b\d{19}\b", made, line) for line in lines(run(SEEN))]

    before = seen()
    assert run(TRACES).outcome is Outcome.passed
    assert seen() == before
    assert before[0] == "2 1 0 0 2 [3, 4, 5, 6, 7]"


# --- what can be counted


def test_threads_are_few_however_small_they_are(run: Runner) -> None:
    program = "import _thread, time\n_thread.stack_size(32768)\nstarted = 0\n"
    program += (
        "try:\n    while started < 5000: _thread.start_new_thread(time.sleep, (9,)); started "
        "+= 1\nexcept RuntimeError: pass\nprint(started)"
    )
    assert (
        64
        <= int(lines(run(program + "\nimport os, sys; sys.stdout.flush(); os._exit(0)"))[0])
        <= 140
    )


def test_raw_threads_are_few_too(run: Runner) -> None:
    """By the call itself, on stacks of 4 KB: each waits in the kernel for ever."""
    if os.uname().machine != "x86_64":
        pytest.skip("the machine code is for x86_64")
    # mov eax, 34; syscall; jmp back: pause()
    program = "import ctypes, mmap\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    program += (
        "code = mmap.mmap(-1, 4096, flags=0x22, "
        "prot=7)\ncode.write(bytes.fromhex('b8220000000f05ebf7'))\n"
    )
    program += "page = ctypes.addressof(ctypes.c_char.from_buffer(code))\nstarted = 0\n"
    # a child begins behind the call: it returns to what lies on top of its stack
    program += (
        "call = mmap.mmap(-1, 4096, flags=0x22, "
        "prot=7)\ncall.write(bytes.fromhex('b8380000000f05c3'))\n"
    )
    program += (
        "clone = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_ulong, ctypes.c_void_p, "
        "ctypes.c_void_p, ctypes.c_void_p)"
    )
    program += "(ctypes.addressof(ctypes.c_char.from_buffer(call)))\nstacks = []\n"
    program += (
        "while started < 3000:\n    stack = ctypes.create_string_buffer(4096); top = "
        "ctypes.addressof(stack) + 4000 & ~15\n"
    )
    program += "    ctypes.c_ulong.from_address(top).value = page; stacks.append(stack)\n"
    program += (
        "    if clone(0x10000 | 0x800 | 0x100 | 0x200 | 0x400 | 0x40000, top, None, None) < 0: "
        "break\n    started += 1\n"
    )
    program += "import os; os.write(1, b'%d\\n' % started); os._exit(0)"
    assert 64 <= int(lines(run(program))[0]) <= 140


# --- signals

INHERITED = """
import json, signal, sys
deaf = [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD]
deaf += [signal.SIGXCPU, signal.SIGALRM, signal.SIGPROF, signal.SIGSEGV]
for each in deaf: signal.signal(each, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, deaf)
from leafe.envs.sandbox import Limits, Sandbox
found, programs = [], json.load(sys.stdin)
for way in ('fork', 'fresh'):
    box = Sandbox(Limits(seconds=0.5), way=way)
    for program in programs:
        run = box.run_script(program, b'')
        found.append([str(run.outcome), run.stdout.decode(), run.detail])
print(json.dumps(found))
"""
PROGRAMS = {
    "import os, signal, sys\nos.kill(os.getpid(), signal.SIGTERM)\nprint(5)": [
        "exited",
        "",
        "signal SIGTERM",
    ],
    "import os, signal, sys\nos.kill(os.getpid(), signal.SIGUSR1)\nprint(5)": [
        "exited",
        "",
        "signal SIGUSR1",
    ],
    "import os, signal, sys\nos.kill(os.getpid(), signal.SIGHUP)\nprint(5)": [
        "exited",
        "",
        "signal SIGHUP",
    ],
    "import signal, time\nsignal.alarm(1)\ntime.sleep(30)": ["exited", "", "signal SIGALRM"],
    (
        "import signal\nprint(signal.pthread_sigmask(signal.SIG_BLOCK, []), [int(s) for s in "
        "range(1, 65) if signal.getsignal(s) == signal.SIG_IGN])"
    ): [
        "passed",
        "set() [13, 25]\n",
        "",
    ],
    "while True: pass": ["time", "", ""],
    "import ctypes\nctypes.string_at(0)": ["exited", "", "signal SIGSEGV"],
}


def test_verdicts_do_not_hang_on_the_signals_of_who_started_the_run() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INHERITED],
        input=json.dumps(list(PROGRAMS)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [*PROGRAMS.values()] * 2


@pytest.mark.parametrize(
    "act",
    [
        "signal.signal(signal.SIGXCPU, signal.SIG_IGN)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))",
    ],
)
def test_the_limit_of_processor_time_cannot_be_ignored(run: Runner, act: str) -> None:
    program = (
        f"import signal, time\n{act}\nuntil = time.process_time() + 1.2\nwhile "
        "time.process_time() < until: pass\nprint('late')"
    )
    ended = run(program, limits=Limits(seconds=0.5))
    assert (ended.outcome, ended.stdout) == (Outcome.time, b"")


# --- as an unprivileged user


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0, reason="this is no root, so the other tests were made as a user"
)
def test_an_unprivileged_user_has_the_same_boxes() -> None:
    """This file again, by a user with no more than an id."""
    reached = [
        sys.prefix,
        sys.base_prefix,
        *(path for path in map(os.path.realpath, sys.path) if os.path.exists(path)),
        str(ROOT),
    ]
    first = (str(Path(_box.__file__).with_name("_enter.py")), "4217", *_outermost(reached))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow",
        "-o",
        "addopts=",
        __file__,
    ]
    environment = {
        **os.environ,
        "HOME": "/nonexistent",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        with_default_signals(command, first=first),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert re.search(r"\d\d passed", done.stdout), done.stdout[-300:]


def _outermost(paths: list[str]) -> list[str]:
    real = sorted(set(paths))
    return [
        path
        for path in real
        if not any(path != other and Path(path).is_relative_to(other) for other in real)
    ]
