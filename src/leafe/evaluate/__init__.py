"""Plain sampling of a policy, counted; unbiased Pass@k; intervals over tasks and seeds; the
comparison as plain values.

The part samples by `explore`'s environment pools, reads trees, and computes every figure that a
report or a study shows. It knows protocols, never a concrete environment or engine, and draws
nothing.
"""

from leafe.evaluate._collapse import DETECTORS, collapses
from leafe.evaluate._contrast import Contrast, contrast, contrasts, holm
from leafe.evaluate._coverage import CoverageCurve, coverage, coverage_curve, spent
from leafe.evaluate._diversity import Diversity, diversity
from leafe.evaluate._intervals import (
    Estimate,
    mean_rate,
    paired_by_task,
    paired_difference,
    pass_estimate,
    wilson,
)
from leafe.evaluate._mean import Over
from leafe.evaluate._measures import Measures, generated_tokens, measure
from leafe.evaluate._passk import Counts, counts, pass_at_k
from leafe.evaluate._probe import Probe, mean_probe, probe
from leafe.evaluate._run import EvaluateProgress, evaluate
from leafe.evaluate._summary import Evaluated, Explored, Summary, summarise

__all__ = [
    "DETECTORS",
    "Contrast",
    "Counts",
    "CoverageCurve",
    "Estimate",
    "EvaluateProgress",
    "Evaluated",
    "Explored",
    "Measures",
    "Over",
    "Probe",
    "Diversity",
    "Summary",
    "collapses",
    "contrast",
    "contrasts",
    "counts",
    "coverage",
    "coverage_curve",
    "evaluate",
    "generated_tokens",
    "holm",
    "mean_probe",
    "mean_rate",
    "measure",
    "paired_by_task",
    "paired_difference",
    "pass_at_k",
    "pass_estimate",
    "probe",
    "spent",
    "diversity",
    "summarise",
    "wilson",
]
