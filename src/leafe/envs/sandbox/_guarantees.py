"""The sandbox's guarantees on this machine, for `leafe doctor`."""

from __future__ import annotations

import os
import platform

from leafe.core import UserError
from leafe.envs.sandbox._box import host_id
from leafe.envs.sandbox._sandbox import Sandbox
from leafe.envs.sandbox._syscalls import ALLOWED, NOT_BITS, ONLY_BITS, ONLY_WITH
from leafe.envs.sandbox._watch import counts_threads


def guarantees() -> dict[str, str]:
    """Run the self-test, and describe each guarantee on this machine.

    Returns:
        Guarantee to description. Without a sandbox one entry, which says what to do.
    """
    try:
        sandbox = Sandbox()
    except UserError as error:
        return {"model-written code": f"is not run: {error}"}
    sandbox.close()
    number = host_id()
    if number is not None:
        owner = f"id {number}, which nobody has (leafe is root here)"
    elif os.geteuid() == 0:
        owner = (
            "the one id of this container, as leafe itself: give it more ids (subuid), or run "
            "leafe as another user"
        )
    else:
        owner = f"your own id, {os.getuid()}; nothing in them can be changed"
    calls = len(ALLOWED) + len(ONLY_WITH) + len(ONLY_BITS) + len(NOT_BITS) + 1
    return {
        "model-written code": (
            f"runs in boxes ({'kept' if sandbox.way == 'fork' else 'a fresh one each'}); the "
            "self-test found no hole"
        ),
        "boxes belong to": owner,
        "network, files, processes": (
            "namespaces of their own; read-only; numbers of its own for each run"
        ),
        "system calls": f"{calls} are allowed, all others refused ({platform.machine()})",
        "threads of a program": "at most 128"
        if counts_threads()
        else f"bounded by memory alone: Linux {platform.release()} is before 5.14",
        "memory": "address space, and what a large stack really uses",
        "time": "processor time of the scheduler; the wall clock is 10 s and 20 times that",
    }
