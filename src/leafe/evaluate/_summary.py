"""The comparison as plain values: the content of `summary.json`, and the source of every table and
plot.

The rows under `explore`, `evaluate` and `differences` are stable, for other programs; what only the
report needs is under `details`, in the same order. Rates are fractions of 1; an undefined figure
(Pass@k with n < k) is null.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from leafe.core import Tree, UserError
from leafe.evaluate._collapse import collapses
from leafe.evaluate._contrast import contrasts
from leafe.evaluate._coverage import coverage, coverage_curve, spent
from leafe.evaluate._diversity import Diversity, diversity
from leafe.evaluate._intervals import Estimate, mean_rate, paired_difference, pass_estimate
from leafe.evaluate._mean import Over
from leafe.evaluate._measures import measure
from leafe.evaluate._passk import Counts, counts
from leafe.evaluate._probe import mean_probe

Runs = Sequence[Sequence[Tree]]
"""One list of trees for each seed of the experiment; most have one."""


@dataclass(frozen=True, slots=True)
class Explored:
    """What one strategy found in Stage 1."""

    strategy: str
    runs: Runs
    seconds: float = 0.0
    """Wall time, all runs together."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What the samples of one policy came to."""

    arm: str
    runs: Runs
    temperature: float = 1.0
    seconds: float = 0.0
    role: Literal["arm", "base", "control", "ceiling"] = "arm"
    """base: the policy before training. control: a row that checks the comparison. ceiling: a
    reference with more knowledge."""
    probes: Sequence[Mapping[str, Any]] = ()
    """`Probe.to_json` for the policy of each run that was probed."""
    labels: Sequence[str] = ()
    """A name for each run, unique among seeds and base policies, so that rows that lack a run can
    be compared too (`against`). Empty: 0, 1, ..."""


@dataclass(frozen=True, slots=True)
class Summary:
    """See the module's docstring. All fields hold plain JSON values."""

    explore: list[dict[str, Any]]
    evaluate: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    seeds: list[int]
    versions: dict[str, str]
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        names = ("explore", "evaluate", "differences", "seeds", "versions", "details")
        return {name: getattr(self, name) for name in names}


def summarise(
    explored: Sequence[Explored] = (),
    evaluated: Sequence[Evaluated] = (),
    *,
    ks: Sequence[int] = (1, 8, 32, 128),
    compare: Sequence[tuple[str, str]] = (),
    against: str | None = None,
    over: Over = "runs",
    seeds: Sequence[int] = (),
    versions: Mapping[str, str] | None = None,
) -> Summary:
    """All figures with their 95 % intervals.

    Args:
        explored: The strategies of Stage 1.
        evaluated: The rows; their names have to be unique.
        ks: The k of Pass@k.
        compare: Pairs (a, b) of arms whose Pass@k are subtracted, a - b, task by task. A pair whose
            arm is missing is left out, so that an unfinished run can be summarised.
        against: An arm with which the base and every other arm is compared run by run
            (`contrasts`), under `details.against`.
        over: What the intervals of `against` are about.
        seeds: Of the experiment, for the record.
        versions: Of packages, for the record.

    Raises:
        UserError: Two rows share a name, or two arms to compare were sampled on different tasks.
    """
    names = [e.arm for e in evaluated]
    if len(set(names)) != len(names):
        raise UserError(
            "Two arms share a name: "
            f"{', '.join(sorted({n for n in names if names.count(n) > 1}))}; every row "
            "needs its own."
        )
    results = {e.arm: [counts(trees) for trees in e.runs] for e in evaluated}
    diversities = {e.arm: diversity(_flat(e.runs)) for e in evaluated}
    pairs = [(a, b) for a, b in compare if a in results and b in results]
    return Summary(
        explore=[_explore_row(e) for e in explored],
        evaluate=[_evaluate_row(e, results[e.arm], diversities[e.arm], ks) for e in evaluated],
        differences=[
            {"a": a, "b": b, "k": k, "value": _number(d.value), "ci95": _interval(d)}
            for a, b in pairs
            for k in ks
            for d in [paired_difference(results[a], results[b], k)]
        ],
        seeds=list(seeds),
        versions=dict(versions or {}),
        details={
            "explore": [_explore_details(e) for e in explored],
            "evaluate": [
                _evaluate_details(e, results[e.arm], diversities[e.arm], ks) for e in evaluated
            ],
            "collapse": collapses(
                [_vitals(e, results[e.arm], diversities[e.arm]) for e in evaluated]
            ),
        }
        | ({} if against is None else {"against": _against(evaluated, results, against, ks, over)}),
    )


def _explore_row(e: Explored) -> dict[str, Any]:
    trees = _flat(e.runs)
    cost = spent(trees)
    several = len(e.runs) > 1
    estimate = (
        mean_rate([{t.task.id: float(t.solved) for t in run} for run in e.runs])
        if several
        else coverage(trees)
    )
    return {
        "strategy": e.strategy,
        "solved": sum(t.solved for t in trees),
        "tasks": len(trees),
        "coverage": _number(estimate.value),
        "ci95": _interval(estimate),
        "policy_calls": cost.policy_calls,
        "env_steps": cost.env_steps,
        "replayed_steps": cost.replayed_steps,
        "seconds": round(e.seconds, 2),
    }


def _explore_details(e: Explored) -> dict[str, Any]:
    trees = _flat(e.runs)
    cost = spent(trees)
    reflections = [t for tree in trees for t in tree.reflections]
    return {
        "strategy": e.strategy,
        "runs": len(e.runs),
        "episodes": cost.episodes,
        "solved_by_rollback": sum(t.solved and t.successes()[0].depth > 0 for t in trees),
        "reflections": len(reflections),
        "unusable_reflections": sum(not r.valid for r in reflections),
        "truncated_answers": _truncated(trees),
        "branches": sum(len(t.branches()) for t in trees),
        "improved_branches": sum(b.improved for t in trees for b in t.branches()),
        "prompt_tokens": cost.prompt_tokens,
        "cached_tokens": cost.cached_tokens,
        "generated_tokens": cost.generated_tokens,
        "stops": measure(trees).stops,
        "curves": {
            name: {
                "budget": list(c.budget),
                "solved": list(c.solved),
                "tasks": c.tasks,
                "end": c.end,
            }
            for name, c in (
                ("policy_calls", coverage_curve(trees, "policy_calls")),
                ("env_steps", coverage_curve(trees, "env_steps")),
            )
        },
    }


def _evaluate_row(
    e: Evaluated, results: list[Counts], width: Diversity, ks: Sequence[int]
) -> dict[str, Any]:
    probed = mean_probe(e.probes)
    return {
        "arm": e.arm,
        "temperature": e.temperature,
        "tasks": sum(len(run) for run in e.runs),
        "samples": _samples(results),
        "lost": sum(int(r.short.sum()) for r in results),
        "short": sum(int((r.short > 0).sum()) for r in results),
        "pass_at": {
            str(k): {"value": _number(p.value), "ci95": _interval(p)}
            for k in ks
            for p in [pass_estimate(results, k)]
        },
        "entropy": None if width.entropy is None else round(width.entropy, 6),
        "distinct": None if width.distinct is None else round(width.distinct, 6),
        "following": probed.get("following"),
        "reflection": probed.get("reflection"),
        "same_step": probed.get("same_step"),
        "seconds": round(e.seconds, 2),
    }


def _vitals(e: Evaluated, results: list[Counts], width: Diversity) -> dict[str, Any]:
    """What the collapse detectors look at."""
    return (
        {"arm": e.arm, "role": e.role, "temperature": e.temperature, "samples": _samples(results)}
        | width.to_json()
        | mean_probe(e.probes)
    )


def _against(
    evaluated: Sequence[Evaluated],
    results: Mapping[str, list[Counts]],
    reference: str,
    ks: Sequence[int],
    over: Over,
) -> dict[str, Any]:
    """The base and every arm against the reference, at the first and the last k only: every further
    claim would weaken the others."""
    rows = {
        e.arm: dict(zip(e.labels or map(str, range(len(e.runs))), results[e.arm], strict=True))
        for e in evaluated
        if e.role in ("arm", "base")
    }
    ends = tuple(dict.fromkeys((ks[0], ks[-1])))
    return {
        "reference": reference,
        "ks": list(ends),
        "over": over,
        "rows": [c.to_json() for c in contrasts(rows, reference, ends, over=over)],
    }


def _evaluate_details(
    e: Evaluated, results: list[Counts], width: Diversity, ks: Sequence[int]
) -> dict[str, Any]:
    trees = _flat(e.runs)
    means = measure(trees)
    n = _samples(results)
    points = sorted({2**i for i in range(n.bit_length())} | {k for k in ks if k <= n}) if n else []
    curve = []
    for k in points:
        p = pass_estimate(results, k)
        curve.append({"k": k, "value": _number(p.value), "ci95": _interval(p), "tasks": p.tasks})
    return {
        "arm": e.arm,
        "role": e.role,
        "runs": len(e.runs),
        "solved": sum(t.solved for t in trees),
        "truncated_answers": _truncated(trees),
        "lost": sum(int(r.short.sum()) for r in results),
        "turns": _number(means.turns),
        "invalid": _number(means.invalid),
        "tokens": _number(means.tokens),
        "stops": means.stops,
        "computed": {
            name: value
            for name, value in means.computed.to_json().items()
            if name not in ("seconds", "episodes")
        },
        "plain": {
            "env_steps": _number(means.plain_steps),
            "generated_tokens": _number(means.plain_tokens),
        },
        "curve": curve,
        "spread": width.to_json(),
        "probe": mean_probe(e.probes),
    }


def _truncated(trees: Iterable[Tree]) -> int:
    """Answers that were cut at their token limit, by their counts."""
    return sum(turn.count for tree in trees for turn in tree if turn.cut)


def _samples(results: Sequence[Counts]) -> int:
    """Samples of a task, lost ones included."""
    return max((r.asked for r in results), default=0)


def _flat(runs: Runs) -> list[Tree]:
    return [tree for run in runs for tree in run]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)


def _interval(estimate: Estimate) -> list[float] | None:
    """[low, high], or null where there is no estimate."""
    return None if math.isnan(estimate.value) else [round(estimate.low, 6), round(estimate.high, 6)]
