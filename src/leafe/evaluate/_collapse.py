"""Signs that a training has cost a policy what Pass@k does not show yet: its samples are ever the
same, or it no longer learns from its mistakes.

Each detector is a figure beside Pass@k and the least share of the base policy's figure that is no
alarm. In the project's prototype (docs/results.md) a policy that could explore another round kept
97 % of the base's following and 94 % of its reflections, and policies that explored worse
afterwards 22 to 36 % and 20 to 31 %: three quarters separate the two. Distillation makes a policy
more certain, so its entropy falls without harm; half of the base's entropy, and half of its
distinct episodes, are below every sound arm that was measured here (the lowest had 85 %).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Detector:
    """Raises an alarm where `figure` is below `share` of the base policy's."""

    figure: str
    share: float
    sampling: bool
    """Whether it is a figure of the samples, which is comparable only between rows of one
    temperature and one number of samples."""


DETECTORS = (
    Detector("entropy", 0.5, sampling=True),
    Detector("distinct", 0.5, sampling=True),
    Detector("following", 0.75, sampling=False),
    Detector("reflection", 0.75, sampling=False),
    Detector("same_step", 0.75, sampling=False),
)
"""All detectors."""


def collapses(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The alarms, in the order of the rows. Without a base there are none.

    Args:
        rows: arm, role, temperature, samples and the figures (None or missing where there is none).
            Only the role `arm` is checked: controls have other tasks than the base.

    Returns:
        For each alarm arm, figure, value, the base's value, and the share below which it is one.
    """
    base = next((row for row in rows if row["role"] == "base"), None)
    if base is None:
        return []
    out = []
    for row in rows:
        if row["role"] != "arm":
            continue
        alike = (row["temperature"], row["samples"]) == (base["temperature"], base["samples"])
        for detector in DETECTORS:
            if detector.sampling and not alike:
                continue
            value, before = row.get(detector.figure), base.get(detector.figure)
            if value is not None and before is not None and value < detector.share * before:
                out.append(
                    {
                        "arm": row["arm"],
                        "figure": detector.figure,
                        "value": value,
                        "base": before,
                        "share": detector.share,
                    }
                )
    return out
