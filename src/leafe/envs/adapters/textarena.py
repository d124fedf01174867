"""TextArena's games for one player: each seed is a task, and a copy of the process is the way back.

The game is played without its wrappers, which repeat the whole history in every observation: here
an observation holds what the game has said since
the last action, and nothing of what the player said himself. A move that the game calls invalid is
taken back whole (state, messages, chance),
so that it changes nothing; TextArena itself ends a game at the second invalid move in a row, leafe
by `explore.max_invalid_actions`.
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
from leafe.envs.adapters._chance import Chance
from leafe.envs.adapters._tasks import APART, SPLITS, seed_tasks, whole

_ONLINE = ("GuessWho", "TwentyQuestions", "Debate", "ScenarioPlanning")
"""Games with a language model behind a paid address as game master or jury."""
_LOSSES = ("You hit a mine",)
"""What a game reports as an invalid move, but is the loss of the game."""
_REASON = re.compile(r"Reason: (.*?) Please resubmit a valid move", re.DOTALL)
_LARGE = 500
"""Members of a list or set that is not copied with the game: word lists, which no move changes."""
_WAYS = ("up", "down", "left", "right")
_MOVES: Mapping[str, Sequence[str]] = {
    "2048": _WAYS,
    "Blackjack": ("Hit", "Stand"),
    "FifteenPuzzle": _WAYS,
    "FrozenLake": _WAYS,
    "GuessTheNumber": [str(n) for n in range(1, 51)],
    "LightsOut": [f"{r} {c}" for r, c in product(range(5), repeat=2)],
    "Mastermind": [" ".join(map(str, p)) for p in permutations(range(1, 7), 4)][::9],
    "Minesweeper": [f"{r} {c}" for r, c in product(range(8), repeat=2)],
    "PegJump": [f"{a} {b}" for a, b in permutations(range(1, 16), 2)],
    "Secretary": ("accept", "continue"),
    "Sokoban": _WAYS,
    "Sudoku": [f"{r} {c} {n}" for r, c, n in product(range(1, 10), repeat=3)],
    "ThreeCardMonte": ("0", "1", "2"),
    "TowerOfHanoi": [f"{a} {b}" for a, b in permutations("ABC", 2)],
}
"""Candidates for `valid_actions`, by the id without its version: those that the game takes are
given."""


class TextArena(Environment):
    """TextArena's single-player games: Minesweeper, Sudoku, Mastermind, Sokoban and twenty more.

    Options: `game`, its id in TextArena, for instance 'Minesweeper-v0-small'; `kwargs`, changes to
    the game's settings; `success`, the least reward that counts
    as success (a game pays 1 for a win and a part of it for a part of the way); `horizon`, steps,
    by default the game's own limit, else 30; `tasks`, how
    many seeds a split has.
    """

    name = "textarena"
    process: ClassVar[bool] = True
    forkable: ClassVar[bool] = True
    splits: tuple[str, ...] = SPLITS
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
        self.number = whole(self.name, "tasks", tasks, APART)
        self.chance = Chance()
        self.chance.seed(0)
        with self.chance:
            self.env, self._brackets = _make(game, dict(kwargs or {}))
            self._shared = _large(self.env)
            _begin(self.env, game, 0)
        self._done = True
        self._over = ""
        self.horizon = whole(
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
        """`seed` is not used: a task's chance is its own seed's, so that it is the same game every
        time."""
        own = int(task.payload["seed"])
        self.chance.seed(own)
        with self.chance:
            _begin(self.env, self.game, own)
        self._done, self._over = False, ""
        return "\n\n".join(self._said())

    def step(self, action: str) -> StepResult:
        if self._done:
            return StepResult(
                f"The game is over. {self._over}Nothing changed.", valid=False, done=True
            )
        before = self._copy()
        refusal = self._play(action)
        if refusal is not None and not refusal.startswith(_LOSSES):
            self.env, self.chance.state = before
            return StepResult(f"{refusal} Nothing changed.", valid=False)
        said = self._said() if refusal is None else [refusal]
        state = self.env.state
        self._done = bool(state.done) or refusal is not None
        if not self._done:
            return StepResult("\n\n".join(said) or "The game has nothing to say.")
        reward = float((state.rewards or {}).get(0, 0.0)) if refusal is None else 0.0
        won = refusal is None and reward >= self.success
        reason = (
            ""
            if refusal is not None
            else " ".join(str(state.game_info[0].get("reason") or "").split())
        )
        self._over = "You have won. " if won else "You have lost. "
        said += [*([reason] if reason else []), f"The game is over. {self._over.strip()}"]
        return StepResult("\n\n".join(said), reward=reward, done=True, success=won)

    def valid_actions(self) -> Sequence[str]:
        """Those of a game's usual moves that it takes now, each tried on a copy. Not for every
        game: `NotImplementedError` for the others."""
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
        """Let the game take the action; why it is invalid, None where it is not."""
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
        found = (_REASON.search(text) for text in self._said())
        reason = next((" ".join(match[1].split()) for match in found if match), "")
        return (
            reason
            if re.search("[a-z]", reason)
            else "This is no valid move: the game's first message has its rules."
        )

    def _said(self) -> list[str]:
        """What the game has said since the last time."""
        from textarena import ObservationType

        # some games mix up the arguments when they note what the player said: such a note is no
        # text
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
    """The game itself, and whether its moves are put in brackets where they are not; UserError for
    what cannot be played."""
    try:
        import textarena
        from textarena.envs.registration import ENV_REGISTRY
    except ModuleNotFoundError as error:
        raise UserError(
            "The environment 'textarena' needs the package 'textarena': run pip install "
            "'leafe[textarena]'."
        ) from error
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
    if _family(game) in _ONLINE:
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
    """Start the game for one player; UserError where it is none for one."""
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
    env.state.error_allowance = 1_000_000_000  # the count of invalid moves is leafe's


@contextlib.contextmanager
def _no_download() -> Iterator[None]:
    """Some games download word lists whenever they are made: what is not here is not fetched."""
    import nltk  # type: ignore[import-untyped]

    kept = nltk.download
    nltk.download = lambda *_args, **_options: True
    try:
        yield
    finally:
        nltk.download = kept


def _large(env: Any) -> list[Any]:
    values = vars(env).values()
    return [
        value
        for value in values
        if type(value).__name__ == "EnglishDictionary"
        or (isinstance(value, list | tuple | set) and len(value) >= _LARGE)
    ]


def _family(game: str) -> str:
    """`Sudoku` for `Sudoku-v0-easy`."""
    return game.split("-v")[0]
