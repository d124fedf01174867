"""The paper's six tables and their claims as data: which arms are the rows, which recipes are the
columns, what each table is said to show.

A row is the name of an arm (or row of an evaluation) in run folders. `ARMS` defines an arm where
the recipe does not: a recipe's own settings, found on validation tasks, come first. Arms whose
preset this leafe does not have are listed too, so that a table can name what it lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from leafe.core import UserError

Relation = Literal["above", "same", "not below"]
MARGIN = 0.02
"""Two points: the difference below which `same` and `not below` take two rows for equal. The
paper's own `leaves Pass@1` are changes of up to 0.7."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """One method of a table."""

    key: str
    """Its name in run folders."""
    title: str
    about: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """`a` against `b`, at Pass@k."""

    a: str
    b: str
    k: int | Literal["top"]
    """top: 128, or the largest power of two that the samples allow."""
    relation: Relation = "above"


@dataclass(frozen=True, slots=True)
class Claim:
    """One sentence that a table is said to show. It holds in a column where all its comparisons
    do."""

    name: str
    table: int
    text: str
    columns: Literal["every", "some"]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """One of the paper's tables."""

    number: int
    title: str
    rows: tuple[TableRow, ...]
    kind: Literal["evaluate", "explore", "transfer"] = "evaluate"
    """evaluate: Pass@k of policies. explore: coverage of explorations. transfer: Pass@k of policies
    in an environment that they were not trained in."""
    by_base: bool = False
    """Whether each base policy has columns of its own, as in the paper; else base policies are runs
    of one column, as seeds are."""
    main: bool = False
    """Whether it shows the first recipe of a set alone; of a transfer table the training one."""


@dataclass(frozen=True, slots=True)
class RecipeSet:
    """A value of `--on`: the recipes that are a table's columns, and those of the transfer
    table."""

    recipes: tuple[str, ...]
    trained: str = ""
    """The recipe whose policies are tested out of distribution; empty: there is no such test."""
    tested: tuple[str, ...] = ()
    """The recipes that test them."""

    def of(self, table: Table) -> tuple[str, ...]:
        """The recipes that a table runs, the tests of a transfer table left out."""
        if table.kind == "transfer":
            return (self.trained,) if self.trained else ()
        return self.recipes[:1] if table.main else self.recipes


SETS: Mapping[str, RecipeSet] = {
    "gates": RecipeSet(
        ("gates-hard", "gates-easy", "gates-random"),
        "gates-first",
        ("gates-transfer", "gates-habit"),
    ),
    "sokoban": RecipeSet(("sokoban",)),
    "scienceworld": RecipeSet(("scienceworld",)),
    "alfworld": RecipeSet(("alfworld",)),
    "webshop": RecipeSet(("webshop",)),
    "code": RecipeSet(("codecontests",), "codecontests", ("mbpp",)),
}

BASE = TableRow("base", "Base", "the policy before any training")
EARLY = TableRow("early-experience", "EarlyExp", "implicit environment modelling, then imitation")
REFLECTION = TableRow("self-reflection", "EarlyExp (self-reflection)")
GRPO = TableRow("grpo", "GRPO")
ACE = TableRow("ace", "ACE", "a playbook in the prompt; no weights change")
RFT = TableRow("rft", "RFT", "fine-tuned on the successes of independent sampling")
REHEARSAL = TableRow("rehearsal", "L_reh only", "the tree's successes, stopped early")
LEAFE = TableRow("leafe", "LEAFE", "the paper's form: L_cf + beta L_reh")
PLUS = TableRow("leafe+", "LEAFE+", "leafe's own Stage 2")
LEAFE_GRPO = TableRow("leafe from grpo", "LEAFE from GRPO")
PLUS_GRPO = TableRow("leafe+ from grpo", "LEAFE+ from GRPO")
LEAFE_EARLY = TableRow("leafe from early-experience", "LEAFE from EarlyExp")

ARMS: Mapping[str, Mapping[str, Any]] = {
    "early-experience": {"preset": "early-experience"},
    "self-reflection": {"preset": "self-reflection"},
    "grpo": {"preset": "grpo"},
    "ace": {"preset": "ace"},
    "rft": {"preset": "rft", "explored": "independent"},
    "rehearsal": {"preset": "rehearsal", "distill": {"valid_fraction": 0.2, "eval_steps": 5}},
    "leafe": {"preset": "paper"},
    "leafe+": {"preset": "leafe+"},
    "leafe from grpo": {"preset": "paper", "start": "grpo", "explorer": "grpo"},
    "leafe+ from grpo": {"preset": "leafe+", "start": "grpo", "explorer": "grpo"},
    "leafe from early-experience": {
        "preset": "paper",
        "start": "early-experience",
        "explorer": "early-experience",
    },
}
STRATEGIES = (
    TableRow("independent", "IS", "independent sampling"),
    TableRow("refine", "IR", "iterative refinement"),
    TableRow("tree", "LEAFE tree", "rollback"),
)

TABLES: Mapping[int, Table] = {
    t.number: t
    for t in (
        Table(
            1,
            "Pass@1 and Pass@128 of every method",
            (BASE, EARLY, REFLECTION, GRPO, ACE, RFT, REHEARSAL, LEAFE, PLUS),
        ),
        Table(
            2,
            "Pass@1 and Pass@128 by base policy",
            (BASE, GRPO, LEAFE, PLUS),
            by_base=True,
            main=True,
        ),
        Table(
            3,
            "Stage 1 alone: tasks solved at least once, at equal budget",
            STRATEGIES,
            kind="explore",
        ),
        Table(4, "What L_cf adds to L_reh", (REHEARSAL, LEAFE, PLUS)),
        Table(
            5,
            "Out of distribution",
            (BASE, GRPO, REHEARSAL, LEAFE, PLUS),
            kind="transfer",
            main=True,
        ),
        Table(
            6,
            "LEAFE alone and with an auxiliary objective",
            (LEAFE, LEAFE_EARLY, LEAFE_GRPO, PLUS, PLUS_GRPO),
        ),
    )
}

_TRAINED = ("early-experience", "grpo", "rft", "rehearsal", "leafe")


def _over(a: str, others: tuple[str, ...], k: int | Literal["top"]) -> tuple[Comparison, ...]:
    return tuple(Comparison(a, b, k) for b in others)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "1a",
        1,
        "LEAFE has the highest Pass@128 in every cell",
        "every",
        _over("leafe", ("base", "early-experience", "grpo", "ace"), "top"),
    ),
    Claim(
        "1b",
        1,
        "GRPO sometimes has the highest Pass@1",
        "some",
        _over("grpo", ("base", "early-experience", "ace", "leafe"), 1),
    ),
    Claim(
        "1c",
        1,
        "LEAFE+ has the highest Pass@128 of all trained arms",
        "every",
        _over("leafe+", _TRAINED, "top"),
    ),
    Claim(
        "1d",
        1,
        "LEAFE+ has the highest Pass@1 of all trained arms",
        "every",
        _over("leafe+", _TRAINED, 1),
    ),
    Claim(
        "2a",
        2,
        "LEAFE has a higher Pass@128 than GRPO with every base policy",
        "every",
        _over("leafe", ("base", "grpo"), "top"),
    ),
    Claim(
        "3a",
        3,
        "The rollback tree solves more tasks per budget than independent sampling",
        "every",
        _over("tree", ("independent",), 1),
    ),
    Claim(
        "3b",
        3,
        "The rollback tree solves more tasks per budget than iterative refinement",
        "every",
        _over("tree", ("refine",), 1),
    ),
    Claim("4a", 4, "L_cf adds Pass@128", "every", _over("leafe", ("rehearsal",), "top")),
    Claim(
        "4b",
        4,
        "L_cf leaves Pass@1 as it is",
        "every",
        (Comparison("leafe", "rehearsal", 1, "same"),),
    ),
    Claim(
        "5a", 5, "Out of distribution GRPO loses coverage", "every", _over("base", ("grpo",), "top")
    ),
    Claim(
        "5b",
        5,
        "Out of distribution LEAFE loses no coverage",
        "every",
        (Comparison("leafe", "base", "top", "not below"),),
    ),
    Claim(
        "6a",
        6,
        "Early Experience as an auxiliary objective lifts Pass@1",
        "every",
        _over("leafe from early-experience", ("leafe",), 1),
    ),
    Claim(
        "6b",
        6,
        "GRPO as an auxiliary objective lifts Pass@1",
        "every",
        _over("leafe from grpo", ("leafe",), 1),
    ),
    Claim(
        "6c",
        6,
        "Early Experience as an auxiliary objective can cost Pass@128",
        "some",
        _over("leafe", ("leafe from early-experience",), "top"),
    ),
    Claim(
        "6d",
        6,
        "GRPO as an auxiliary objective can cost Pass@128",
        "some",
        _over("leafe", ("leafe from grpo",), "top"),
    ),
)
"""docs/method.md, "The paper's tables", (1) as 1a, 1b and 2a, (2) as 3, (3) as 4, (4) as 5, (5) as
6; 1c and 1d are what leafe itself claims."""


def why_control(env: str, options: Mapping[str, Any], transfer: bool = False) -> str:
    """Of a column that keeps the comparison honest, and of which no claim speaks: what is peculiar
    to it; '' where it is none."""
    if env == "gates" and options.get("setting") == "random":
        return "its rules are random in every task, so that there is nothing to internalise"
    if env == "gates" and options.get("rules") == "habit" and transfer:
        return (
            "its rules are those of pretraining, so that what training taught of rules is "
            "false in it"
        )
    return ""


def trains_for_transfer(env: str, options: Mapping[str, Any]) -> bool:
    """An environment in one half of the words, which is there for the transfer table and is no
    column of the others."""
    return env == "gates" and options.get("words", "all") != "all"


def recipe_set(name: str) -> RecipeSet:
    """The recipes that fill the tables for one environment; UserError for an unknown name."""
    if name not in SETS:
        raise UserError(
            f"--on {name}: there is no recipe set of this name; choose one of {', '.join(SETS)}."
        )
    return SETS[name]


def title_of(key: str) -> str:
    """How tables name a row."""
    rows = {row.key: row.title for table in TABLES.values() for row in table.rows}
    return rows.get(key, key)
