"""What an environment returns, validated and converted to the plain values that a journal holds.

Environments are foreign code: rewards come as numpy numbers, flags as `numpy.bool_`, texts with
half a surrogate pair in them. Every caller of an environment (exploration, evaluation, the checks,
environments in other processes and on other machines) takes its answers through these functions, so
the record is the same everywhere. A value of another type is converted; no value (None or NaN for a
reward, a list for an observation) is an error, never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from leafe.core.environment import Environment, StepResult
from leafe.core.errors import EnvError, UserError
from leafe.core.text import clean_text
from leafe.core.types import Task

AnyEnv = TypeVar("AnyEnv", bound=Environment)


def observation_text(value: object, env: str) -> str:
    """The text that `reset` returned.

    Args:
        value: What it returned.
        env: The environment's name, for the error.

    Raises:
        EnvError: It is not a string.
    """
    if not isinstance(value, str):
        raise _broken(env, f"reset returned {_kind(value)}, not a string")
    return clean_text(value)


def step_result(value: object, env: str) -> StepResult:
    """What `step` returned, with plain values: text without surrogates, finite numbers, bools.

    Args:
        value: What it returned.
        env: The environment's name, for the error.

    Raises:
        EnvError: It is no `StepResult`, or a field cannot be recorded (a reward of None or NaN).
    """
    if not isinstance(value, StepResult):
        raise _broken(env, f"step returned {_kind(value)}, not a StepResult")
    try:
        return StepResult(
            observation=_text(value.observation, "observation"),
            reward=_number(value.reward, "reward"),
            done=_flag(value.done, "done"),
            success=_flag(value.success, "success"),
            valid=_flag(value.valid, "valid"),
            progress=None if value.progress is None else _number(value.progress, "progress"),
            info=_info(value.info),
        )
    except ValueError as error:
        raise _broken(env, f"step returned a StepResult whose {error}") from error


def check_facts(env: AnyEnv) -> AnyEnv:
    """The environment itself, with plain values for `name`, `actions_help` and `horizon`.

    Raises:
        UserError: One of the first two is no string, or the horizon no whole number from 1.
    """
    named = f"The environment {_shown(env.name)!r}"
    for fact in ("name", "actions_help"):
        try:
            text = _text(getattr(env, fact), fact)
        except ValueError as error:
            raise UserError(f"{named}: its {error}: give its class a text.") from error
        if text != getattr(env, fact):
            setattr(env, fact, text)
    horizon = _item(env.horizon)
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
        raise UserError(
            f"{named}: its horizon is {_kind(horizon)}: give its class a whole number of "
            "steps from 1."
        )
    if type(env.horizon) is not int:
        env.horizon = horizon
    return env


def versions_of(env: Environment) -> dict[str, str]:
    """What `Environment.versions` returns, as text: numbers and None too."""
    return {_shown(name): _shown(value) for name, value in dict(env.versions() or {}).items()}


def plain_task(task: object, env: str) -> Task:
    """A task as it reads back from JSON, so that a resumed run plays the same one.

    Args:
        task: What the environment listed.
        env: The environment's name, for the error.

    Raises:
        UserError: It is no `Task`, or holds what JSON cannot.
    """
    if not isinstance(task, Task):
        raise UserError(
            f"The environment {env!r} lists {_kind(task)} among its tasks: tasks() gives "
            "Task records."
        )
    try:
        texts = {n: _text(getattr(task, n), n) for n in ("id", "env", "split", "instruction")}
        payload = plain_json(task.payload, "payload")
        if not isinstance(payload, dict):
            raise ValueError(f"payload is {_kind(task.payload)}, not a mapping")
    except ValueError as error:
        raise UserError(
            f"A task of the environment {env!r} ({_shown(task.id)[:80]!r}) cannot be written as "
            f"JSON: its {error}. Give its class plain values: text, finite numbers, true and "
            "false, lists, mappings with text as keys."
        ) from error
    return replace(task, **texts, payload=payload)


def plain_json(value: object, where: str) -> Any:
    """A value as JSON reads it back: arrays and tuples become lists, numpy's numbers Python's.

    Args:
        value: Anything.
        where: Its name in the error, for instance `payload`.

    Raises:
        ValueError: JSON cannot hold some part of it; the message says which.
    """
    try:
        return _plain(value, where)
    except RecursionError:
        raise ValueError(f"{where} holds itself, or is nested too deeply") from None


def _plain(value: object, where: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _number(value, where)
    if isinstance(value, Mapping):
        found = {}
        for key, each in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {str(key)[:40]!r}, which is no text")
            found[str.__str__(key)] = _plain(each, f"{where}[{str.__str__(key)[:40]!r}]")
        return found
    if isinstance(value, list | tuple):
        return [_plain(each, f"{where}[{nth}]") for nth, each in enumerate(value)]
    listed = getattr(value, "tolist", None)  # numpy's numbers and arrays, torch's tensors
    if callable(listed):
        inner = listed()
        if type(inner) is not type(value):
            return _plain(inner, where)
    raise ValueError(f"{where} is {_kind(value)}, which JSON does not hold")


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_kind(value)}, not a string")
    return clean_text(str.__str__(value))


def _number(value: object, name: str) -> float:
    """One finite number, of Python, numpy, torch, decimal or fractions. ValueError otherwise."""
    found = _item(value)
    try:
        number = math.nan if isinstance(found, str | bytes | None) else float(found)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is {_kind(value)}, not a finite number")
    return number


def _flag(value: object, name: str) -> bool:
    found = _item(value)
    if isinstance(found, bool) or (isinstance(found, int | float) and found in (0, 1)):
        return bool(found)
    raise ValueError(f"{name} is {_kind(value)}, not True or False")


def _item(value: object) -> object:
    """The value of an array or tensor that holds exactly one; else what was given."""
    item = getattr(value, "item", None)
    if not callable(item):
        return value
    try:
        return item()
    except Exception:  # several values, or another library's idea of `item`
        return value


def _info(info: object) -> dict[str, Any]:
    """`StepResult.info` is for people, so what JSON cannot hold becomes text, never an error."""
    found = {}
    for key, value in info.items() if isinstance(info, Mapping) else ():
        try:
            found[clean_text(str(key))] = plain_json(value, "info")
        except Exception:
            found[clean_text(str(key))] = _shown(value)
    return found


def _kind(value: object) -> str:
    """For an error: None and numbers as they are, of anything else the type."""
    if value is None or isinstance(value, bool | int | float):
        return _shown(value)
    return f"a value of type {type(value).__name__}"


def _shown(value: object) -> str:
    try:
        return clean_text(str(value))[:200]
    except Exception:  # a number of over 4,300 digits, a __str__ that raises
        return f"a value of type {type(value).__name__}"


def _broken(env: str, why: str) -> EnvError:
    return EnvError(f"The environment {env} breaks its contract: {why}.")
