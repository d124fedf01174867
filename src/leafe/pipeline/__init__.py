"""The part that knows all stages: a recipe becomes a run folder, stage by stage, resumable.

    from leafe.pipeline import run_recipe
    from leafe.recipes import load_recipe
    run = run_recipe(load_recipe("demo"), Path("runs/demo"))

It may import every part below `cli`, `view` and `data`; no part below knows it. Inside, imports go
one way: policy references, plan, results, weights, what stages act with, the stages themselves,
their order, the summary and the report.
"""

from leafe.pipeline._plan import (
    KINDS,
    Stage,
    StageKind,
    Variant,
    env_options,
    plan,
    stage_name,
    task_count,
    variants,
)
from leafe.pipeline._policy_ref import PolicyRef
from leafe.pipeline._report import print_kind, report_run, report_runs
from leafe.pipeline._result import Outcome, StageResult, result_of
from leafe.pipeline._run import StageCrashed, Watcher, config_of, run_recipe, waiting_stages
from leafe.pipeline._shards import Shard, merge
from leafe.pipeline._summarise import compare_runs, recipe_of, summarise_run, summarise_runs
from leafe.pipeline._weights import checkpoint_of

__all__ = [
    "KINDS",
    "Outcome",
    "PolicyRef",
    "Variant",
    "Shard",
    "Stage",
    "StageCrashed",
    "StageKind",
    "StageResult",
    "Watcher",
    "checkpoint_of",
    "compare_runs",
    "config_of",
    "variants",
    "merge",
    "plan",
    "print_kind",
    "recipe_of",
    "report_run",
    "result_of",
    "report_runs",
    "run_recipe",
    "stage_name",
    "summarise_run",
    "summarise_runs",
    "task_count",
    "waiting_stages",
    "env_options",
]
