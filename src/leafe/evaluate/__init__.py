"""Plain sampling of a policy, counted; Pass@k without bias; intervals over tasks and seeds; the comparison as plain values."""

from leafe.evaluate._coverage import CoverageCurve, coverage, coverage_curve, spent
from leafe.evaluate._intervals import Estimate, bootstrap, hierarchical_bootstrap, paired_difference, paired_values, pass_estimate, wilson
from leafe.evaluate._measures import Measures, generated_tokens, measure
from leafe.evaluate._passk import LOST, Counts, counts, pass_at_k
from leafe.evaluate._probe import Probe, probe
from leafe.evaluate._run import EvaluateProgress, evaluate
from leafe.evaluate._summary import Evaluated, Explored, Summary, summarise

__all__ = [
    "LOST", "Counts", "CoverageCurve", "Estimate", "EvaluateProgress", "Evaluated", "Explored", "Measures", "Probe", "Summary", "bootstrap", "counts",
    "coverage", "coverage_curve", "evaluate", "generated_tokens", "hierarchical_bootstrap", "measure", "paired_difference", "paired_values", "pass_at_k",
    "pass_estimate", "probe", "spent", "summarise", "wilson",
]
