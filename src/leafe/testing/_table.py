"""The reports of checks as one table, for the terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Sequence

from leafe.testing._check import CHECKS, TAUS, Report

COLUMNS = (
    "env",
    "contract",
    "replayed exactly",
    "rollback",
    *(f"back to {tau}, ms" for tau in TAUS),
    "reset, ms",
    "step, ms",
    "memory, MB",
    "longest observation",
)
"""`back to TAU`: a return to step tau, by reset and replay / by snapshot or fork. Medians."""


def reports_table(
    reports: Sequence[Report], names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], list[list[str]]]:
    """The reports as a table.

    Args:
        reports: What `check_environment` returned.
        names: Names of the rows; by default the environments'.

    Returns:
        The column titles, and one row of text for each report.
    """
    return COLUMNS, [
        _row(report, name)
        for report, name in zip(reports, names or [r.env for r in reports], strict=True)
    ]


def _row(report: Report, name: str) -> list[str]:
    broken = ", ".join(
        f"{check} ({report.failed[check]})" for check in CHECKS if report.failed[check]
    )
    exact = report.replayed - report.failed["replay"] - report.failed["other processes"]
    replays = (
        f"{exact} of {report.replayed}"
        if report.replayed
        else "it is not deterministic"
        if "replay" in report.skipped
        else "none"
    )
    return [
        name,
        f"BROKEN: {broken}" if broken else "kept",
        replays,
        report.rollback_method,
        *(_cost(report, tau) for tau in TAUS),
        _number(report.milliseconds.get("reset")),
        _number(report.milliseconds.get("step")),
        "" if report.memory is None else f"{report.memory / (1 << 20):.0f}",
        str(report.longest_observation),
    ]


def _cost(report: Report, tau: int) -> str:
    replay, restore = report.rollback.get(tau, (None, None))
    return _number(replay) if restore is None else f"{_number(replay)} / {_number(restore)}"


def _number(value: float | None) -> str:
    """Three digits are enough for medians on a shared machine."""
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
