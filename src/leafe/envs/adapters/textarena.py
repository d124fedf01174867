"""TextArena's games for one player: a seed is a task, a fork of the process a snapshot.

The game is played without its wrappers, which repeat the whole history in every observation. Here
an observation holds the game's messages since the last action, without the player's own. A move
that the game calls invalid is undone completely (state, messages, random state). TextArena ends a
game at the second invalid move in a row; leafe uses `explore.max_invalid_actions` instead.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import permutations, product
from typing import Any, ClassVar

from leafe.core import Environment, StepResult, Task, UserError
from leafe.envs._options import require_package, whole_number
from leafe.envs.adapters._chance import Chance
from leafe.envs.adapters._tasks import SPLIT_SIZE, SPLITS, seed_tasks

_NEEDS_LLM = ("GuessWho", "TwentyQuestions", "Debate", "ScenarioPlanning")
"""Games that call a paid language model as game master or jury."""
_LOSSES = ("You hit a mine",)
"""A loss that the game reports as an invalid move."""
_REASON = re.compile(r"Reason: (.*?) Please resubmit a valid move", re.DOTALL)
_SHARED_LENGTH = 500
"""A list or set of this length is not copied with the game: word lists, which no move changes."""
_DIRECTIONS = ("up", "down", "left", "right")
_MOVES: Mapping[str, Sequence[str]] = {
    "2048": _DIRECTIONS,
    "Blackjack": ("Hit", "Stand"),
    "FifteenPuzzle": _DIRECTIONS,
    "FrozenLake": _DIRECTIONS,
    "GuessTheNumber": [str(n) for n in range(1, 51)],
    "LightsOut": [f"{r} {c}" for r, c in product(range(5), repeat=2)],
    "Mastermind": [" ".join(map(str, p)) for p in permutations(range(1, 7), 4)][::9],
    "Minesweeper": [f"{r} {c}" for r, c in product(range(8), repeat=2)],
    "PegJump": [f"{a} {b}" for a, b in permutations(range(1, 16), 2)],
    "Secretary": ("accept", "continue"),
    "Sokoban": _DIRECTIONS,
    "Sudoku": [f"{r} {c} {n}" for r, c, n in product(range(1, 10), repeat=3)],
    "ThreeCardMonte": ("0", "1", "2"),
    "TowerOfHanoi": [f"{a} {b}" for a, b in permutations("ABC", 2)],
}
"""Candidates for `valid_actions`, by the id without its version."""


class TextArena(Environment):
    """TextArena's single-player games: Minesweeper, Sudoku, Mastermind, Sokoban and twenty more.

    Args:
        game: Its id in TextArena, for instance 'Minesweeper-v0-small'.
        kwargs: Changes to the game's settings.
        success: The least reward that counts as success. A game pays 1 for a win and less for
            partial progress.
        horizon: Steps. By default the game's own limit, else 30.
        tasks: How many seeds a split has.
    """

    name = "textarena"
    process: ClassVar[bool] = True
    forkable: ClassVar[bool] = True
    splits = SPLITS
    needs: ClassVar[str] = (
        "textarena: pip install 'leafe[textarena]'; for its word games also NLTK's word lists"
    )

    def __init__(
        self,
        game: str = "Minesweeper-v0-small",
        kwargs: Mapping[str, Any] | None = None,
        success: float = 1.0,
        horizon: int | None = None,
        tasks: int = 1000,
    ) -> None:
        if isinstance(success, bool) or not isinstance(success, int | float):
            raise UserError(
                f"The environment 'textarena' cannot have success = {success!r}: give the "
                "least reward that counts as success."
            )
        if not isinstance(game, str) or not isinstance(kwargs or {}, Mapping):
            raise UserError(
                "The environment 'textarena' takes game as a text and kwargs as a table: "
                "correct the environment's options."
            )
        self.game = game
        self.success = float(success)
        self.number = whole_number(self.name, "tasks", tasks, most=SPLIT_SIZE)
        self.chance = Chance()
        self.chance.seed(0)
        with self.chance:
            self.env, self._brackets = _make(game, dict(kwargs or {}))
            self._shared = _large(self.env)
            _begin(self.env, game, 0)
        self._done = True
        self._ending = ""
        self.horizon = whole_number(
            self.name, "horizon", horizon if horizon is not None else self.env.state.max_turns or 30
        )
        brackets = ", in square brackets" if self._brackets else ""
        self.actions_help = f"Each action is one move as the game's rules ask for it{brackets}."

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """Seeds of the split's range in an order drawn by `seed`."""
        return seed_tasks(
            self.name,
            self.game,
            f"Play {_family(self.game)} and win.",
            self.number,
            split,
            count,
            seed,
        )

    def reset(self, task: Task, seed: int) -> str:
        """`seed` is not used: all draws follow from the task's own seed."""
        task_seed = int(task.payload["seed"])
        self.chance.seed(task_seed)
        with self.chance:
            _begin(self.env, self.game, task_seed)
        self._done, self._ending = False, ""
        return "\n\n".join(self._new_messages())

    def step(self, action: str) -> StepResult:
        if self._done:
            return StepResult(
                f"The game is over. {self._ending}Nothing changed.", valid=False, done=True
            )
        before = self._copy()
        refusal = self._play(action)
        if refusal is not None and not refusal.startswith(_LOSSES):
            self.env, self.chance.state = before
            return StepResult(f"{refusal} Nothing changed.", valid=False)
        messages = self._new_messages() if refusal is None else [refusal]
        state = self.env.state
        self._done = bool(state.done) or refusal is not None
        if not self._done:
            return StepResult("\n\n".join(messages) or "The game has nothing to say.")
        reward = float((state.rewards or {}).get(0, 0.0)) if refusal is None else 0.0
        won = refusal is None and reward >= self.success
        reason = (
            ""
            if refusal is not None
            else " ".join(str(state.game_info[0].get("reason") or "").split())
        )
        self._ending = "You have won. " if won else "You have lost. "
        messages += [*([reason] if reason else []), f"The game is over. {self._ending.strip()}"]
        return StepResult("\n\n".join(messages), reward=reward, done=True, success=won)

    def valid_actions(self) -> Sequence[str]:
        """The moves of `_MOVES` that the game accepts now, each tried on a copy."""
        candidates = _MOVES.get(_family(self.game))
        if candidates is None:
            raise NotImplementedError(f"leafe lists no moves for {self.game}")
        found = []
        for move in candidates:
            before = self._copy()
            if self._play(move) is None or self.env.state.done:
                found.append(move)
            self.env, self.chance.state = before
        return found

    def versions(self) -> Mapping[str, str]:
        return {"textarena": version("textarena")}

    def _play(self, action: str) -> str | None:
        """Let the game take the action; returns why it is invalid, or None if it is valid."""
        text = action.strip()
        if self._brackets and "[" not in text and "]" not in text:
            text = f"[{text}]"  # as TextArena's own wrapper does
        with self.chance:
            try:
                self.env.step(action=text)
            except Exception as error:
                return f"The game cannot read this move ({type(error).__name__})."
        if not self.env.state.error_count:
            return None
        found = (_REASON.search(text) for text in self._new_messages())
        reason = next((" ".join(match[1].split()) for match in found if match), "")
        return (
            reason
            if re.search("[a-z]", reason)
            else "This is no valid move: the game's first message has its rules."
        )

    def _new_messages(self) -> list[str]:
        """The game's messages since the last call, without the player's own."""
        from textarena import ObservationType

        # some games swap the arguments when they record a player's action: its text is then no str
        messages = self.env.state.get_current_player_observation()
        texts = [
            text
            for _, text, kind in messages
            if isinstance(text, str) and kind is not ObservationType.PLAYER_ACTION
        ]
        return [text.strip("\n") for text in texts if text.strip()]

    def _copy(self) -> tuple[Any, Any]:
        return copy.deepcopy(
            self.env, {id(value): value for value in self._shared}
        ), self.chance.state


def _make(game: str, kwargs: dict[str, Any]) -> tuple[Any, bool]:
    """The game without wrappers, and whether its moves are put in brackets."""
    require_package("textarena", "textarena", "textarena")
    import textarena
    from textarena.envs.registration import ENV_REGISTRY

    if game not in ENV_REGISTRY:
        near = difflib.get_close_matches(game, ENV_REGISTRY, 3) or [
            "Minesweeper-v0-small",
            "Sudoku-v0-easy",
            "Mastermind-v0",
        ]
        raise UserError(
            f"The environment 'textarena' has no game {game!r}: did you mean one of "
            f"{', '.join(near)}?"
        )
    if _family(game) in _NEEDS_LLM:
        raise UserError(
            f"The environment 'textarena' does not play {game!r}, which asks a language "
            "model over the network: choose another game."
        )
    try:
        with _no_download():  # NLTK is among TextArena's own requirements
            env = textarena.make(game, **kwargs)
    except LookupError as error:
        raise UserError(
            f"The game {game!r} needs NLTK's word lists, which are not here: run python -m "
            "nltk.downloader words averaged_perceptron_tagger_eng once."
        ) from error
    except SyntaxError as error:
        raise UserError(
            f"The game {game!r} is written for a later Python than this one ({error.msg}): "
            "choose another game, or run leafe there."
        ) from error
    except (ImportError, FileNotFoundError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(
            f"The environment 'textarena' cannot make {game!r}: {why}: correct game or kwargs."
        ) from error
    brackets = False
    while isinstance(env, textarena.Wrapper):
        brackets = brackets or type(env).__name__ == "ActionFormattingWrapper"
        env = env.env
    return env, brackets


def _begin(env: Any, game: str, seed: int) -> None:
    """Start the game for one player; UserError if it needs more."""
    import textarena

    try:
        env.reset(num_players=1, seed=seed)
        alone = isinstance(env.state, textarena.SinglePlayerState)
    except (AssertionError, ValueError, FileNotFoundError):
        alone = False
    if not alone:
        raise UserError(
            f"The environment 'textarena' plays games for one player, and {game!r} is for "
            "more: choose another game."
        )
    env.state.error_allowance = 1_000_000_000  # leafe counts invalid moves itself


@contextlib.contextmanager
def _no_download() -> Iterator[None]:
    """Some games download word lists whenever they are made: prevent it."""
    import nltk  # type: ignore[import-untyped]

    kept = nltk.download
    nltk.download = lambda *_args, **_options: True
    try:
        yield
    finally:
        nltk.download = kept


def _large(env: Any) -> list[Any]:
    """The game's word lists, which copies share."""
    return [
        value
        for value in vars(env).values()
        if type(value).__name__ == "EnglishDictionary"
        or (isinstance(value, list | tuple | set) and len(value) >= _SHARED_LENGTH)
    ]


def _family(game: str) -> str:
    """`Sudoku` for `Sudoku-v0-easy`."""
    return game.split("-v")[0]
