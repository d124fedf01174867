"""An environment is a name, and its class is imported only when it is asked for.

Three kinds of name: the environments of this package, those that an installed package announces
under the entry point group
`leafe.envs`, and an import path `package.module:Class` for an environment that lies in the user's
own files. What an environment says about itself
stands on its class: its docstring's first line, the options of `__init__`, `horizon`, and, where it
has them, `splits` (names of its task
sets), `needs` (one line: data or programs) and `example` (options to try it with). Whatever is
wrong with a name or an option is the
user's to mend and is said in one sentence.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from leafe.core import Environment, Task, UserError, find_named
from leafe.core.answers import plain_task
from leafe.envs.worker import ProcessEnv

GROUP = "leafe.envs"
"""The entry point group for environments of other packages: `name = "package.module:Class"`."""

_PATH = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")


@dataclass(frozen=True, slots=True)
class _Builtin:
    target: str
    extra: str | None = None
    """The extra of this package that brings what the environment imports."""


BUILTIN: Mapping[str, _Builtin] = {
    "alfworld": _Builtin("leafe.envs.alfworld:AlfWorld", extra="alfworld"),
    "codecontests": _Builtin("leafe.envs.code.codecontests:CodeContests", extra="code"),
    "gates": _Builtin("leafe.envs.gates:Gates"),
    "gymnasium": _Builtin("leafe.envs.adapters.gymnasium:GymnasiumEnv", extra="gymnasium"),
    "humaneval": _Builtin("leafe.envs.code.humaneval:HumanEval", extra="code"),
    "mbpp": _Builtin("leafe.envs.code.mbpp:Mbpp", extra="code"),
    "openenv": _Builtin("leafe.envs.adapters.openenv:OpenEnv"),
    "remote": _Builtin("leafe.envs.remote:Remote"),
    "scienceworld": _Builtin("leafe.envs.scienceworld:ScienceWorld", extra="scienceworld"),
    "sokoban": _Builtin("leafe.envs.sokoban:Sokoban"),
    "textarena": _Builtin("leafe.envs.adapters.textarena:TextArena", extra="textarena"),
    "textworld": _Builtin("leafe.envs.adapters.textworld:TextWorld", extra="textworld"),
    "webshop": _Builtin("leafe.envs.webshop:WebShop", extra="webshop"),
}


@dataclass(frozen=True, slots=True)
class EnvInfo:
    """What an environment says about itself, for listings and self-tests."""

    name: str
    summary: str
    """First line of the class's docstring."""
    splits: tuple[str, ...]
    """Names for `tasks(split)`; empty where the environment does not say."""
    horizon: int
    """Default T, in steps."""
    options: Mapping[str, str]
    """Option name -> how it is declared, for instance `levels: str | None = None`."""
    needs: str
    """Data or programs that the environment needs beside the base install; empty where there are
    none."""
    example: Mapping[str, Any]
    """Options with which it can be tried where none are given (the class's `example`)."""


def env_names() -> list[str]:
    """Every environment that a name alone can make, sorted: this package's and those of installed
    packages."""
    return sorted({*BUILTIN, *_announced()})


def make_env(name: str, **options: Any) -> Environment:
    """One instance of the environment `name` with its options; one whose class says `process` plays
    in a process of its own.

    That process inherits the environment variables that programs need to run, and none that may
    hold a key; every such environment has the option `env_vars`, a list of the names of further
    ones.

    UserError for an unknown environment, an unknown option, a missing package; the environment's
    own UserError for a value that it refuses.
    """
    cls, target = _load(name)
    known = _options(cls)
    inherit = _env_vars(name, cls, options) if "env_vars" not in (known or ()) else []
    if known is not None:
        for option in options:
            if option not in known:
                there = f"its options are {', '.join(known)}" if known else "it has no options"
                raise UserError(f"The environment {name!r} has no option {option!r}: {there}.")
        lacking = [k for k, v in known.items() if v.default is v.empty and k not in options]
        if lacking:
            raise UserError(f"The environment {name!r} needs the option {lacking[0]!r}: set it.")
    if cls.process:
        return ProcessEnv(target, options, forkable=cls.forkable, env_vars=inherit)
    return cls(**options)


def _env_vars(name: str, cls: type[Environment], options: dict[str, Any]) -> list[str]:
    """Take the option `env_vars` out of a process environment's options; UserError where it is
    none."""
    if "env_vars" not in options:
        return []
    found = options.pop("env_vars")
    if not cls.process:
        raise UserError(
            f"The environment {name!r} plays in leafe's own process, which has every environment "
            f"variable: "
            "take the option env_vars out."
        )
    if not isinstance(found, list | tuple) or not all(isinstance(v, str) and v for v in found):
        raise UserError(
            f"The option env_vars of the environment {name!r} is no list of names: write "
            "['MY_VARIABLE']."
        )
    return list(found)


def describe(name: str) -> EnvInfo:
    """What the environment says about itself; UserError where it is unknown or its package is
    missing. Makes no instance."""
    cls, _ = _load(name)
    summary = (inspect.cleandoc(cls.__doc__) if cls.__doc__ else "").split("\n", 1)[0]
    options = {k: str(p) for k, p in (_options(cls) or {}).items()}
    horizon = cls.horizon if isinstance(cls.horizon, int) else Environment.horizon
    return EnvInfo(
        name,
        summary,
        tuple(cls.splits),
        horizon,
        options,
        str(getattr(cls, "needs", "")),
        dict(getattr(cls, "example", {})),
    )


def load_tasks(env: Environment, split: str, count: int | None = None, seed: int = 0) -> list[Task]:
    """The tasks of a split, never none. Fewer than `count` where the environment has no more.

    UserError for a split that the environment does not have, a count below 1, or a set that comes
    out empty.
    """
    splits = env.splits
    if splits and split not in splits:
        raise UserError(
            f"The environment {env.name!r} has no split {split!r}: its splits are "
            f"{', '.join(splits)}."
        )
    if count is not None and count < 1:
        raise UserError(
            f"A task count of {count} leaves nothing to do: ask for 1 or more tasks of "
            f"{env.name!r}, split {split!r}."
        )
    try:
        tasks = [plain_task(task, env.name) for task in env.tasks(split, count, seed)]
    except NotImplementedError as error:
        raise UserError(
            f"The environment {env.name!r} has no task list: give its class a method "
            "tasks(split, count, seed)."
        ) from error
    if not tasks:
        raise UserError(
            f"The environment {env.name!r} has no task in split {split!r}: choose another "
            "split or other options."
        )
    return tasks


def _announced() -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group=GROUP)}


def _load(name: str) -> tuple[type[Environment], str]:
    """The class and its import path."""
    announced = {} if name in BUILTIN else _announced()
    if name in BUILTIN:
        target, extra = BUILTIN[name].target, BUILTIN[name].extra
    elif name in announced:
        target, extra = announced[name].value, None
    elif _PATH.fullmatch(name):
        target, extra = name, None
    else:
        raise UserError(
            f"There is no environment {name!r}: give one of {', '.join(env_names())}, or "
            "the import path package.module:Class of an environment of your own."
        )
    module_name, _, class_name = target.partition(":")
    try:
        found: Any = find_named(target)
    except AttributeError:
        found = None
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UserError(
                f"The environment {name!r} names the module {module_name!r}, which cannot "
                "be found: check the path."
            ) from error
        cure = f"pip install 'leafe[{extra}]'" if extra else f"pip install {error.name}"
        raise UserError(
            f"The environment {name!r} needs the package {error.name!r}: run {cure}."
        ) from error
    if not (isinstance(found, type) and issubclass(found, Environment)):
        raise UserError(
            f"The environment {name!r}: {module_name!r} has no class {class_name!r} that "
            "derives from leafe.core.Environment."
        )
    return found, target


def _options(cls: type[Environment]) -> dict[str, inspect.Parameter] | None:
    """The options of an environment's `__init__`; None where it takes any."""
    if cls.__init__ is object.__init__:
        return {}
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
