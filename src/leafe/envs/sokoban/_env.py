"""The environment: a move is a word, a grid comes back.

A move that cannot be made gets a sentence that says what is in the way, and changes nothing. A push
after which the
level can no longer be solved ends the episode with a sentence that names the box and the reason;
only certain cases are claimed: a square
from which no goal can be reached even on an empty board (corners are the plainest kind), and a 2x2
block of boxes and walls with a box off its goal.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import ClassVar

from leafe.core import Environment, StepResult, Task, UserError, derive_seed
from leafe.envs._data import data_path
from leafe.envs.sokoban._board import MOVES, Level, State, build, deadlock, shift
from leafe.envs.sokoban._files import level_files, read_levels, split_of
from leafe.envs.sokoban._rooms import LARGEST, VERSION, Room, rooms, states

DIFFICULTIES = ("unfiltered", "medium", "hard", "any")
_SIDE = {"up": "above", "down": "below", "left": "to the left of", "right": "to the right of"}
_ACTION = re.compile(r"(?:(?:move|push|go|walk|step) )?(up|down|left|right)[.! ]*", re.IGNORECASE)
_HELP = (
    "Each action is one word: up, down, left or right. You walk one square, and push the "
    "box that stands there if the square behind it is free. "
    "You cannot pull, and you cannot push two boxes at once.\n"
    "The grid: # wall, _ floor, O goal, X box, √ box on a goal, P you, S you on a goal. "
    "Rows and columns count from 0 at the top left."
)


class Sokoban(Environment):
    """Sokoban: push every box onto a goal, in generated rooms or on level files.

    Options: `levels`, 'generated' (rooms made here, no data needed), 'boxoban' (the folder of that
    name in the data folder), or the path of a
    level file (plain or gzip) or of a folder of them; `horizon`, steps, by default 15 in generated
    rooms and 40 on level files.
    For generated rooms: `size`, rows x columns with the outer walls; `boxes`. By default 6x6 with
    one box and horizon 15, as verl-agent plays it and LEAFE's
    authors with it; every room can be solved within the horizon. For files: `difficulty`, which
    files of a folder count, by name
    (unfiltered, medium, hard; any: all of them).

    Splits of generated rooms: by a hash of walls, goals and boxes, the same for a room that is
    turned, mirrored or moved, so that none is in two of
    them, whatever the seed; a half is train, a quarter each valid and test. 1000 tasks where no
    count is given.
    Splits of files, by a file's name: 'train' in it makes it train; 'valid' in it gives its even
    levels to valid and its odd ones to test
    (Boxoban publishes no test files for medium); 'test' in it makes it test; any other file gives
    levels N with N mod 10 = 8 to
    valid, 9 to test, the rest to train.
    """

    name = "sokoban"
    deterministic = True
    quick = True
    can_snapshot = True
    actions_help = _HELP
    horizon = 15
    splits: tuple[str, ...] = ("train", "valid", "test")
    needs: ClassVar[str] = (
        "nothing for generated rooms; for levels = 'boxoban': the files of "
        "google-deepmind/boxoban-levels in LEAFE_DATA/boxoban"
    )

    def __init__(
        self,
        levels: str = "generated",
        difficulty: str = "unfiltered",
        horizon: int | None = None,
        size: str = "6x6",
        boxes: int = 1,
    ) -> None:
        if difficulty not in DIFFICULTIES:
            raise UserError(
                f"The environment 'sokoban' has no difficulty {difficulty!r}: give one of "
                f"{', '.join(DIFFICULTIES)}."
            )
        if not isinstance(levels, str) or not levels:
            raise UserError(
                f"The environment 'sokoban' cannot have levels = {levels!r}: give "
                "'generated', 'boxoban', or the path of a level file or folder."
            )
        generated = levels == "generated"
        if horizon is None:
            horizon = 15 if generated else 40
        if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
            raise UserError(
                f"The environment 'sokoban' cannot have horizon {horizon!r}: give a whole "
                "number of steps from 1."
            )
        if generated and difficulty != "unfiltered":
            raise UserError(
                "The environment 'sokoban' has difficulties on level files only: set "
                "levels, or leave difficulty out."
            )
        if not generated and (size, boxes) != ("6x6", 1):
            raise UserError(
                "The environment 'sokoban' takes size and boxes for levels = 'generated' "
                "only: level files have their own."
            )
        self.levels = levels
        self.difficulty = difficulty
        self.horizon = horizon
        self.size = _size(size, boxes, horizon)
        self.boxes = boxes
        self._level: Level | None = None
        self._state: State | None = None

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The split's levels in an order drawn by `seed`; a smaller count is a prefix of a larger
        one."""
        if split not in self.splits:
            raise UserError(
                f"The environment 'sokoban' has no split {split!r}: its splits are "
                f"{', '.join(self.splits)}."
            )
        if self.levels == "generated":
            return [
                self._generated(room, split)
                for room in islice(
                    rooms(*self.size, self.boxes, self.horizon, split, seed),
                    1000 if count is None else count,
                )
            ]
        root = (
            data_path("boxoban", "Boxoban levels", "levels")
            if self.levels == "boxoban"
            else Path(self.levels)
        )
        found = [
            self._task(f"{label}-{number}", split, rows)
            for path, label in level_files(root, self.difficulty)
            for number, rows in read_levels(path)
            if split_of(label, number) == split
        ]
        random.Random(derive_seed(seed, "sokoban", split)).shuffle(found)
        return found[:count]

    def _generated(self, room: Room, split: str) -> Task:
        return self._task(
            f"{'x'.join(map(str, self.size))}-{self.boxes}-{room.key}",
            split,
            room.rows,
            whole=True,
            moves=room.moves,
        )

    def _task(self, name: str, split: str, rows: Sequence[str], **more: int) -> Task:
        return Task(
            id=f"sokoban-{name}",
            env=self.name,
            split=split,
            instruction="Push every box onto a goal.",
            payload={"level": list(rows), **more},
        )

    def reset(self, task: Task, seed: int) -> str:
        self._level = build(tuple(task.payload["level"]), whole=bool(task.payload.get("whole")))
        self._state = self._level.start
        return self._view()

    def step(self, action: str) -> StepResult:
        level, state = self._level, self._state
        if level is None or state is None:
            raise RuntimeError("step before reset")
        if state.done:
            return self._refused("The level is over.")
        match = _ACTION.fullmatch(action.strip())
        if match is None:
            shown = action.strip() if len(action) <= 40 else action.strip()[:40] + "..."
            return self._refused(f"There is no action {shown!r}: say up, down, left or right.")
        word = match[1].lower()
        to = shift(state.player, word)
        if to in level.walls:
            return self._refused(f"You cannot move {word}: there is a wall {_SIDE[word]} you.")
        if to not in state.boxes:
            self._state = State(to, state.boxes, state.best)
            return self._moved(f"You moved {word}.")
        behind = shift(to, word)
        if behind in level.walls or behind in state.boxes:
            what = "a wall" if behind in level.walls else "another box"
            return self._refused(
                f"You cannot push the box {_SIDE[word]} you: there is {what} behind it."
            )
        boxes = state.boxes - {to} | {behind}
        on_goals = len(boxes & level.goals)
        stuck = deadlock(level, boxes, behind)
        won = on_goals == len(boxes)
        self._state = State(to, boxes, max(state.best, on_goals), done=won or stuck is not None)
        said = f"You pushed a box {word}" + (
            ", onto a goal."
            if behind in level.goals
            else ", off its goal."
            if to in level.goals
            else "."
        )
        if won:
            return self._moved(
                f"{said} All boxes are on goals: the level is solved.",
                reward=1.0,
                done=True,
                success=True,
            )
        if stuck is not None:
            return self._moved(
                f"{said} {stuck} The level can no longer be solved: you have lost.", done=True
            )
        return self._moved(said)

    def valid_actions(self) -> Sequence[str]:
        level, state = self._level, self._state
        if level is None or state is None:
            raise RuntimeError("valid_actions before reset")
        taken = level.walls | state.boxes
        ahead = {word: shift(state.player, word) for word in MOVES}
        return [
            word
            for word, to in ahead.items()
            if to not in level.walls and (to not in state.boxes or shift(to, word) not in taken)
        ]

    def versions(self) -> Mapping[str, str]:
        return {"sokoban rooms": str(VERSION)} if self.levels == "generated" else {}

    def snapshot(self) -> object:
        return (self._level, self._state)

    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, tuple)
        self._level, self._state = snapshot

    def _refused(self, why: str) -> StepResult:
        assert self._state is not None
        return StepResult(
            f"{why} Nothing changed.\n{self._view()}",
            valid=False,
            done=self._state.done,
            progress=float(self._state.best),
        )

    def _moved(
        self, said: str, reward: float = 0.0, done: bool = False, success: bool = False
    ) -> StepResult:
        assert self._state is not None
        return StepResult(
            f"{said}\n{self._view()}",
            reward=reward,
            done=done,
            success=success,
            progress=float(self._state.best),
        )

    def _view(self) -> str:
        level, state = self._level, self._state
        assert level is not None
        assert state is not None
        lines = []
        for row in range(level.rows):
            line = []
            for column in range(level.columns):
                cell = (row, column)
                goal = cell in level.goals
                if cell in level.walls:
                    line.append("#")
                elif cell == state.player:
                    line.append("S" if goal else "P")
                elif cell in state.boxes:
                    line.append("√" if goal else "X")
                else:
                    line.append("O" if goal else "_")
            lines.append(" ".join(line))
        lines.append(f"Boxes on goals: {len(state.boxes & level.goals)} of {len(state.boxes)}.")
        return "\n".join(lines)


def _size(size: str, boxes: int, horizon: int) -> tuple[int, int]:
    """Rows and columns; UserError for what cannot be made or would take too long."""
    match = re.fullmatch(r"(\d{1,2})x(\d{1,2})", size) if isinstance(size, str) else None
    rows, columns = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(rows, columns) < 4:
        raise UserError(
            f"The environment 'sokoban' cannot have size {size!r}: write rows x columns "
            "with the outer walls, both from 4, for example '6x6'."
        )
    if not isinstance(boxes, int) or isinstance(boxes, bool) or boxes < 1:
        raise UserError(
            f"The environment 'sokoban' cannot have boxes = {boxes!r}: give a whole number from 1."
        )
    if states(rows, columns, boxes) > LARGEST:
        raise UserError(
            f"The environment 'sokoban' cannot generate {size} rooms with {boxes} boxes: "
            "too many states to search; make size or boxes smaller."
        )
    if horizon < boxes or (rows - 2) * (columns - 2) <= 2 * boxes:
        raise UserError(
            f"The environment 'sokoban' has no {size} room with {boxes} boxes that takes "
            f"at most {horizon} steps: change size, boxes or horizon."
        )
    return rows, columns
