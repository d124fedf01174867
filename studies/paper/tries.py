"""Several attempts at a test task with feedback between them, beside what plain sampling gives for
the same policy calls.

The first attempt has no feedback: it is a plain sample, and its calls are the price of one. So R
attempts that cost c times as much stand beside Pass@c of the
same policy, c rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from leafe.baselines.attempts import Attempts, read_attempts
from leafe.evaluate import Counts, Estimate, pass_estimate
from leafe.pipeline import Stage, env_options, plan
from leafe.recipes import Recipe
from leafe.runs import RunFolder, load_trees
from studies.paper.define import title_of
from studies.paper.document import Block, cells, record
from studies.paper.evidence import Column

HEAD = (
    "environment",
    "row",
    "policy",
    "attempts",
    "success in % [95 % interval] (tasks, runs)",
    "calls a sample",
    "tokens in",
    "tokens out",
    "same calls buy",
    "and that has",
)


def tries_block(columns: Sequence[Column]) -> tuple[Block | None, list[dict[str, Any]]]:
    """The block, if any run has such rows, and a record a figure. Stages that are not finished are
    left out."""
    rows, records = [], []
    for column in columns:
        for name, found in _found(column).items():
            policy = found[0][0].evaluate.tries[name].policy
            base = column.results(policy)
            read = [
                read_attempts(load_trees(run.path / stage.name), done["method"], done["attempts"])
                for _, run, stage, done in found
            ]
            for attempts in range(1, max(a.attempts for a in read) + 1):
                rate = _rate(read, attempts)
                cost = {
                    what: _mean([a.mean_spent(attempts)[what] for a in read])
                    for what in ("policy_calls", "prompt_tokens", "generated_tokens")
                }
                k = math.ceil(
                    cost["policy_calls"] / _mean([a.mean_spent(1)["policy_calls"] for a in read])
                    - 1e-9
                )
                plain = pass_estimate([r.counts for r in base.values()], k) if base else None
                shown = (
                    "–"
                    if plain is None or math.isnan(plain.value)
                    else f"{100 * plain.value:.1f} [{100 * plain.low:.1f}, {100 * plain.high:.1f}]"
                )
                figures = (
                    f"{cost['policy_calls']:.1f}",
                    f"{cost['prompt_tokens']:,.0f}",
                    f"{cost['generated_tokens']:,.0f}",
                    f"Pass@{k}",
                    shown,
                )
                success = (
                    f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}] "
                    f"({rate.tasks}, {len(read)})"
                )
                rows.append(
                    cells(column.title, name, title_of(policy), str(attempts), success, *figures)
                )
                common = {
                    "table": 1,
                    "column": column.title,
                    "row": name,
                    "k": attempts,
                    "runs": len(read),
                    "note": f"policy {policy}",
                }
                records.append(
                    record(
                        kind="tries",
                        measure="success",
                        value=rate.value,
                        low=rate.low,
                        high=rate.high,
                        tasks=rate.tasks,
                        **common,
                    )
                )
                records += [
                    record(kind="tries", measure=what, value=value, **common)
                    for what, value in cost.items()
                ]
                if plain is not None:
                    records.append(
                        record(
                            kind="tries",
                            measure=f"plain Pass@{k}",
                            value=plain.value,
                            low=plain.low,
                            high=plain.high,
                            **common,
                        )
                    )
    if not rows:
        return None, []
    title = (
        "At test time: several attempts with feedback between them, and what plain samples "
        "give for as many calls"
    )
    return Block(title, HEAD, tuple(rows), words=3), records


def _found(column: Column) -> dict[str, list[tuple[Recipe, RunFolder, Stage, Mapping[str, Any]]]]:
    out: dict[str, list[tuple[Recipe, RunFolder, Stage, Mapping[str, Any]]]] = {}
    for recipe, run, stage in _stages(column):
        done = run.done(stage.name)
        if done is not None and "rows" in done:
            out.setdefault(stage.what, []).append((recipe, run, stage, done))
    return out


def _stages(column: Column) -> Iterator[tuple[Recipe, RunFolder, Stage]]:
    for path, recipe in {} if column.transfer else column.recipes.items():
        for stage in plan(recipe):
            if stage.kind == "tries" and env_options(recipe, stage.variant) == column.options:
                yield recipe, RunFolder.read(path), stage


def _rate(read: Sequence[Attempts], attempts: int) -> Estimate:
    return pass_estimate([Counts(*a.counts(attempts)) for a in read], 1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
