"""Signs that a training has cost a policy what Pass@k does not show yet: it samples ever the same,
or it no longer learns from its mistakes.

Each detector is a figure that stands beside Pass@k and the least share of the base policy's that is
no alarm. In the project's prototype (docs/results.md) a
policy that kept what it needs for another round had 97 % of the base's following and 94 % of its
reflections, and those that explored worse afterwards 22 to
36 % and 20 to 31 %: three quarters part the two. Distillation makes a policy surer of itself, so
that its entropy falls without harm; half of the base's, and
half of its distinct episodes, are below every sound arm that was measured here (the lowest had 85
%).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Detector:
    """Alarms where `figure` is below `share` of the base policy's."""

    figure: str
    share: float
    sampling: bool
    """It is a figure of the samples, and says something only between rows of one temperature and
    one number of samples."""


DETECTORS = (
    Detector("entropy", 0.5, sampling=True),
    Detector("distinct", 0.5, sampling=True),
    Detector("following", 0.75, sampling=False),
    Detector("reflection", 0.75, sampling=False),
    Detector("same_step", 0.75, sampling=False),
)


def collapses(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The alarms, in the order of the rows: arm, figure, its value, the base's, and the share below
    which it is one. `rows`: arm, role, temperature, samples
    and the figures (null or missing where there is none). Only arms are looked at: controls have
    other tasks than the base. No base, no alarm."""
    base = next((row for row in rows if row["role"] == "base"), None)
    if base is None:
        return []
    out = []
    for row in rows:
        if row["role"] != "arm":
            continue
        alike = (row["temperature"], row["samples"]) == (base["temperature"], base["samples"])
        looked = [
            (d.figure, row.get(d.figure), base.get(d.figure), d.share)
            for d in DETECTORS
            if alike or not d.sampling
        ]
        for figure, value, before, share in looked:
            if value is not None and before is not None and value < share * before:
                out.append(
                    {
                        "arm": row["arm"],
                        "figure": figure,
                        "value": value,
                        "base": before,
                        "share": share,
                    }
                )
    return out
