"""Finds the games, and decides which count; official and generated games are never mixed.

A data folder is the official one (`json_2.1.1` with a folder for each split, or a folder that holds
it), or one written by `make_games`, which has a marker file. Which games count is the official
loader's rule: a `traj_data.json` of one of the six task types, no movable receptacles, nothing
sliced, and a `game.tw-pddl` beside it that was found solvable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leafe.core import UserError
from leafe.envs._options import require_package, shuffled
from leafe.envs.alfworld._engine import put_form, read_game
from leafe.envs.alfworld._scenes import TASK_TYPES

GAME = "game.tw-pddl"
TRAJECTORY = "traj_data.json"
MARKER = "leafe-generated.json"
FOLDERS = ("train", "valid_seen", "valid_unseen")
SPLITS: Mapping[str, str] = {
    "train": "train",
    "valid_seen": "valid_seen",
    "valid_unseen": "valid_unseen",
    "valid": "valid_seen",
    "test": "valid_unseen",
}
"""Split -> folder: the official names, and leafe's `valid` and `test`."""

_HOW = (
    "set ALFWORLD_DATA to what alfworld-download fetched, or make games of your own (leafe "
    "envs make alfworld --out DIR) and give the option data"
)


def require_packages() -> None:
    """Raise UserError if the extra is not installed."""
    for package in ("alfworld", "textworld", "fast_downward"):
        require_package("alfworld", package, "alfworld")


@dataclass(frozen=True, slots=True)
class Games:
    """A data folder."""

    root: Path
    """The folder of the split folders."""
    marker: Mapping[str, Any] | None
    """The marker of generated games; None for official ones."""
    put: str
    """The games' form of putting down, see `put_form`."""

    @property
    def kind(self) -> str:
        """The prefix of task ids."""
        return (
            "alfworld" if self.marker is None else f"alfworld-generated-s{self.marker.get('seed')}"
        )


@dataclass(frozen=True, slots=True)
class Found:
    """One game that counts."""

    path: str
    """The game file, relative to the root."""
    trajectory: Mapping[str, Any]
    game: Mapping[str, Any]


def open_games(data: str | None) -> Games:
    """Open the data folder: the option, else ALFWORLD_DATA, else the default of alfworld-download.
    UserError if there are no games."""
    given = data or os.environ.get("ALFWORLD_DATA") or str(Path.home() / ".cache" / "alfworld")
    base = Path(given).expanduser()
    if not base.is_dir():
        raise UserError(f"There are no ALFWorld games at {base}: {_HOW}.")
    candidates = [base, *sorted(base.glob("json_2.1.*"), reverse=True)]
    root = next(
        (folder for folder in candidates if any((folder / split).is_dir() for split in FOLDERS)),
        None,
    )
    if root is None:
        raise UserError(
            f"The folder {base} holds none of the ALFWorld splits {', '.join(FOLDERS)}: {_HOW}."
        )
    marker = None
    if (root / MARKER).is_file():
        try:
            marker = dict(json.loads((root / MARKER).read_text(encoding="utf-8")))
        except ValueError as error:
            raise UserError(
                f"The marker file {root / MARKER} cannot be read ({error}): make the games again."
            ) from error
        if not marker.get("complete"):
            raise UserError(
                f"The games in {root} were not all made: give the command leafe envs make "
                "alfworld with the same arguments again."
            )
    first = next(
        (
            folder / GAME
            for split in FOLDERS
            for folder in _folders(root, split)
            if (folder / GAME).is_file()
        ),
        None,
    )
    if first is None:
        raise UserError(
            f"The folder {root} holds no game file {GAME}: it was half-downloaded; run "
            "alfworld-download again."
        )
    return Games(root, marker, put_form(read_game(first)))


def games_of(games: Games, split: str, seed: int) -> Iterator[Found]:
    """The games of a split that count, in an order drawn by `seed`, read lazily."""
    folders = list(_folders(games.root, SPLITS[split]))
    if not folders:
        raise UserError(f"The folder {games.root / SPLITS[split]} holds no ALFWorld game: {_HOW}.")
    files = 0
    for folder in shuffled(folders, seed, "alfworld", SPLITS[split]):
        if (
            "movable" in folder.parent.name
            or "Sliced" in folder.parent.name
            or not (folder / GAME).is_file()
        ):
            continue
        files += 1
        trajectory = _read_trajectory(folder / TRAJECTORY)
        if trajectory["task_type"] in TASK_TYPES:
            game = read_game(folder / GAME)
            if game.get("solvable"):
                yield Found((folder / GAME).relative_to(games.root).as_posix(), trajectory, game)
    if not files:
        where = games.root / SPLITS[split]
        raise UserError(
            f"The folder {where} has {len(folders)} {TRAJECTORY} and no {GAME}: it was "
            "half-downloaded; run alfworld-download again."
        )


def _folders(root: Path, split: str) -> Iterator[Path]:
    """The trial folders of a split, sorted."""
    for task in sorted((root / split).iterdir() if (root / split).is_dir() else ()):
        if task.is_dir():
            yield from sorted(trial for trial in task.iterdir() if (trial / TRAJECTORY).is_file())


def _read_trajectory(path: Path) -> dict[str, Any]:
    try:
        trajectory = json.loads(path.read_text(encoding="utf-8"))
        params = trajectory["pddl_params"]
        assert isinstance(trajectory["task_type"], str)
        assert all(
            isinstance(params[key], str)
            for key in ("object_target", "parent_target", "toggle_target")
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"The ALFWorld file {path} cannot be read ({error}): it was cut off or "
            "damaged; download or make the games again."
        ) from error
    except (KeyError, TypeError, AssertionError) as error:
        raise UserError(
            f"The ALFWorld file {path} is of another version (no task_type or "
            "pddl_params): download or make the games again."
        ) from error
    return dict(trajectory)
