"""Real data is looked for in `LEAFE_DATA`, else in `../shared/data` beside the working folder."""

from __future__ import annotations

import os
from pathlib import Path

from leafe.core import UserError


def data_path(relative: str, what: str, option: str) -> Path:
    """The file or folder `relative` of the data folder.

    Raises:
        UserError: It is absent. The message names `option`, the environment's own way to give it.
    """
    root = os.environ.get("LEAFE_DATA")
    path = (Path(root) if root else Path.cwd().parent / "shared" / "data") / relative
    if not path.exists():
        raise UserError(
            f"{what} not found at {path}: set LEAFE_DATA to the folder that holds "
            f"{relative}, or give the option {option}."
        )
    return path
