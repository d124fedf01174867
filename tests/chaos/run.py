"""`leafe`, as a user calls it, watched: whatever the journal says is durable is noted elsewhere,
and the wall clock jumps.

    python -m tests.chaos.run NOTES SEED explore RECIPE ...

A line of NOTES is [task, index, digest of the episode's JSON, whether the disk was synced since it
was handed over].
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Sequence
from hashlib import blake2b

from leafe.core import Episode
from leafe.runs import Journal


def digest(episode: Episode) -> str:
    return blake2b(json.dumps(episode.to_json()).encode(), digest_size=8).hexdigest()


def watch(notes: str, seed: int) -> None:
    file = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    syncs = 0
    append, fsync, clock, chance = Journal.append, os.fsync, time.time, random.Random(seed)

    def counted(fd: int) -> None:
        nonlocal syncs
        fsync(fd)
        syncs += 1

    def noted(self: Journal, episodes: Sequence[Episode]) -> None:
        before = syncs
        append(self, episodes)
        os.write(
            file,
            "".join(
                json.dumps([e.task_id, e.index, digest(e), syncs > before]) + "\n" for e in episodes
            ).encode(),
        )

    os.fsync = counted
    Journal.append = noted  # type: ignore[method-assign]
    time.time = lambda: clock() + chance.uniform(-1e8, 1e8)


if __name__ == "__main__":
    watch(sys.argv[1], int(sys.argv[2]))
    del sys.argv[1:3]
    from leafe.cli import main

    main()
