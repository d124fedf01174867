"""One self-contained report.html: nothing is fetched, everything that a model wrote is escaped, and it prints.

It is drawn from the summary alone (`summary.json` will do), but for the one tree that it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from leafe.core import Kind, Stop, Tree, Turn
from leafe.report import _format as figures
from leafe.report._against import against_rows
from leafe.report._alarms import alarms
from leafe.report._charts import Series, line_chart, look, marker
from leafe.report._tables import reflects
from leafe.report._tree import BRANCH_LIMIT, OUTCOMES, draw_tree, outcome_mark, pick_tree, rescued


def write_report(
    summary: Mapping[str, Any],
    out: Path,
    *,
    title: str,
    question: str = "",
    trees: Sequence[Tree] = (),
    datasets: Mapping[str, Mapping[str, Any]] | None = None,
    config: str = "",
    notes: Sequence[str] = (),
    command: str = "",
) -> Path:
    """Write the report to the file `out`; returns it.

    summary: what `Summary.to_json` gives. question: what the run asks, one or two sentences. trees: the exploration from which one
    tree is picked by rule and drawn. datasets: for each arm, what its training set holds (plain counts, nested as they come).
    config: the recipe as text. notes: sentences that the reader must see (a stage cut short, an empty part). command: what made it.
    """
    environment = Environment(loader=PackageLoader("leafe.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": figures.percent, "interval": figures.interval, "difference": figures.difference} | {
        "number": figures.number, "count": figures.count, "reflects": reflects,
    }  # fmt: skip
    tree = pick_tree(trees)
    details = summary.get("details") or {}
    explored, evaluated = details.get("explore", []), details.get("evaluate", [])
    page = environment.get_template("report.html.j2").render(
        title=title,
        question=question,
        summary=summary,
        explored=explored,
        evaluated=evaluated,
        ks=list(summary["evaluate"][0]["pass_at"]) if summary["evaluate"] else [],
        findings=findings(summary),
        alarms=alarms(summary),
        probed=any(row["probe"] for row in evaluated),
        gauged=list(dict.fromkeys(name for row in evaluated for name in row["probe"].get("world", ()))),
        rounds=_rounds(details.get("rounds", [])),
        sweeps=_sweeps(details.get("validation", [])),
        against=against_rows(summary),
        budget_chart=_budget_chart(explored, "policy_calls", "policy calls spent on each task (reflections included)"),
        steps_chart=_budget_chart(explored, "env_steps", "world steps spent on each task (replays included)"),
        pass_chart=_pass_chart(evaluated),
        swatches=[_swatch(row, i) for i, row in enumerate(evaluated)],
        differences=_difference_rows(summary["differences"]),
        stops=_stop_rows(explored, evaluated),
        datasets=_dataset_rows(datasets or {}),
        tree=tree,
        tree_rule=_rule(tree) if tree else "",
        tree_svg=draw_tree(tree) if tree else "",
        tree_words=_in_words(tree) if tree else [],
        outcome_legend=_legend(tree) if tree else [],
        config=config,
        notes=notes,
        command=command,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def findings(summary: Mapping[str, Any]) -> list[str]:
    """What the figures say, in sentences that are made from them: who leads where, and which differences are sure."""
    out: list[str] = []
    rows = [row for row in summary["explore"] if row["coverage"] is not None]
    if len(rows) > 1:
        ranked = sorted(rows, key=lambda row: -row["coverage"])
        said = ", ".join(f"{row['strategy']} {figures.percent(row['coverage'])} %" for row in ranked)
        out.append(f"Exploration, tasks solved at least once: {said}.")
    roles = {row["arm"]: row["role"] for row in (summary.get("details") or {}).get("evaluate", [])}
    arms = [row for row in summary["evaluate"] if roles.get(row["arm"], "arm") in ("arm", "base")]
    for k in dict.fromkeys(k for row in arms for k in (next(iter(row["pass_at"])), list(row["pass_at"])[-1])):
        valued = [row for row in arms if row["pass_at"][k]["value"] is not None]
        if len(valued) > 1:
            best = max(valued, key=lambda row: row["pass_at"][k]["value"])
            point = best["pass_at"][k]
            out.append(f"Highest Pass@{k} of the arms: {best['arm']}, {figures.percent(point['value'])} % {figures.interval(point['ci95'])}.")
    sure = [d for d in summary["differences"] if _excludes_zero(d)]
    if summary["differences"]:
        out.append(f"Of {len(summary['differences'])} paired differences, {len(sure)} have a 95 % interval without 0.")
    return out


def _rounds(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows, with the k of validation and test that any of them has; empty without rounds."""
    ks = {name: list(dict.fromkeys(k for row in rows for k in row[name])) for name in ("valid", "test")}
    return {"rows": rows, **ks} if rows else {}


def _sweeps(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was tried on validation, complete rows; empty where nothing was."""
    lacking = dict.fromkeys(("run", "empty", "stopped", "pass_at", "temperature"))
    return {"rows": [lacking | dict(row) for row in rows], "ks": list(dict.fromkeys(k for row in rows for k in row.get("pass_at", ())))} if rows else {}


def _excludes_zero(row: Mapping[str, Any]) -> bool:
    return row["ci95"] is not None and (row["ci95"][0] > 0 or row["ci95"][1] < 0)


def _budget_chart(explored: Sequence[Mapping[str, Any]], cost: str, label: str) -> Markup:
    series = []
    end = max((row["curves"][cost]["end"] for row in explored), default=0)
    for i, row in enumerate(explored):
        curve = row["curves"][cost]
        if curve["tasks"]:
            # the last value is held to the end of the axis: a task that was given up early would have found nothing more for free
            x, y = [*curve["budget"], end], [s / curve["tasks"] for s in (*curve["solved"], curve["solved"][-1])]
            series.append(Series(row["strategy"], x, y, look(i), steps=True))
    return line_chart(series, title="Coverage against budget", x_label=label, y_label="tasks solved at least once, %")


def _pass_chart(evaluated: Sequence[Mapping[str, Any]]) -> Markup:
    series = []
    for i, row in enumerate(evaluated):
        points = [p for p in row["curve"] if p["value"] is not None]
        low, high = [p["ci95"][0] for p in points], [p["ci95"][1] for p in points]
        style = look(i, row["role"] == "ceiling")
        series.append(Series(row["arm"], [p["k"] for p in points], [p["value"] for p in points], style, low, high))
    return line_chart(series, title="Pass@k", x_label="k, samples (log scale)", y_label="Pass@k, %", log2=True)


def _swatch(row: Mapping[str, Any], index: int) -> Markup:
    svg = Markup('<svg class="swatch" viewBox="0 0 14 14" aria-hidden="true">{}</svg>')
    return svg.format(marker(look(index, row["role"] == "ceiling"), 7, 7))


def _difference_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each difference with its interval as a small drawing, all on one scale."""
    ends = [abs(v) for row in rows if row["ci95"] is not None for v in row["ci95"]]
    reach = max(ends, default=0.0) or 1.0
    pairs = [(row["a"], row["b"]) for row in rows]
    return [dict(row) | {"sure": _excludes_zero(row), "svg": _whisker(row, reach), "first": pairs.index(pairs[i]) == i} for i, row in enumerate(rows)]


def _whisker(row: Mapping[str, Any], reach: float) -> Markup:
    if row["ci95"] is None:
        return Markup("")
    width, height = 220, 18

    def px(v: float) -> str:
        return f"{width / 2 + v / reach * (width / 2 - 8):.1f}"

    colour = "#0072B2" if _excludes_zero(row) else "#666666"
    shape = Markup(
        '<svg class="whisker" viewBox="0 0 {w} {h}" aria-hidden="true"><line x1="{zero}" x2="{zero}" y1="0" y2="{h}" stroke="#999"/>'
        '<line x1="{low}" x2="{high}" y1="9" y2="9" stroke="{colour}" stroke-width="2.4"/>{dot}</svg>'
    )
    dot = Markup('<circle cx="{}" cy="9" r="4.2" fill="{}" stroke="{}" stroke-width="2"/>')
    mark = dot.format(px(row["value"]), colour if _excludes_zero(row) else "white", colour)
    return shape.format(w=width, h=height, zero=px(0), low=px(row["ci95"][0]), high=px(row["ci95"][1]), colour=colour, dot=mark)


def _stop_rows(explored: Sequence[Mapping[str, Any]], evaluated: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Episodes by stop, one row a strategy or arm; only stops that occurred."""
    rows = [("exploring: " + r["strategy"], r["stops"]) for r in explored] + [("sampling: " + r["arm"], r["stops"]) for r in evaluated]
    kinds = [s.value for s in Stop if any(stops.get(s.value) for _, stops in rows)]
    return {"kinds": kinds, "rows": [(name, [stops.get(kind, 0) for kind in kinds], sum(stops.values())) for name, stops in rows]}


def _dataset_rows(datasets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Nested counts flattened to columns, in the order in which they first appear."""
    flat = {arm: _flat(content) for arm, content in datasets.items()}
    columns = list(dict.fromkeys(column for content in flat.values() for column in content))
    return {"columns": columns, "rows": [(arm, [content.get(column) for column in columns]) for arm, content in flat.items()]}


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{name}: ")
        else:
            out[prefix + str(name)] = value
    return out


def _rule(tree: Tree) -> str:
    which = "of the tasks solved only after a rollback" if rescued(tree) else "no task was solved by a rollback; of those with one"
    return f"{which}, the one with the most branches ({BRANCH_LIMIT} at most), the first by id among equals"


def _in_words(tree: Tree) -> list[dict[str, Any]]:
    """The drawn tree as text: every episode's own turns, and what was said about them."""
    return [
        {
            "index": episode.index,
            "from": tree[episode.start].step + 1 if episode.start is not None else 0,
            "stop": str(episode.stop).replace("_", " "),
            "error": episode.error,
            "turns": [_turn_words(turn) for turn in episode.turns],
        }
        for episode in tree.episodes
    ]


def _turn_words(turn: Turn) -> dict[str, Any]:
    reflect = turn.kind is Kind.reflect
    return {"reflect": reflect, "step": turn.step, "said": turn.action_text[:1500], "answer": turn.observation[:1500], "valid": turn.valid}


def _legend(tree: Tree) -> list[tuple[Markup, str]]:
    """The marks of the stops that the drawing shows."""
    there = {e.stop for e in tree.episodes}
    svg = Markup('<svg class="swatch" viewBox="0 0 18 18" aria-hidden="true">{}</svg>')
    return [(svg.format(outcome_mark(stop, 9, 9)), str(stop).replace("_", " ")) for stop in OUTCOMES if stop in there]
