"""The folder of a finished training: files are moved into place one by one, `train.json` last, so
that its presence means that all is there.

`train.json` holds the result and a fingerprint of data, options and start weights.
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


def finished_result(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """The result stored in the folder; None if there is none. UserError if it is another
    training's."""
    if not (out / _MARK).is_file():
        return None
    stored = json.loads((out / _MARK).read_text(encoding="utf-8"))
    require_same(out, stored["fingerprint"], fingerprint)
    result: dict[str, Any] = stored["result"] | {"path": out}
    return result


def require_same(out: Path, stored: str, fingerprint: str, what: str = "another training") -> None:
    """UserError unless the fingerprint stored in the folder is this training's; `what` names what
    the folder holds instead."""
    if stored != fingerprint:
        raise UserError(
            f"{out} holds {what} (other data, options or model): choose another folder or "
            "delete it."
        )


def publish(
    out: Path, fingerprint: str, result: Mapping[str, Any], fill: Callable[[Path], None]
) -> None:
    """Move what `fill` writes into an empty folder to `out`, and `train.json` last; a kill at any
    moment leaves `out` without it."""
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
