"""The registry: environments by name, each class imported only when it is used.

A name is one of three: a built-in environment, an entry point in the group `leafe.envs` of an
installed package, or an import path `package.module:Class` of the user's own. The registry reads
what an environment declares on its class: the first line of its docstring, the options of
`__init__`, `horizon`, and optionally `splits` (names of its task sets), `needs` (data or programs,
one line) and `example` (options to try it with). A wrong name or option is a `UserError`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from leafe.core import Environment, Task, UserError, find_named
from leafe.core.answers import plain_task
from leafe.envs._options import IMPORT_PATH, check_split
from leafe.envs.worker import ProcessEnv

GROUP = "leafe.envs"
"""The entry point group for environments of other packages: `name = "package.module:Class"`."""


@dataclass(frozen=True, slots=True)
class _Builtin:
    target: str
    extra: str | None = None
    """The extra of this package that installs what the environment imports."""


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
    """What an environment declares about itself, for listings and checks."""

    name: str
    summary: str
    """First line of the class's docstring."""
    splits: tuple[str, ...]
    """Names for `tasks(split)`; empty if the environment declares none."""
    horizon: int
    """The default T: the most steps of an episode."""
    options: Mapping[str, str]
    """Option name -> how it is declared, for instance `levels: str | None = None`."""
    needs: str
    """Data or programs needed beside the base install; empty if none."""
    example: Mapping[str, Any]
    """Options to try it with (the class's `example`)."""


def env_names() -> list[str]:
    """The names of the built-in environments and of those of installed packages, sorted."""
    return sorted({*BUILTIN, *_entry_points()})


def make_env(name: str, **options: Any) -> Environment:
    """Make one instance of an environment.

    A class that declares `process` is made in a process of its own (`ProcessEnv`). That process
    inherits the environment variables that programs need to run, and none that may hold a key.
    Each such environment has one more option: `env_vars`, names of further variables to inherit.

    Args:
        name: A name of `env_names()`, or `package.module:Class`.
        **options: The environment's own options.

    Returns:
        The environment. The caller closes it.

    Raises:
        UserError: The environment or an option is unknown, an option is missing or refused, or a
            package is not installed.
    """
    cls, target = _load(name)
    known = _options(cls)
    env_vars = (
        [] if known is not None and "env_vars" in known else _pop_env_vars(name, cls, options)
    )
    for option in [o for o in options if known is not None and o not in known]:
        has = f"its options are {', '.join(known)}" if known else "it has no options"
        raise UserError(f"The environment {name!r} has no option {option!r}: {has}.")
    for option, parameter in (known or {}).items():
        if parameter.default is parameter.empty and option not in options:
            raise UserError(f"The environment {name!r} needs the option {option!r}: set it.")
    if cls.process:
        return ProcessEnv(target, options, forkable=cls.forkable, env_vars=env_vars)
    return cls(**options)


def _pop_env_vars(name: str, cls: type[Environment], options: dict[str, Any]) -> list[str]:
    """Remove the option `env_vars` from the options, and return its value."""
    if "env_vars" not in options:
        return []
    found = options.pop("env_vars")
    if not cls.process:
        raise UserError(
            f"The environment {name!r} runs in leafe's own process, which has every environment "
            "variable: remove the option env_vars."
        )
    if not isinstance(found, list | tuple) or not all(isinstance(v, str) and v for v in found):
        raise UserError(
            f"The option env_vars of the environment {name!r} is no list of names: write "
            "['MY_VARIABLE']."
        )
    return list(found)


def describe(name: str) -> EnvInfo:
    """What an environment declares about itself, read from its class: no instance is made.

    Raises:
        UserError: The environment is unknown, or its package is not installed.
    """
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
    """The tasks of one split, checked.

    Args:
        env: The environment.
        split: One of its `splits`: 'train', 'valid' or 'test' for most.
        count: How many tasks; None for all. An environment that has fewer gives fewer.
        seed: Decides which tasks and in which order. The same arguments give the same tasks.

    Returns:
        At least one task.

    Raises:
        UserError: The environment has no such split or no task list, `count` is below 1, or the
            split is empty.
    """
    if splits := env.splits:
        check_split(env.name, split, splits)
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


def _entry_points() -> dict[str, EntryPoint]:
    """The environments of installed packages."""
    return {e.name: e for e in entry_points(group=GROUP)}


def _load(name: str) -> tuple[type[Environment], str]:
    """The class and its import path."""
    extra: str | None = None
    if name in BUILTIN:
        target, extra = BUILTIN[name].target, BUILTIN[name].extra
    elif name in (installed := _entry_points()):
        target = installed[name].value
    elif IMPORT_PATH.fullmatch(name):
        target = name
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
    """The options of an environment's `__init__`; None if it accepts any."""
    if cls.__init__ is object.__init__:
        return {}
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
