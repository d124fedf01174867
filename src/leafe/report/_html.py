"""One self-contained report.html: nothing is fetched, everything that a model wrote is escaped, and
it prints.

It is drawn from the summary alone (`summary.json` will do), except for the trees that it shows.
Hostile characters are made visible in the finished page, so that no text can be forgotten on the
way; and every text has a limit, so that the page can be mailed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from leafe.core import Stop, Tree, visible
from leafe.report import _format as figures
from leafe.report._against import against_rows
from leafe.report._alarms import alarms
from leafe.report._figures import (
    coverage_charts,
    outcome_legend,
    pass_charts,
    stops_chart,
    swatch,
    time_chart,
    whisker,
)
from leafe.report._rescues import RULE, in_words, pick_rescues, rescue_facts
from leafe.report._side_by_side import side_by_side
from leafe.report._tables import reflects
from leafe.report._tree import BRANCH_LIMIT, draw_tree, pick_tree, rescued

_NOTES, _NOTE, _CONFIG, _QUESTION, _EPISODES = 60, 600, 60_000, 2_000, 24
"""The most notes, characters of a note, of the settings and of the question, and episodes of a tree
that are shown in words."""


def write_report(
    summary: Mapping[str, Any],
    out: Path,
    *,
    title: str,
    question: str = "",
    trees: Collection[Tree] = (),
    datasets: Mapping[str, Mapping[str, Any]] | None = None,
    config: str = "",
    notes: Sequence[str] = (),
    command: str = "",
) -> Path:
    """Write the report.

    Args:
        summary: What `Summary.to_json` returns.
        out: The file; its folder is made where it is missing.
        title: Of the page.
        question: What the run asks, in one or two sentences.
        trees: The exploration from which rescues and one tree are picked by rule; gone through
            more than once.
        datasets: By arm, what its training set holds: counts, nested as they come.
        config: The recipe as text.
        notes: Sentences that the reader must see (a stage cut short, an empty part).
        command: The command that makes the run again.

    Returns:
        `out`.
    """
    environment = Environment(
        loader=PackageLoader("leafe.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": figures.percent,
        "interval": figures.interval,
        "difference": figures.difference,
        "number": figures.number,
        "count": figures.count,
        "duration": figures.duration,
        "reflects": reflects,
        "share": lambda part, whole: figures.percent(part / whole if whole else None),
    }
    details = summary.get("details") or {}
    explored, evaluated = details.get("explore", []), details.get("evaluate", [])
    stages = details.get("stages", [])
    stops = [(f"exploring: {r['strategy']}", r["stops"]) for r in explored] + [
        (f"sampling: {r['arm']}", r["stops"]) for r in evaluated
    ]
    rescues, rescued_tasks = pick_rescues(trees)
    tree = pick_tree(trees)
    page = environment.get_template("report.html.j2").render(
        title=title,
        question=figures.clip(question, _QUESTION),
        summary=summary,
        explored=explored,
        evaluated=evaluated,
        ks=list(summary["evaluate"][0]["pass_at"]) if summary["evaluate"] else [],
        findings=findings(summary),
        alarms=alarms(summary),
        arms=details.get("arms", []),
        side=side_by_side(summary),
        probed=any(row["probe"] for row in evaluated),
        rounds=_rounds(details.get("rounds", [])),
        sweeps=_sweeps(details.get("validation", [])),
        tries=details.get("tries", []),
        against=against_rows(summary),
        coverage_charts=coverage_charts(explored),
        pass_charts=pass_charts(evaluated),
        points=_points(evaluated),
        swatches=[swatch(row, i) for i, row in enumerate(evaluated)],
        differences=_difference_rows(summary["differences"]),
        stops=_stop_rows(stops),
        stops_chart=stops_chart(stops),
        stops_legend=outcome_legend(
            {stop for _, counts in stops for stop in Stop if counts.get(stop.value)}
        ),
        failures=_failure_rows(stages, evaluated),
        stages=stages,
        waits=[row for row in stages if row["waits"].get("total")],
        time_chart=time_chart(stages),
        totals=_totals(stages),
        datasets=_dataset_rows(datasets or {}),
        rescues=[rescue_facts(rescue) for rescue in rescues],
        rescue_rule=RULE.format(n=f"{rescued_tasks:,}", where="were"),
        tree=tree,
        tree_rule=_rule(tree) if tree else "",
        tree_svg=draw_tree(tree) if tree else "",
        tree_words=in_words(tree, tree.rollouts[:_EPISODES]) if tree else [],
        tree_more=max(0, len(tree.rollouts) - _EPISODES) if tree else 0,
        tree_task=figures.clip(tree.task.instruction, 600) if tree else "",
        outcome_legend=outcome_legend(
            {
                episode.stop
                for shown in (tree.rollouts if tree else (), *(r.chain for r in rescues))
                for episode in shown
            }
        ),
        starts=details.get("starts", []),
        config=figures.clip(config, _CONFIG),
        notes=[figures.clip(note, _NOTE) for note in notes[:_NOTES]]
        + ([f"{len(notes) - _NOTES} more notes were left out."] if len(notes) > _NOTES else []),
        command=command,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(visible(page), encoding="utf-8")
    return out


def findings(summary: Mapping[str, Any]) -> list[str]:
    """What the figures say, in sentences: which strategy and which arm lead, and how many
    differences have an interval without 0.

    Args:
        summary: What `Summary.to_json` returns.
    """
    out: list[str] = []
    details = summary.get("details") or {}
    sure = [d for d in summary["differences"] if figures.excludes_zero(d)]
    counted = (
        [
            (
                f"Of {len(summary['differences'])} paired differences, {len(sure)} have a 95 % "
                "interval without 0."
            )
        ]
        if summary["differences"]
        else []
    )
    if "compare" in details:
        return counted  # runs side by side had other tasks or budgets: none leads
    controls = {
        row["strategy"] for row in details.get("explore", []) if row.get("role") == "control"
    }
    rows = [
        row
        for row in summary["explore"]
        if row["coverage"] is not None and row["strategy"] not in controls
    ]
    if len(rows) > 1:
        ranked = sorted(rows, key=lambda row: -row["coverage"])
        rates = [f"{row['strategy']} {figures.percent(row['coverage'])} %" for row in ranked]
        out.append(f"Exploration, tasks solved at least once: {', '.join(rates)}.")
    roles = {row["arm"]: row["role"] for row in details.get("evaluate", [])}
    arms = [row for row in summary["evaluate"] if roles.get(row["arm"], "arm") in ("arm", "base")]
    for k in dict.fromkeys(
        k for row in arms for k in (next(iter(row["pass_at"])), list(row["pass_at"])[-1])
    ):
        valued = [row for row in arms if row["pass_at"][k]["value"] is not None]
        if len(valued) > 1:
            best = max(valued, key=lambda row: row["pass_at"][k]["value"])
            point = best["pass_at"][k]
            out.append(
                f"Highest Pass@{k} of the arms: {best['arm']}, "
                f"{figures.percent(point['value'])} % {figures.interval(point['ci95'])}."
            )
    return out + counted


def _rounds(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows, with every k of validation and of test; empty without rounds."""
    ks = {
        name: list(dict.fromkeys(k for row in rows for k in row[name]))
        for name in ("valid", "test")
    }
    return {"rows": rows, **ks} if rows else {}


def _sweeps(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The attempts on validation, with all keys, and every k; empty without attempts."""
    lacking = dict.fromkeys(("run", "empty", "stopped", "pass_at", "temperature"))
    return (
        {
            "rows": [lacking | dict(row) for row in rows],
            "ks": list(dict.fromkeys(k for row in rows for k in row.get("pass_at", ()))),
        }
        if rows
        else {}
    )


def _points(evaluated: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The points of the Pass@k curves as a table."""
    ks = sorted({p["k"] for row in evaluated for p in row["curve"]})
    return {
        "ks": ks,
        "rows": [
            (row["arm"], [next((p for p in row["curve"] if p["k"] == k), None) for k in ks])
            for row in evaluated
        ],
    }


def _difference_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each difference with a drawing of its interval, all on one scale."""
    ends = [abs(v) for row in rows if row["ci95"] is not None for v in row["ci95"]]
    reach = max(ends, default=0.0) or 1.0
    pairs = [(row["a"], row["b"]) for row in rows]
    return [
        dict(row)
        | {
            "sure": (sure := figures.excludes_zero(row)),
            "svg": whisker(row, reach, sure),
            "first": pairs.index(pairs[i]) == i,
            "span": pairs.count(pairs[i]),
        }
        for i, row in enumerate(rows)
    ]


def _stop_rows(rows: Sequence[tuple[str, Mapping[str, int]]]) -> dict[str, Any]:
    """Episodes by stop, one row a strategy or arm; stops that occurred alone."""
    kinds = [s.value for s in Stop if any(stops.get(s.value) for _, stops in rows)]
    return {
        "kinds": kinds,
        "rows": [
            (name, [stops.get(kind, 0) for kind in kinds], sum(stops.values()))
            for name, stops in rows
        ],
    }


def _failure_rows(
    stages: Sequence[Mapping[str, Any]], evaluated: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, int]]:
    """(stage, what failed, how often) of all failures that ended no episode."""
    out = [
        (f"{row['kind']}: {row['row']}", what, number)
        for row in stages
        for what, number in row["failures"].items()
    ]
    return out + [
        (f"evaluate: {row['arm']}", "samples lost", row["lost"]) for row in evaluated if row["lost"]
    ]


def _totals(stages: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    counted = [
        name
        for name, value in (stages[0] if stages else {}).items()
        if isinstance(value, int | float) and name != "runs"
    ]
    return {name: sum(row[name] for row in stages) for name in counted}


def _dataset_rows(datasets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Nested counts flattened to columns, in the order in which they first appear."""
    flat = {arm: _flat(content) for arm, content in datasets.items()}
    columns = list(dict.fromkeys(column for content in flat.values() for column in content))
    return {
        "columns": columns,
        "rows": [
            (arm, [content.get(column) for column in columns]) for arm, content in flat.items()
        ],
    }


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in content.items():
        nested = isinstance(value, Mapping)
        out |= _flat(value, f"{prefix}{name}: ") if nested else {f"{prefix}{name}": value}
    return out


def _rule(tree: Tree) -> str:
    which = (
        "of the tasks solved only after a rollback"
        if rescued(tree)
        else "no task was solved by a rollback; of those with one"
    )
    return (
        f"{which}, the one with the most branches ({BRANCH_LIMIT} at most), the first by id "
        "among equals"
    )
