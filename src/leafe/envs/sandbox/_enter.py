"""Becomes the box's own user before any namespace of the box is made. Run by the small interpreter
of `leafe.core.processes`, where leafe is root:

    _enter.py ID PATH ...       ID: user and group to become; PATH: what that user must be able to
    reach

The interpreter may lie where only root looks (`/root/.pyenv`): then, in a mount namespace of this
process alone, such a folder gives way to an empty
one in which nothing but the paths appears. Standard library alone.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x20000
_BIND = 0x1000 | 0x4000  # MS_BIND, MS_REC


def enter(number: int, paths: list[str]) -> None:
    closed = {path: folder for path in paths if (folder := _closed(path))}
    if closed:
        _open_up(closed, number)
    os.setgroups([])
    os.setresgid(number, number, number)
    os.setresuid(number, number, number)


def _closed(path: str) -> str:
    """The outermost folder above `path` that others may not search; empty where there is none."""
    at = ""
    for part in path.split("/")[1:-1]:
        at += "/" + part
        if not os.stat(at).st_mode & 0o001:
            return at
    return ""


def _open_up(closed: dict[str, str], number: int) -> None:
    import ctypes  # takes half of the time, and is seldom needed

    libc = ctypes.CDLL(None, use_errno=True)

    def checked(failed: int, what: str) -> None:
        if failed:
            os.write(2, f"{what}: {os.strerror(ctypes.get_errno())}".encode())
            os._exit(1)

    mapped = _maps(number)
    checked(libc.unshare(_NEW_USER | _NEW_MOUNTS), "a user namespace")
    mapped()
    files = {path: os.open(path, os.O_PATH) for path in closed}
    folders = {path: os.path.isdir(path) for path in closed}
    for folder in dict.fromkeys(closed.values()):
        checked(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, b"mode=755"), folder)
    for path, file in files.items():
        os.makedirs(path if folders[path] else os.path.dirname(path), exist_ok=True)
        if not folders[path] and not os.path.exists(path):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        checked(
            libc.mount(f"/proc/self/fd/{file}".encode(), path.encode(), None, _BIND, None), path
        )
        os.close(file)


def _maps(number: int) -> Callable[[], None]:
    """What gives this process, once it has a user namespace, its ids: itself as root, who may mount
    there, and the user `number`. The maps are written by
    a process that is outside."""
    mine, theirs = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(theirs)
        os.read(mine, 1)
        try:
            for file in ("uid_map", "gid_map"):
                with open(f"/proc/{parent}/{file}", "w") as out:
                    out.write(f"0 {os.getuid()} 1\n{number} {number} 1\n")
            os._exit(0)
        except OSError as error:
            os.write(2, f"the ids of the box cannot be mapped: {error}".encode())
        finally:
            os._exit(1)

    def wait() -> None:
        os.close(mine)
        os.close(theirs)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            os._exit(1)

    return wait


enter(int(arguments[0]), arguments[1:])  # type: ignore[name-defined] # noqa: F821
