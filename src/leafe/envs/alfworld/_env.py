"""ALFWorld: household tasks in text.

Find a thing, carry it, clean, heat or cool it, and put it in its place, or look at it under a lamp.
The observations are the game's own. Where the game only says `Nothing happens.`, a sentence
explains why; with `list_actions` the possible actions are listed too, as some harnesses do. The
state is this process's memory, so a fork of the process is a snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import islice
from typing import ClassVar

from leafe.core import Environment, StepResult, Task, UserError
from leafe.envs._options import check_split, whole_number
from leafe.envs.alfworld._engine import NOTHING, Engine, goal_sentence
from leafe.envs.alfworld._setup import SPLITS, Found, games_of, open_games, require_packages
from leafe.envs.alfworld._stages import Stages
from leafe.envs.alfworld._why import forms, why_not


class AlfWorld(Environment):
    """ALFWorld (six household tasks in text): the official games, or games made by `leafe envs make
    alfworld`.

    Splits: train, valid_seen (140 official games in rooms of the training games), valid_unseen (134
    in other rooms); `valid` is valid_seen and `test` is valid_unseen.

    Args:
        data: The folder of the games. By default ALFWORLD_DATA, else ~/.cache/alfworld.
        list_actions: End each observation with the list of possible actions, as verl-agent does.
        horizon: Steps.
    """

    name = "alfworld"
    deterministic = True
    process: ClassVar[bool] = True
    forkable: ClassVar[bool] = True
    horizon = 50
    splits = tuple(SPLITS)
    needs: ClassVar[str] = (
        "the games: alfworld-download and ALFWORLD_DATA, or leafe envs make alfworld and "
        "the option data; pip install 'leafe[alfworld]'"
    )

    def __init__(
        self, data: str | None = None, list_actions: bool = False, horizon: int = 50
    ) -> None:
        self.horizon = whole_number(self.name, "horizon", horizon)
        if not isinstance(list_actions, bool):
            raise UserError(
                f"The environment 'alfworld' cannot have list_actions = {list_actions!r}: "
                "give true or false."
            )
        require_packages()
        self.games = open_games(data)
        self.list_actions = list_actions
        self.actions_help = (
            f"The actions are: {forms(self.games.put)}. Write names as you see them, with "
            "their number, as in 'cabinet 1'. "
            "You can carry one object at a time; a closed receptacle must be opened before "
            "you see into it."
        )
        self._engine: Engine | None = None
        self._stages: Stages | None = None
        self._best = 0
        self._done = False

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The split's games, in an order drawn by `seed`. Without a count all game files are
        read."""
        check_split(self.name, split, SPLITS)
        return [
            self._task(found, split) for found in islice(games_of(self.games, split, seed), count)
        ]

    def _task(self, found: Found, split: str) -> Task:
        label = found.path.rsplit("/", 1)[0].replace("/", "-")
        instruction = f"Your task is to: {goal_sentence(found.game)}."
        params = found.trajectory["pddl_params"]
        goal = {
            "type": found.trajectory["task_type"],
            "thing": params["object_target"],
            "place": params["parent_target"],
            "lamp": params["toggle_target"],
        }
        return Task(
            id=f"{self.games.kind}-{label}",
            env=self.name,
            split=split,
            instruction=instruction,
            payload={"game": found.path, "goal": goal},
        )

    def reset(self, task: Task, seed: int) -> str:
        if self._engine is None:
            self._engine = Engine()
        text = self._engine.start(self.games.root / task.payload["game"])
        self._stages = Stages(self._engine, **task.payload["goal"])
        self._done = False
        self._best = self._stages.reached()
        return text + self._action_list()

    def step(self, action: str) -> StepResult:
        engine, stages = self._engine, self._stages
        if engine is None or stages is None:
            raise RuntimeError("step before reset")
        if self._done:
            return StepResult(
                "The game is over: the task is done.",
                valid=False,
                done=True,
                progress=float(self._best),
            )
        command = " ".join(action.lower().split())
        text = engine.act(command)
        if text == NOTHING:
            return StepResult(
                f"{NOTHING} {why_not(engine, command, self.games.put)}{self._action_list()}",
                valid=False,
                progress=float(self._best),
            )
        won = engine.won
        self._done = won
        self._best = max(self._best, stages.all if won else stages.reached())
        return StepResult(
            text if won else text + self._action_list(),
            reward=float(won),
            done=won,
            success=won,
            progress=float(self._best),
        )

    def valid_actions(self) -> Sequence[str]:
        return [] if self._engine is None or self._done else self._engine.commands

    def versions(self) -> Mapping[str, str]:
        marker = self.games.marker
        made = "official"
        if marker is not None:
            made = (
                f"generated by leafe, format {marker.get('generator')}, alfworld "
                f"{marker.get('alfworld')}, seed {marker.get('seed')}"
            )
        return {
            "alfworld": version("alfworld"),
            "textworld": version("textworld"),
            "games": made,
            "wording": self.games.put,
            "goals": "as the game files say",
        }

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine, self._stages = None, None

    def _action_list(self) -> str:
        return (
            f"\nPossible actions: {', '.join(self.valid_actions())}." if self.list_actions else ""
        )
