"""The study: the paper's tables on `gates` for several base policies and task seeds, cell by cell,
and the documents made of them. `make study`.

    python -m bench.study --out runs/study                       # all cells, then the tables;
    stopped, it goes on where it was
    python -m bench.study --out runs/study --only tables         # of what is there

A cell is one run folder: one recipe, one base policy, one task seed. Base 0 is the one that leafe
ships; others are built by the same code from other seeds
(four minutes each). One diagonal of bases and seeds comes after another, so that what a stop leaves
is spread over both. Tables go to `--docs`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

RECIPES = ("gates-hard", "gates-easy", "gates-random")  # a table's columns
TRAINED, TESTED = "gates-first", ("gates-transfer", "gates-habit")
TRANSFERRED = ("base", "grpo", "rehearsal", "leafe", "leafe+")
CALLS = (10, 14, 17, 24, 32, 48)  # a task; the tables' cells have 20
TABLES = ("1", "2", "3", "4", "5", "6", "claims")


def leafe(*arguments: str, log: Path | None = None) -> int:
    """Run the command line of this very leafe; returns its exit code."""
    with (log or Path(os.devnull)).open("a") as out:
        where = None if log is None else out
        return subprocess.run(
            [sys.executable, "-m", "leafe.cli", *arguments], stdout=where, stderr=where, check=False
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


def model(base: int, folder: Path) -> str:
    """The base policy's weights, built where they are not there."""
    if base == 0:
        return "embedded"
    path = folder / f"base{base}"
    if not (path / "facts.json").is_file():
        subprocess.run(
            [sys.executable, "-m", "leafe.embedded.build", str(path), str(base)], check=True
        )
    return str(path)


def run(recipe: str, cell: str, source: str, seed: int, out: Path, more: Sequence[str]) -> Path:
    """One run folder; finished stages are not done again."""
    began = time.monotonic()
    log = out / f"{cell}.log"
    code = leafe(
        "run",
        recipe,
        f"seeds=[{seed}]",
        f"policy.model={source}",
        *more,
        "--runs",
        str(out),
        "--name",
        cell,
        log=log,
    )
    said = "done" if code == 0 else f"exit code {code}, see {log}"
    print(
        f"{time.strftime('%H:%M:%S')} {cell}: {said}, {(time.monotonic() - began) / 60:.1f} min",
        flush=True,
    )
    return out / cell


def transfer(
    trained: Path, base: str, suffix: str, seed: int, out: Path, more: Sequence[str]
) -> None:
    """The policies of a trained cell in the environments that they were not trained in."""
    kept = [change for change in more if change.startswith(("tasks.test", "evaluate."))]
    for recipe in TESTED:
        for row in TRANSFERRED:
            checkpoint = trained / "distill" / row / "checkpoint"
            if row == "base" or checkpoint.is_dir():
                run(
                    recipe,
                    f"{recipe}-{suffix}.{row}",
                    base if row == "base" else str(checkpoint),
                    seed,
                    out,
                    kept,
                )


def depends(bases: int, seeds: int, out: Path, models: Path, more: Sequence[str]) -> None:
    """How the comparison hangs on the budget (one diagonal of cells each), and what GRPO is worth
    where successes are common."""
    for calls in CALLS:
        for base in range(min(bases, seeds)):
            name = f"gates-budget-{calls}-b{base}-s{base}"
            run(
                "gates-budget",
                name,
                model(base, models),
                base,
                out,
                [f"explore.limits.policy_calls={calls}", *more],
            )
    leafe("run", "gates-grpo", "--runs", str(out), log=out / "gates-grpo.log")


def tables(out: Path, docs: Path) -> None:
    """Every table and the claims of all cells that are there, with the curves."""
    docs.mkdir(parents=True, exist_ok=True)
    every = sorted(path.parent for path in out.glob("*/manifest.json"))
    main = [str(p) for p in every if p.name.startswith(RECIPES)]
    other = [str(p) for p in every if p.name.startswith((TRAINED, *TESTED))]
    for what in TABLES:
        folders = other if what == "5" else [*main, *other] if what == "claims" else main
        if folders:
            leafe(
                "table",
                what,
                *folders,
                "--markdown",
                str(docs / f"table{what}.md"),
                "--csv",
                str(docs / f"table{what}.csv"),
                log=out / "tables.log",
            )
            print(f"{time.strftime('%H:%M:%S')} table {what}", flush=True)
    for calls in CALLS:
        folders = [str(p) for p in every if p.name.startswith(f"gates-budget-{calls}-")]
        if folders:
            leafe(
                "table",
                "4",
                *folders,
                "--csv",
                str(docs / f"budget-{calls}.csv"),
                log=out / "tables.log",
            )
    if main:
        leafe("figure", "passk", *main, "--out", str(docs / "passk.png"), log=out / "tables.log")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
        "more", nargs="*", help="Changes to every recipe, as `leafe run` takes them."
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    bases = args.models or args.out / "bases"
    for recipe, base, seed in (
        cells(args.recipes, args.bases, args.seeds) if args.only in (None, "cells") else ()
    ):
        source, suffix = model(base, bases), f"b{base}-s{seed}"
        folder = run(recipe, f"{recipe}-{suffix}", source, seed, args.out, args.more)
        if recipe == TRAINED:
            transfer(folder, source, suffix, seed, args.out, args.more)
    if args.only in (None, "depends"):
        depends(args.bases, args.seeds, args.out, bases, args.more)
    if args.only in (None, "tables"):
        tables(args.out, args.docs)


if __name__ == "__main__":
    main()
