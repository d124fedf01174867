"""The study: the paper's tables on `gates` for several base policies and task seeds, cell by cell.

    python -m studies.run --out runs/study                  # all cells, then the tables
    python -m studies.run --out runs/study --only tables    # the tables of what is there

A cell is one run folder: one recipe, one base policy, one task seed. Base 0 is the embedded one;
others are built by the same code from other seeds, in about four minutes each. Cells come diagonal
by diagonal, so that a partial study covers all bases and all seeds. A stopped study continues where
it was. Tables go to `--docs`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from studies import recipe_path

RECIPES = ("gates-hard", "gates-easy", "gates-random")
"""The columns of the tables."""
TRAINED, TESTED = "gates-first", ("gates-transfer", "gates-habit")
TRANSFERRED = ("base", "grpo", "rehearsal", "leafe", "leafe+")
CALLS = (10, 14, 17, 24, 32, 48)
"""Policy calls a task in the budget study; the tables' cells have 20."""


def python(module: str, *arguments: str, log: Path) -> int:
    """Run `python -m module` with its output appended to `log`; returns its exit code."""
    with log.open("a") as out:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments], stdout=out, stderr=out, check=False
        ).returncode


def cells(recipes: Sequence[str], bases: int, seeds: int) -> Iterator[tuple[str, int, int]]:
    """(recipe, base, seed): the diagonals of a Latin square of bases and seeds one after another,
    all recipes on each."""
    side = max(bases, seeds)
    for shift in range(side):
        for recipe in recipes:
            for base in range(bases):
                seed = (base + shift) % side
                if seed < seeds:
                    yield recipe, base, seed


def base_model(base: int, folder: Path) -> str:
    """The base policy's weights; builds them where they are missing."""
    if base == 0:
        return "embedded"
    path = folder / f"base{base}"
    if not (path / "facts.json").is_file():
        subprocess.run(
            [sys.executable, "-m", "studies.base", "build", str(path), "--seed", str(base)],
            check=True,
        )
    return str(path)


def run_cell(recipe: str, name: str, out: Path, overrides: Sequence[str]) -> Path:
    """Run one recipe in its run folder, or go on with it; returns the folder."""
    began = time.monotonic()
    log = out / f"{name}.log"
    arguments = (recipe_path(recipe), *overrides, "--runs", str(out), "--name", name)
    code = python("leafe.cli", "run", *arguments, log=log)
    outcome = "done" if code == 0 else f"exit code {code}, see {log}"
    _log(f"{name}: {outcome}, {(time.monotonic() - began) / 60:.1f} min")
    return out / name


def run_transfer(
    trained: Path, base: str, suffix: str, seed: int, out: Path, overrides: Sequence[str]
) -> None:
    """Test the policies of a trained cell in the environments that they were not trained in."""
    kept = [change for change in overrides if change.startswith(("tasks.test", "evaluate."))]
    for recipe in TESTED:
        for row in TRANSFERRED:
            checkpoint = trained / "distill" / row / "checkpoint"
            if row == "base" or checkpoint.is_dir():
                weights = base if row == "base" else str(checkpoint)
                changes = [f"seeds=[{seed}]", f"policy.model={weights}", *kept]
                run_cell(recipe, f"{recipe}-{suffix}.{row}", out, changes)


def run_dependencies(
    bases: int, seeds: int, out: Path, models: Path, overrides: Sequence[str]
) -> None:
    """How the comparison depends on the budget (one diagonal of cells each), and what GRPO gains
    where successes are common."""
    for calls in CALLS:
        for base in range(min(bases, seeds)):
            changes = [
                f"seeds=[{base}]",
                f"policy.model={base_model(base, models)}",
                f"explore.limits.policy_calls={calls}",
                *overrides,
            ]
            run_cell("gates-budget", f"gates-budget-{calls}-b{base}-s{base}", out, changes)
    run_cell("gates-grpo", "gates-grpo", out, [])


def write_tables(out: Path, docs: Path) -> None:
    """Write every table, the claims and the figure of all cells that are there."""
    docs.mkdir(parents=True, exist_ok=True)
    log = out / "tables.log"
    every = sorted(path.parent for path in out.glob("*/manifest.json"))
    main = [str(p) for p in every if p.name.startswith(RECIPES)]
    transfer = [str(p) for p in every if p.name.startswith((TRAINED, *TESTED))]
    for number in range(1, 7):
        folders = transfer if number == 5 else main
        if folders:
            files = _files(docs, f"table{number}")
            python("studies.paper", "table", str(number), *folders, *files, log=log)
            _log(f"table {number}")
    if main or transfer:
        python("studies.paper", "claims", *main, *transfer, *_files(docs, "tableclaims"), log=log)
        _log("claims")
    for calls in CALLS:
        folders = [str(p) for p in every if p.name.startswith(f"gates-budget-{calls}-")]
        if folders:
            to = ("--csv", str(docs / f"budget-{calls}.csv"))
            python("studies.paper", "table", "4", *folders, *to, log=log)
    if main:
        to = ("--out", str(docs / "passk.png"))
        python("studies.paper", "figure", "passk", *main, *to, log=log)


def _files(docs: Path, stem: str) -> tuple[str, ...]:
    return ("--markdown", str(docs / f"{stem}.md"), "--csv", str(docs / f"{stem}.csv"))


def _log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--docs", type=Path, default=Path("runs/study/tables"))
    parser.add_argument("--bases", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--models", type=Path, help="Where the bases lie or are built; default: in --out."
    )
    parser.add_argument("--recipes", nargs="*", default=[*RECIPES, TRAINED])
    parser.add_argument("--only", choices=("cells", "depends", "tables"))
    parser.add_argument(
        "overrides", nargs="*", help="Changes to every recipe, as `leafe run` takes them."
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, or the part that `--only` names."""
    args = parse(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    models = args.models or args.out / "bases"
    if args.only in (None, "cells"):
        for recipe, base, seed in cells(args.recipes, args.bases, args.seeds):
            weights, suffix = base_model(base, models), f"b{base}-s{seed}"
            changes = [f"seeds=[{seed}]", f"policy.model={weights}", *args.overrides]
            folder = run_cell(recipe, f"{recipe}-{suffix}", args.out, changes)
            if recipe == TRAINED:
                run_transfer(folder, weights, suffix, seed, args.out, args.overrides)
    if args.only in (None, "depends"):
        run_dependencies(args.bases, args.seeds, args.out, models, args.overrides)
    if args.only in (None, "tables"):
        write_tables(args.out, args.docs)


if __name__ == "__main__":
    main()
