"""The folder of a finished training: all files are put in place one by one, `train.json` last, so
that where it is, all is.

It holds what the training was (a fingerprint of data, options and start weights) and what came of
it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from leafe.core import UserError
from leafe.distill._checkpoint import sync

_MARK = "train.json"


def finished(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """The result that stands in the folder; None where none does. UserError where it is another
    training's."""
    if not (out / _MARK).is_file():
        return None
    found = json.loads((out / _MARK).read_text(encoding="utf-8"))
    same(out, found["fingerprint"], fingerprint)
    result: dict[str, Any] = found["result"] | {"path": out}
    return result


def same(out: Path, found: str, fingerprint: str, what: str = "another training") -> None:
    """UserError unless what was found in the folder is of this training."""
    if found != fingerprint:
        raise UserError(
            f"{out} holds {what} (other data, options or model): choose another folder or "
            "delete it."
        )


def publish(
    out: Path, fingerprint: str, result: Mapping[str, Any], fill: Callable[[Path], None]
) -> None:
    """What `fill` writes into an empty folder, and the mark, into `out`; a kill at any moment
    leaves `out` without the mark."""
    partial = out / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    (partial / _MARK).write_text(
        json.dumps({"fingerprint": fingerprint, "result": dict(result)}, indent=1), encoding="utf-8"
    )
    sync(partial)
    for path in sorted(partial.iterdir(), key=lambda p: p.name == _MARK):
        path.replace(out / path.name)
    partial.rmdir()
