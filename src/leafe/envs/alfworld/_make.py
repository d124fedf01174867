"""Generates games from a seed, each proved to be winnable, in the official folder layout.

OUT/leafe-generated.json: what the folder is; `complete` is set last
OUT/<split>/<type>-<thing>-None-<place>-<floor plan>/trial_G<seed>_<number>/: game.tw-pddl and
traj_data.json

train and valid_seen share the floor plans that alfworld's authors train on; valid_unseen has the
others. The six task types take turns, so every split with six games or more has all of them. The
same arguments give the same bytes.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from leafe.core import UserError, derive_seed
from leafe.envs.alfworld._planner import Planner
from leafe.envs.alfworld._scenes import TASK_TYPES, Game, draw_game, floor_plans
from leafe.envs.alfworld._setup import GAME, MARKER, TRAJECTORY, require_packages

FORMAT = 1
"""The version of the generator: another number, other games for the same seed."""
MAX_DRAWS = 20
"""Draws for one game before the generator fails."""


def make_games(
    out: str | Path,
    games: int = 100,
    seed: int = 0,
    seconds: float = 60.0,
    progress: Callable[[int, int], None] | None = None,
    planner: Planner | None = None,
) -> dict[str, Any]:
    """Generate games.

    Called again for an unfinished folder, it finishes it.

    Args:
        out: The folder to write.
        games: How many: three fifths train, one fifth each valid_seen and valid_unseen.
        seed: Decides the games.
        seconds: Limit of the planner for one game. A game that it cannot win in that time is
            dropped, counted and drawn again.
        progress: Called with (games written, games in all).
        planner: By default a new one.

    Returns:
        The contents of the marker file.

    Raises:
        UserError: There are fewer than 3 games, the folder holds something else or cannot be
            written, or the planner fails repeatedly.
    """
    require_packages()
    out = Path(out)
    if games < 3:
        raise UserError(f"{games} games cannot fill three splits: ask for 3 or more.")
    fifth = max(1, games // 5)
    sizes = {"train": games - 2 * fifth, "valid_seen": fifth, "valid_unseen": fifth}
    facts = {
        "generator": FORMAT,
        "alfworld": version("alfworld"),
        "textworld": version("textworld"),
        "seed": seed,
        "games": sizes,
    }
    marker = out / MARKER
    before = _read(marker)
    if {k: v for k, v in before.items() if k in facts} == facts and before.get("complete"):
        return before
    if (
        out.exists()
        and (not out.is_dir() or any(p.name != MARKER for p in out.iterdir()))
        and {k: before.get(k) for k in facts} != facts
    ):
        raise UserError(
            f"{out} is not empty and holds other things than these games: give an empty folder."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {out} cannot be made ({error.strerror}): give another one."
        ) from error
    # first, so that an unfinished folder never passes for official games
    _write(marker, facts | {"dropped": 0, "complete": False})
    dropped = done = 0
    with planner or Planner(seconds) as solver, tempfile.TemporaryDirectory() as scratch:
        for split, size in sizes.items():
            for number in range(size):
                dropped += _make_game(out, split, number, seed, solver, Path(scratch) / GAME)
                done += 1
                if progress is not None:
                    progress(done, games)
    facts |= {"dropped": dropped, "complete": True}
    _write(marker, facts)
    return facts


def _make_game(
    out: Path, split: str, number: int, seed: int, planner: Planner, scratch: Path
) -> int:
    """Write one game; returns how many draws were dropped."""
    plans = floor_plans(seen=split != "valid_unseen")
    for attempt in range(MAX_DRAWS):
        game = draw_game(
            TASK_TYPES[number % len(TASK_TYPES)],
            plans,
            derive_seed(seed, "alfworld", FORMAT, split, number, attempt),
        )
        contents = _contents(game)
        _write(scratch, contents)
        walkthrough = planner.win(scratch, game.core)
        if walkthrough is not None:
            folder = (
                out
                / split
                / f"{game.goal.folder}-{game.room.number}"
                / f"trial_G{seed}_{number:05d}"
            )
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / TRAJECTORY, _trajectory(game, folder.name))
            _write(folder / GAME, contents | {"solvable": True, "walkthrough": walkthrough})
            return attempt
    raise UserError(
        f"The planner could win none of {MAX_DRAWS} games drawn for {split}, number {number}: "
        "give it more seconds."
    )


def _contents(game: Game) -> dict[str, Any]:
    data = resources.files("alfworld") / "data"
    grammar = (
        (data / "alfred.twl2").read_text(encoding="utf-8").replace("UNKNOWN GOAL", game.sentence)
    )
    domain = (data / "alfred.pddl").read_text(encoding="utf-8")
    return {
        "pddl_domain": domain,
        "grammar": grammar,
        "pddl_problem": game.problem,
        "solvable": None,
        "walkthrough": None,
    }


def _trajectory(game: Game, trial: str) -> dict[str, Any]:
    """The official file's entries, as far as a text game has them."""
    lamp = "DeskLamp" if game.goal.task_type == "look_at_obj_in_light" else ""
    return {
        "task_id": trial,
        "task_type": game.goal.task_type,
        "pddl_params": {
            "object_target": game.goal.thing,
            "parent_target": game.goal.place,
            "toggle_target": lamp,
            "mrecep_target": "",
            "object_sliced": False,
        },
        "scene": {"floor_plan": f"FloorPlan{game.room.number}", "scene_num": game.room.number},
        "turk_annotations": {"anns": [{"task_desc": game.sentence}]},
    }


def _read(marker: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(marker.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _write(path: Path, value: Any) -> None:
    """Write atomically."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)
