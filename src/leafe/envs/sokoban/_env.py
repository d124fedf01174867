"""The Sokoban environment: an action is a word, an observation a grid.

A move that cannot be made is answered with what is in the way, and changes nothing. A push that
makes the level unsolvable ends the episode with a sentence that names the box and the reason. Only
certain cases are claimed: a square from which no goal can be reached even on an empty board (such
as a corner), and a 2x2 block of boxes and walls with a box off its goal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import ClassVar

from leafe.core import Environment, StepResult, Task, UserError
from leafe.envs._data import data_path
from leafe.envs._options import check_split, shuffled, whole_number
from leafe.envs.sokoban._board import MOVES, Level, State, build, deadlock, shift
from leafe.envs.sokoban._files import level_files, read_levels, split_of
from leafe.envs.sokoban._rooms import MAX_STATES, VERSION, Room, rooms, states

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

    Generated rooms are 6x6 with one box and horizon 15 by default, as verl-agent and LEAFE's
    authors play it. Each can be solved within the horizon. A room's split follows from a hash of
    walls, goals and boxes, the same for a room that is rotated, mirrored or moved: a half is train,
    a quarter each valid and test. Without a count there are 1000 tasks.

    The split of a level file follows from its name. 'train' in it means train. 'valid' gives the
    even levels to valid and the odd ones to test (Boxoban publishes no test files for medium).
    'test' means test. Any other file gives levels N with N mod 10 = 8 to valid, 9 to test, and the
    rest to train.

    Args:
        levels: 'generated' (no data needed), 'boxoban' (the folder of that name in the data
            folder), or the path of a level file (plain or gzip) or of a folder of them.
        difficulty: Which files of a folder count, by name: unfiltered, medium, hard, or any.
        horizon: Steps; by default 15 in generated rooms and 40 on level files.
        size: Of generated rooms: rows x columns, with the outer walls.
        boxes: Of generated rooms.
    """

    name = "sokoban"
    deterministic = True
    quick = True
    can_snapshot = True
    actions_help = _HELP
    horizon = 15
    splits = ("train", "valid", "test")
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
        self.horizon = whole_number(self.name, "horizon", horizon)
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
        self.levels, self.difficulty, self.boxes = levels, difficulty, boxes
        self.size = _size(size, boxes, horizon)
        self._level: Level | None = None
        self._state: State | None = None

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The split's levels, in an order drawn by `seed`."""
        check_split(self.name, split, self.splits)
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
        return shuffled(found, seed, "sokoban", split)[:count]

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
            return self._refuse("The level is over.")
        match = _ACTION.fullmatch(action.strip())
        if match is None:
            shown = action.strip() if len(action) <= 40 else action.strip()[:40] + "..."
            return self._refuse(f"There is no action {shown!r}: say up, down, left or right.")
        word = match[1].lower()
        to = shift(state.player, word)
        if to in level.walls:
            return self._refuse(f"You cannot move {word}: there is a wall {_SIDE[word]} you.")
        if to not in state.boxes:
            self._state = State(to, state.boxes, state.best)
            return self._result(f"You moved {word}.")
        behind = shift(to, word)
        if behind in level.walls or behind in state.boxes:
            what = "a wall" if behind in level.walls else "another box"
            return self._refuse(
                f"You cannot push the box {_SIDE[word]} you: there is {what} behind it."
            )
        boxes = state.boxes - {to} | {behind}
        on_goals = len(boxes & level.goals)
        stuck = deadlock(level, boxes, behind)
        won = on_goals == len(boxes)
        self._state = State(to, boxes, max(state.best, on_goals), done=won or stuck is not None)
        text = f"You pushed a box {word}" + (
            ", onto a goal."
            if behind in level.goals
            else ", off its goal."
            if to in level.goals
            else "."
        )
        if won:
            return self._result(
                f"{text} All boxes are on goals: the level is solved.",
                reward=1.0,
                done=True,
                success=True,
            )
        if stuck is not None:
            return self._result(
                f"{text} {stuck} The level can no longer be solved: you have lost.", done=True
            )
        return self._result(text)

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

    def _refuse(self, why: str) -> StepResult:
        assert self._state is not None
        return StepResult(
            f"{why} Nothing changed.\n{self._view()}",
            valid=False,
            done=self._state.done,
            progress=float(self._state.best),
        )

    def _result(
        self, text: str, reward: float = 0.0, done: bool = False, success: bool = False
    ) -> StepResult:
        assert self._state is not None
        return StepResult(
            f"{text}\n{self._view()}",
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
    """Rows and columns; UserError for rooms that cannot be generated, or only too slowly."""
    match = re.fullmatch(r"(\d{1,2})x(\d{1,2})", size) if isinstance(size, str) else None
    rows, columns = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(rows, columns) < 4:
        raise UserError(
            f"The environment 'sokoban' cannot have size {size!r}: write rows x columns "
            "with the outer walls, both from 4, for example '6x6'."
        )
    whole_number("sokoban", "boxes", boxes)
    if states(rows, columns, boxes) > MAX_STATES:
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
