"""The alarms of the collapse detectors, in sentences with the rule and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leafe.report._format import percent

_SHARES = {0.5: "half", 0.75: "three quarters"}

_SENTENCES = {
    "entropy": (
        "its sampling has narrowed",
        "the entropy of its actions is {value} nats a token",
        "{base}",
    ),
    "distinct": (
        "it samples the same episodes again and again",
        "{value} % of a task's samples are distinct episodes",
        "{base} %",
    ),
    "following": (
        "it has unlearned to follow an experience",
        "it gives the action that one asks for a probability of {value} %",
        "{base} %",
    ),
    "reflection": (
        "it has unlearned to reflect",
        "{value} % of its reflections can be used",
        "{base} %",
    ),
    "same_step": (
        "it no longer finds the mistake",
        "{value} % of its reflections blame the step whose revision had helped",
        "{base} %",
    ),
}
"""By figure: what the alarm means, the policy's figure, the base's."""


def alarms(summary: Mapping[str, Any]) -> list[str]:
    """One sentence for each alarm of the summary.

    Args:
        summary: What `Summary.to_json` returns.
    """
    return [_sentence(found) for found in (summary.get("details") or {}).get("collapse", [])]


def _sentence(found: Mapping[str, Any]) -> str:
    figure, share = found["figure"], found["share"]
    means, does, before = _SENTENCES[figure]
    show = (lambda v: f"{v:.3f}") if figure == "entropy" else percent
    under = (
        f"under {_SHARES.get(share, percent(share) + ' %')} of the base policy's "
        f"{before.format(base=show(found['base']))}"
    )
    return f"{found['arm']}: {means}: {does.format(value=show(found['value']))}, {under}."
