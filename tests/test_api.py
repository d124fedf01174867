"""The public names and how they are called stay as they are, unless somebody means to change them.

What `__all__` of each public package holds, with signatures and fields, stands in `tests/api.txt`.
A change there is a change for users: it goes into the
CHANGELOG, and then

    python -m tests.test_api        # writes tests/api.txt anew
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import importlib
import inspect
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

import leafe
from leafe.cli import app

FROZEN = Path(__file__).with_name("api.txt")
PACKAGES = (
    "leafe",
    "leafe.core",
    "leafe.envs",
    "leafe.envs.remote",
    "leafe.testing",
    "leafe.policies",
    "leafe.policies.http",
    "leafe.policies.hf",
    "leafe.policies.server",
    "leafe.prompts",
    "leafe.explore",
    "leafe.distill",
    "leafe.data",
    "leafe.evaluate",
    "leafe.baselines.grpo",
    "leafe.baselines.ace",
    "leafe.baselines.early_experience",
    "leafe.runs",
    "leafe.recipes",
    "leafe.report",
    "leafe.pipeline",
    "leafe.view",
)


def described() -> list[str]:
    """One line a name, and one for each method, field and command of it; no memory addresses, no
    defaults that hang on the machine."""
    lines = []
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in sorted(module.__all__):
            lines += [f"{package}.{line}" for line in describe(name, getattr(module, name))]
    return lines + sorted(commands(typer.main.get_command(app), "leafe"))


def describe(name: str, thing: Any) -> list[str]:
    if isinstance(thing, type):
        return [f"{name}: class", *(f"{name}.{line}" for line in members(thing))]
    if inspect.isroutine(thing):
        return [f"{name}{signature(thing)}"]
    if isinstance(thing, str | int | float | bool) and name != "__version__":
        return [f"{name} = {thing!r}"]
    if isinstance(thing, tuple | frozenset) and all(
        isinstance(x, str | int | float) for x in thing
    ):
        return [f"{name} = {sorted(map(str, thing))}"]
    if typing.get_origin(thing) is typing.Literal:
        return [f"{name} = Literal{sorted(map(str, typing.get_args(thing)))}"]
    return [f"{name}: value"]


def members(cls: type) -> list[str]:
    if issubclass(cls, BaseModel):
        return [
            (
                f"{name}: "
                f"{plain(field.annotation)}"
                f"{' = ' + default(field) if not field.is_required() else ''}"
            )
            for name, field in cls.model_fields.items()
        ]
    if issubclass(cls, enum.Enum):
        return [f"{name} = {item.value!r}" for name, item in cls.__members__.items()]
    out = []
    if dataclasses.is_dataclass(cls):
        out += [
            f"{f.name}: {plain(f.type)}"
            for f in dataclasses.fields(cls)
            if not f.name.startswith("_")
        ]
    elif "__init__" in vars(cls):
        out.append(f"__init__{signature(cls.__init__)}")
    for name, thing in sorted(vars(cls).items()):
        if name.startswith("_") or (
            dataclasses.is_dataclass(cls) and name in {f.name for f in dataclasses.fields(cls)}
        ):
            continue
        if isinstance(thing, staticmethod | classmethod):
            out.append(f"{name}{signature(thing.__func__)}")
        elif inspect.isroutine(thing):
            out.append(f"{name}{signature(thing)}")
        elif isinstance(thing, property):
            out.append(f"{name}: property")
        elif isinstance(thing, str | int | float | bool):
            out.append(f"{name} = {thing!r}")
    return out


class Written:
    """An annotation as it stands in the source."""

    def __init__(self, annotation: Any) -> None:
        self.text = plain(annotation)

    def __repr__(self) -> str:
        return self.text


def signature(thing: Any) -> str:
    found = inspect.signature(thing)
    parameters = [
        p if p.annotation is p.empty else p.replace(annotation=Written(p.annotation))
        for p in found.parameters.values()
    ]
    returns = (
        found.return_annotation
        if found.return_annotation is found.empty
        else Written(found.return_annotation)
    )
    return re.sub(
        r" at 0x[0-9a-f]+", "", str(found.replace(parameters=parameters, return_annotation=returns))
    )


def default(field: Any) -> str:
    if field.default_factory is not None:
        return f"{field.default_factory()!r}"
    return repr(field.default)


def plain(annotation: Any) -> str:
    named = isinstance(annotation, type) and not typing.get_args(annotation)
    text = (
        annotation
        if isinstance(annotation, str)
        else annotation.__name__
        if named
        else str(annotation)
    )
    return re.sub(r"\b(?:typing|collections\.abc|pathlib|leafe(?:\.\w+)+)\.(?=\w)", "", text)


def commands(command: Any, path: str) -> list[str]:
    """The command line: every command with its arguments and options."""
    if hasattr(command, "commands"):
        return [
            line
            for name, child in command.commands.items()
            for line in commands(child, f"{path} {name}")
        ]
    words = [
        " | ".join(p.opts) if p.opts and p.opts[0].startswith("-") else str(p.name).upper()
        for p in command.params
    ]
    return [f"$ {path} {' '.join(f'[{w}]' for w in words)}"]


def test_the_public_names_are_as_they_were() -> None:
    pytest.importorskip("torch", reason="leafe.policies.hf is part of it: pip install 'leafe[hf]'")
    before, now = FROZEN.read_text("utf-8").splitlines(), described()
    changes = [
        line
        for line in difflib.unified_diff(before, now, "tests/api.txt", "now", lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    told = (
        "The public API is not the frozen one. If that is meant: say it in CHANGELOG.md, then "
        "`python -m tests.test_api` writes tests/api.txt anew.\n"
    )
    assert not changes, told + "\n".join(changes)


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    """Each has a docstring, its own or that of the field or value (which only the source has);
    classes and functions are asked."""
    silent = []
    for package in PACKAGES:
        module = importlib.import_module(package)
        assert module.__doc__, f"{package} says not what it is"
        assert sorted(set(module.__all__)) == sorted(module.__all__), (
            f"{package}.__all__ names something twice"
        )
        for name in module.__all__:
            thing = getattr(module, name)  # AttributeError: __all__ names what is not there
            if (
                (inspect.isfunction(thing) or inspect.isclass(thing))
                and not inspect.getdoc(thing)
                and thing.__module__.startswith("leafe")
            ):
                silent.append(f"{package}.{name}")
    assert not silent, f"public and without a docstring: {', '.join(silent)}"


def test_the_version_is_semantic() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", leafe.__version__)


def test_a_change_is_seen() -> None:
    """A parameter, a default, a field, an option that is taken away shows in the description."""

    class Before:
        def play(self, task: str, times: int = 1) -> None: ...

    class After:
        def play(self, task: str, times: int = 2) -> None: ...

    assert describe("X", Before) != describe("X", After)
    assert describe("f", lambda a, b: a) != describe("f", lambda a: a)
    assert [line for line in described() if line.startswith("leafe.core.Environment.step")] == [
        "leafe.core.Environment.step(self, action: str) -> StepResult"
    ]
    assert any(line.startswith("$ leafe explore ") and "--shard" in line for line in described())


if __name__ == "__main__":
    FROZEN.write_text("\n".join(described()) + "\n", "utf-8")
    print(f"{FROZEN}: {len(described())} lines")
