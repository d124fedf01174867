"""Gymnasium environments whose actions are names or texts: a seed is a task, a fork a snapshot.

An observation is shown as text: a string as it is, the entry `text_key` of a dict, or the
environment's own `render_mode="ansi"` with colours turned into brackets (often only a colour marks
where the player stands). An unknown action is refused with a sentence, and the environment is not
stepped. The draws of the environment's own generator and of the global ones follow from the task's
seed, so the same actions always give the same observations.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from numbers import Real
from typing import Any, ClassVar

from leafe.core import EnvError, Environment, StepResult, Task, UserError, find_named
from leafe.envs._options import IMPORT_PATH, require_package, whole_number
from leafe.envs.adapters._chance import Chance
from leafe.envs.adapters._tasks import SPLIT_SIZE, SPLITS, seed_tasks

_KNOWN: Mapping[str, tuple[tuple[str, ...], str]] = {
    "FrozenLake": (
        ("left", "down", "right", "up"),
        "Cross the frozen lake from S to the goal G without falling into a hole H. [ ] "
        "stands around the square you are on.",
    ),
    "Taxi": (
        ("south", "north", "east", "west", "pickup", "dropoff"),
        "Drive the taxi [ ] to the passenger ( ), pick them up, drive to the destination { "
        "} and drop them off there. | is a wall, : can be driven through.",
    ),
    "CliffWalking": (
        ("up", "right", "down", "left"),
        "Walk from your square x to the target T; a step onto the cliff C takes you back "
        "to the start.",
    ),
    "Blackjack": (
        ("stick", "hit"),
        "Win the hand. You see your sum, the dealer's card and whether you hold a usable "
        "ace (1 or 0).",
    ),
}
"""Of Gymnasium's own text games, by the id without version: action names in Gymnasium's order, and
the instruction."""
_RENDERED = ("FrozenLake", "Taxi", "CliffWalking")
"""Games whose observation is a number, and which are shown by rendering them."""
_SUCCESS_REWARD = {"CliffWalking": -1.0}
"""The reward of the last step that means success, where that is not a reward above 0."""
_COLOUR_MARKS = {"34": "()", "35": "{}"}
_ESCAPE = re.compile(r"\x1b\[([0-9;]*)m")


class GymnasiumEnv(Environment):
    """Gymnasium environments with named or text actions: toy text games and your own.

    Args:
        id: What `gymnasium.make` takes, or `package.module:factory`, a function that returns an
            environment. A factory with a parameter `seed` is called for each task with its seed.
        kwargs: Arguments for either.
        actions: Names of a Discrete space's actions, in order. Known for FrozenLake, Taxi,
            CliffWalking and Blackjack; else numbers.
        render: 'ansi' to show what the environment renders (the default for the first three, and
            for a factory that made it so), or 'observation'.
        text_key: The entry of a dict observation that is shown.
        show_reward: Add a line with the reward to every observation.
        success: The least reward of the last step that is a success, or the name of an `info` entry
            that says so. By default a reward above 0.
        invalid: The name of an `info` entry that an environment with text actions sets where it
            refused the action.
        instruction: The task's text.
        actions_help: The text that tells the policy which actions there are.
        horizon: By default the environment's own limit, else 30.
        tasks: How many seeds a split has.
        deterministic: False for an environment that draws from other random sources.
    """

    name = "gymnasium"
    process: ClassVar[bool] = True
    forkable: ClassVar[bool] = True
    splits = SPLITS
    needs: ClassVar[str] = "gymnasium: pip install 'leafe[gymnasium]'"

    def __init__(
        self,
        id: str = "leafe.envs.adapters.gymnasium:frozen_lake",
        kwargs: Mapping[str, Any] | None = None,
        actions: Sequence[str] | None = None,
        render: str | None = None,
        text_key: str = "",
        show_reward: bool = False,
        success: float | str | None = None,
        invalid: str = "",
        instruction: str = "",
        actions_help: str = "",
        horizon: int | None = None,
        tasks: int = 1000,
        deterministic: bool = True,
    ) -> None:
        require_package(self.name, "gymnasium", "gymnasium")
        import gymnasium

        if render not in (None, "ansi", "observation"):
            raise UserError(
                f"The environment 'gymnasium' has no render = {render!r}: give 'ansi' or "
                "'observation'."
            )
        if (
            isinstance(actions, str)
            or not isinstance(id, str)
            or not isinstance(kwargs or {}, Mapping)
        ):
            raise UserError(
                "The environment 'gymnasium' takes id as a text, kwargs as a table and "
                "actions as a list of texts: correct the environment's options."
            )
        self._spaces = gymnasium.spaces
        self.id, self.kwargs = id, dict(kwargs or {})
        self.text_key, self.show_reward, self.invalid = text_key, show_reward, invalid
        self.deterministic = deterministic
        self.number = whole_number(self.name, "tasks", tasks, most=SPLIT_SIZE)
        self.chance = Chance()
        self._done = True
        self._info: Mapping[str, Any] = {}
        self._ending = ""
        self._factory = _find(id) if IMPORT_PATH.fullmatch(id) else None
        self._seeded = (
            self._factory is not None and "seed" in inspect.signature(self._factory).parameters
        )
        self._render = render or (
            "ansi" if self._factory is None and _family(id) in _RENDERED else "observation"
        )
        self.env = self._make(0)
        if render is None and self.env.render_mode == "ansi":
            self._render = "ansi"
        if self._render == "ansi" and not (
            self.env.render_mode == "ansi" and "ansi" in self.env.metadata.get("render_modes", ())
        ):
            raise UserError(
                f"The environment 'gymnasium': {id!r} does not render 'ansi': make it with "
                "render_mode='ansi', or set render = 'observation'."
            )
        spec = getattr(self.env, "spec", None)
        known = _family(spec.id) if spec is not None else ""
        names, self.instruction = _KNOWN.get(known, ((), "Reach the goal of this environment."))
        self.success = _SUCCESS_REWARD.get(known) if success is None else success
        self.instruction = instruction or self.instruction
        self.horizon = whole_number(
            self.name,
            "horizon",
            horizon if horizon is not None else getattr(spec, "max_episode_steps", None) or 30,
        )
        self.actions = self._action_names(actions if actions is not None else names)
        self.actions_help = actions_help or (
            f"Each action is one of these: {', '.join(self.actions)}."
            if self.actions
            else "An action is a short text."
        )

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """Seeds of the split's range in an order drawn by `seed`."""
        label = self.id.rpartition(":")[2].rpartition("/")[2]
        return seed_tasks(self.name, label, self.instruction, self.number, split, count, seed)

    def reset(self, task: Task, seed: int) -> str:
        """`seed` is not used: all draws follow from the task's own seed."""
        task_seed = int(task.payload["seed"])
        if self._seeded:
            self.env.close()
            self.env = self._make(task_seed)
        self.chance.seed(task_seed)
        with self.chance:
            observation, info = self.env.reset(seed=task_seed)
            self._done, self._info, self._ending = False, info, ""
            return self._text(observation)

    def step(self, action: str) -> StepResult:
        if self._done:
            return StepResult(
                f"The episode is over. {self._ending}Nothing changed.", valid=False, done=True
            )
        parsed = self._parsed(action)
        if parsed is None:
            return StepResult(f"{self._refusal(action)} Nothing changed.", valid=False)
        with self.chance:
            observation, reward, terminated, truncated, info = self.env.step(parsed)
            text = self._text(observation)
        refused = bool(self.invalid and info.get(self.invalid))
        self._done, self._info = bool(terminated or truncated), info
        won = self._done and self._won(float(reward), bool(terminated), info)
        if self.show_reward:
            text = f"{text}\nReward: {float(reward):g}."
        if self._done:
            self._ending = "You have failed. " if terminated else "The time is up. "
            if won:
                self._ending = "You have succeeded. "
            text = f"{text}\nThe episode is over. {self._ending.strip()}"
        return StepResult(
            text, reward=float(reward), done=self._done, success=won, valid=not refused
        )

    def valid_actions(self) -> Sequence[str]:
        """The names that `info["action_mask"]` allows; for text actions `info["valid_actions"]`."""
        if not self.actions:
            offered = self._info.get("valid_actions")
            if not offered:
                raise NotImplementedError(
                    "an environment with text actions lists them in info['valid_actions'], "
                    "or has no such list"
                )
            return [str(action) for action in offered]
        mask = self._info.get("action_mask")
        left = [name for i, name in enumerate(self.actions) if mask is None or mask[i]]
        return left or list(self.actions)

    def versions(self) -> Mapping[str, str]:
        return {"gymnasium": version("gymnasium")}

    def close(self) -> None:
        self.env.close()

    def _make(self, seed: int) -> Any:
        """Make the environment; its constructor draws from `seed` too."""
        import gymnasium

        kwargs = dict(self.kwargs)
        if self._factory is None and self._render == "ansi":
            kwargs.setdefault("render_mode", "ansi")
        if self._seeded:
            kwargs["seed"] = seed
        self.chance.seed(seed)
        try:
            with self.chance:
                env = (
                    self._factory(**kwargs)
                    if self._factory is not None
                    else gymnasium.make(self.id, **kwargs)
                )
        except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
            why = " ".join(str(error).split())[:300].rstrip(".")
            raise UserError(
                f"The environment 'gymnasium' cannot make {self.id!r}: {why}: correct id or kwargs."
            ) from error
        if not isinstance(env, gymnasium.Env):
            raise UserError(
                f"The environment 'gymnasium': {self.id!r} gave {type(env).__name__}, not "
                "a gymnasium.Env: let it return one (Gymnasium 1.x)."
            )
        return env

    def _action_names(self, given: Sequence[str]) -> tuple[str, ...]:
        """Names of a Discrete space's actions; empty for text actions."""
        space = getattr(self.env, "action_space", None)
        if space is None or isinstance(space, self._spaces.Text):
            if given:
                raise UserError(
                    f"The environment 'gymnasium': the actions of {self.id!r} are texts, "
                    "and need no names: leave the option actions out."
                )
            return ()
        if not isinstance(space, self._spaces.Discrete):
            raise UserError(
                f"The environment 'gymnasium' cannot play {self.id!r}, whose actions are "
                f"{space}: wrap it so that its actions are Discrete or Text."
            )
        names = tuple(str(name).strip() for name in given) or tuple(
            str(int(space.start) + i) for i in range(int(space.n))
        )
        if (
            len(names) != space.n
            or len({name.lower() for name in names}) != len(names)
            or not all(names)
        ):
            raise UserError(
                f"The environment 'gymnasium': {self.id!r} has {int(space.n)} actions: "
                "give so many different names in the option actions, in order."
            )
        return names

    def _parsed(self, action: str) -> Any:
        """The action as the environment takes it; None if there is no such action."""
        if self.actions:
            name = " ".join(action.lower().split()).strip(" .!'\"`[]")
            found = [i for i, known in enumerate(self.actions) if known.lower() == name]
            return int(self.env.action_space.start) + found[0] if found else None
        space = getattr(self.env, "action_space", None)
        text = action.strip()
        return text if text and (space is None or space.contains(text)) else None

    def _refusal(self, action: str) -> str:
        shown = action.strip() if len(action) <= 40 else action.strip()[:40] + "..."
        if self.actions:
            return f"There is no action {shown!r}: say one of {', '.join(self.actions)}."
        return f"{shown!r} is no action of this environment. {self.actions_help}"

    def _won(self, reward: float, terminated: bool, info: Mapping[str, Any]) -> bool:
        if isinstance(self.success, str):
            return bool(info.get(self.success))
        return terminated and (reward > 0 if self.success is None else reward >= self.success)

    def _text(self, observation: Any) -> str:
        if self._render == "ansi":
            shown = self.env.render()
            if not isinstance(shown, str):
                raise EnvError(f"render() of {self.id} gave {type(shown).__name__}, not a text")
            return marked(shown).strip("\n")
        if isinstance(observation, Mapping) and self.text_key:
            if self.text_key not in observation:
                raise EnvError(
                    f"the observation of {self.id} has no entry {self.text_key!r}, only "
                    f"{', '.join(map(str, observation))}"
                )
            observation = observation[self.text_key]
        if isinstance(observation, str):
            return observation if observation.strip() else "(nothing)"
        plain = observation.tolist() if hasattr(observation, "tolist") else observation
        parts = plain if isinstance(plain, (tuple, list)) else [plain]
        if all(isinstance(part, Real) for part in parts) and len(parts) <= 64:
            return ", ".join(str(int(p) if isinstance(p, bool) else p) for p in parts)
        raise EnvError(
            f"the observation of {self.id} is {type(observation).__name__}, not a text: "
            "set text_key or render, or wrap it"
        )


def frozen_lake(seed: int, size: int = 4, frozen: float = 0.8, is_slippery: bool = False) -> Any:
    """FrozenLake on a passable map drawn by `seed`: the default, and an example of a factory."""
    import gymnasium
    from gymnasium.envs.toy_text.frozen_lake import generate_random_map

    lake = generate_random_map(size=size, p=frozen, seed=seed)
    return gymnasium.make("FrozenLake-v1", desc=lake, is_slippery=is_slippery, render_mode="ansi")


def marked(text: str) -> str:
    """Terminal colours as brackets: [ ] background, ( ) blue, { } magenta, < > other colours."""
    out: list[str] = []
    marks: list[str] = []
    for i, part in enumerate(_ESCAPE.split(text)):
        if i % 2 == 0:
            out.append(part)
        elif part in ("", "0"):
            out += [mark[1] for mark in reversed(marks)]
            marks.clear()
        else:
            codes = part.split(";")
            ground = any(
                code == "7" or (code[:1] == "4" and len(code) == 2) or code[:2] == "10"
                for code in codes
            )
            mark = (
                "[]"
                if ground
                else next((_COLOUR_MARKS[code] for code in codes if code in _COLOUR_MARKS), "<>")
            )
            marks.append(mark)
            out.append(mark[0])
    return "".join(out + [mark[1] for mark in reversed(marks)])


def _family(id: str) -> str:
    """`FrozenLake` for `FrozenLake-v1` and `FrozenLake8x8-v1`."""
    return re.sub(r"(8x8)?(-v\d+)?$", "", id.rpartition(":")[2].rpartition("/")[2])


def _find(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        found: Any = find_named(path)
    except AttributeError:
        found = None
    except ModuleNotFoundError as error:
        raise UserError(
            f"The environment 'gymnasium' cannot make {path!r}: the package {error.name!r} "
            "cannot be found: check the path or install it."
        ) from error
    if not callable(found):
        raise UserError(
            f"The environment 'gymnasium' cannot make {path!r}: {module!r} has no function "
            f"or class {name!r}."
        )
    return found
