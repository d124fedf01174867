"""Changes to the box's user before any namespace of the box is made.

Run by the small interpreter of `leafe.core.processes`, if leafe is root:

    _enter.py ID PATH ...

ID is the user and group to change to; each PATH must be reachable by that user. If the interpreter
lies where only root may look (`/root/.pyenv`), such a folder is replaced, in a mount namespace of
this process alone, by an empty one that shows only the paths. Standard library alone.
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
    """The outermost folder above `path` that others may not search, or ""."""
    at = ""
    for part in path.split("/")[1:-1]:
        at += "/" + part
        if not os.stat(at).st_mode & 0o001:
            return at
    return ""


def _open_up(closed: dict[str, str], number: int) -> None:
    import ctypes  # slow to import, and seldom needed

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
    """Returns a function that maps this process's ids once it has a user namespace: itself to root,
    who may mount there, and the user `number`. A process outside the namespace writes the maps."""
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
