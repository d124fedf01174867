"""Several attempts at a test task with feedback between them, beside what plain sampling gives for
the same policy calls.

The first attempt has no feedback: it is a plain sample, and its calls are the price of one. So
attempts that cost c times as much stand beside Pass@c of the same policy, c rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from leafe.baselines.attempts import read_attempts
from leafe.evaluate import Counts, Estimate, pass_estimate
from leafe.pipeline import Stage, env_options, plan
from leafe.recipes import Recipe
from leafe.runs import RunFolder, load_trees
from studies.paper.columns import Column
from studies.paper.definitions import title_of
from studies.paper.document import Block, cells, record

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
_COSTS = ("policy_calls", "prompt_tokens", "generated_tokens")


def attempts_block(columns: Sequence[Column]) -> tuple[Block | None, list[dict[str, Any]]]:
    """The block, if any run has such rows, and a record a figure. Unfinished stages are left
    out."""
    rows, records = [], []
    for column in columns:
        for name, found in _stages(column).items():
            policy = found[0][0].evaluate.tries[name].policy
            plain_results = column.results(policy)
            runs = [
                read_attempts(load_trees(run.path / stage.name), done["method"], done["attempts"])
                for _, run, stage, done in found
            ]
            price = fmean(run.mean_spent(1)["policy_calls"] for run in runs)
            for attempts in range(1, max(run.attempts for run in runs) + 1):
                rate = pass_estimate([Counts(*run.counts(attempts)) for run in runs], 1)
                cost = {w: fmean(run.mean_spent(attempts)[w] for run in runs) for w in _COSTS}
                k = math.ceil(cost["policy_calls"] / price - 1e-9)
                plain = pass_estimate([r.counts for r in plain_results.values()], k)
                rows.append(
                    cells(
                        column.title,
                        name,
                        title_of(policy),
                        str(attempts),
                        f"{_percent(rate)} ({rate.tasks}, {len(runs)})",
                        f"{cost['policy_calls']:.1f}",
                        f"{cost['prompt_tokens']:,.0f}",
                        f"{cost['generated_tokens']:,.0f}",
                        f"Pass@{k}",
                        "–" if math.isnan(plain.value) else _percent(plain),
                    )
                )
                common = {
                    "kind": "tries",
                    "table": 1,
                    "column": column.title,
                    "row": name,
                    "k": attempts,
                    "runs": len(runs),
                    "note": f"policy {policy}",
                }
                records.append(
                    record(measure="success", tasks=rate.tasks, **_interval(rate), **common)
                )
                records += [record(measure=w, value=value, **common) for w, value in cost.items()]
                if plain_results:
                    measure = f"plain Pass@{k}"
                    records.append(record(measure=measure, **_interval(plain), **common))
    if not rows:
        return None, []
    title = (
        "At test time: several attempts with feedback between them, and what plain samples "
        "give for as many calls"
    )
    return Block(title, HEAD, tuple(rows), text_columns=3), records


def _percent(found: Estimate) -> str:
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _interval(found: Estimate) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def _stages(column: Column) -> dict[str, list[tuple[Recipe, RunFolder, Stage, Mapping[str, Any]]]]:
    """By row, the finished stages of attempts at test time."""
    out: dict[str, list[tuple[Recipe, RunFolder, Stage, Mapping[str, Any]]]] = {}
    for path, recipe in {} if column.transfer else column.recipes.items():
        run = RunFolder.read(path)
        for stage in plan(recipe):
            if stage.kind == "tries" and env_options(recipe, stage.variant) == column.options:
                done = run.done(stage.name)
                if done is not None and "rows" in done:
                    out.setdefault(stage.what, []).append((recipe, run, stage, done))
    return out
