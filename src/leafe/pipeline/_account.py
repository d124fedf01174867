"""What the report shows beside the rates: arms, costs and failures of stages, and starts.

All of it is read from the recipe, the markers and the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from leafe.evaluate import spent
from leafe.pipeline._plan import Stage
from leafe.pipeline._progress import went_wrong
from leafe.pipeline._result import result_of
from leafe.recipes import EXPLORES, Recipe
from leafe.runs import RunFolder, StoredTrees

COSTS = ("policy_calls", "env_steps", "prompt_tokens", "cached_tokens", "generated_tokens")

_PRESETS = {
    "rft": "fine-tuning on the successes of its exploration (rejection sampling)",
    "rehearsal": "fine-tuning on the successes of its exploration",
    "paper": (
        "LEAFE as in the paper: revised actions without their experience, and rehearsal of "
        "successes"
    ),
    "leafe+": (
        "LEAFE+: branches that improved, rehearsal of all progress, anchors against forgetting"
    ),
    "dpo": "preferences: the revised action over the first one",
    "cf": "revised actions without their experience alone",
    "grpo": "reinforcement learning on the outcome (GRPO)",
    "early-experience": "Early Experience: next observations first, then the successes",
    "self-reflection": "Early Experience: explanations of why the successes' actions are better",
    "ace": "a playbook in the prompt (ACE), no weights change",
}


def arm_rows(recipe: Recipe) -> list[dict[str, str]]:
    """Every row of the comparison: what it is, whose trees it learns from, what it starts from, and
    its own settings."""
    rows = [
        {
            "arm": "base",
            "what": f"the policy before training ({recipe.policy.model})",
            "learns": "",
            "start": "",
            "settings": "",
        }
    ]
    for name, arm in recipe.arms.items():
        explored = f"{arm.explored} by {arm.explorer}" if arm.explorer != "base" else arm.explored
        # a method that acts for itself has no exploration, whatever the field's default says
        learns = explored if arm.method in EXPLORES else "its own episodes"
        rounds = recipe.rounds_of(name).number
        own = [f"rounds = {rounds}"] if rounds > 1 else []
        own += [
            f"{key} = {value}"
            for table in (arm.distill, arm.grpo, arm.early, arm.ace, arm.sweep)
            for key, value in table.items()
        ]
        rows.append(
            {
                "arm": name,
                "what": _PRESETS.get(arm.preset, arm.preset),
                "learns": learns,
                "start": arm.start,
                "settings": ", ".join(own),
            }
        )
    for name, extra in recipe.evaluate.extras.items():
        heat = "" if extra.temperature is None else f"temperature = {extra.temperature:g}"
        what = (
            "ceiling: a reference that knows more"
            if extra.role == "ceiling"
            else "control: the same policy sampled otherwise"
        )
        rows.append(
            {"arm": name, "what": what, "learns": "", "start": extra.policy, "settings": heat}
        )
    for name, tries in recipe.evaluate.tries.items():
        how = f"attempts = {tries.attempts}, samples = {tries.samples}"
        rows.append(
            {
                "arm": name,
                "what": f"several attempts at a test task ({tries.method})",
                "learns": "",
                "start": tries.policy,
                "settings": how,
            }
        )
    for name, control in recipe.controls.items():
        options = ", ".join(f"{key} = {value}" for key, value in control.options.items())
        what = "control: the same experiment in another setting of the environment"
        rows.append(
            {"arm": f"{name}: …", "what": what, "learns": "", "start": "", "settings": options}
        )
    return rows


def stage_rows(
    places: Sequence[tuple[str, RunFolder, Stage]], computed: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The cost and the failures of each row of a kind of stage, over all seeds and runs.

    Args:
        places: (prefix of its row's name, run, stage), unfinished ones included.
        computed: By row, the cost of its samples, so that the largest journals are not read twice.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for prefix, run, stage in places:
        result = result_of(run, stage.name)
        if result is None or stage.kind == "choose" or not result.has_row:
            continue
        done = result.marker
        key = (str(stage.kind), prefix + stage.row)
        row = rows.get(key)
        if row is None:
            nothing = dict.fromkeys(("seconds", "trained_tokens", *COSTS), 0)
            row = rows[key] = {
                "kind": key[0],
                "row": key[1],
                "runs": 0,
                **nothing,
                "waits": {},
                "failures": {},
            }
            if (
                stage.kind == "evaluate" and result.chosen is None
            ):  # a chosen round's samples are those of its own row
                _add(row, {name: computed.get(key[1], {}).get(name, 0) for name in COSTS})
        row["runs"] += 1
        row["seconds"] = round(row["seconds"] + float(done.get("seconds", 0.0)), 2)
        row["trained_tokens"] += int((done.get("train") or {}).get("tokens") or 0)
        if stage.kind != "evaluate":
            _add(row, _spent(run, stage, done))
        _add(row["waits"], done.get("waits") or {})
        _add(row["failures"], _failures(done))
    return list(rows.values())


def _spent(run: RunFolder, stage: Stage, done: Mapping[str, Any]) -> dict[str, Any]:
    """From the marker; else, where the stage has a journal, from its trees."""
    cost = done.get("spent") or (done.get("train") or {}).get("spent")
    if cost is None and (run.path / stage.name / "tasks.jsonl").is_file():
        total: dict[str, Any] = {}
        for tree in StoredTrees(run.path / stage.name).values():
            _add(total, asdict(spent([tree])))
        cost = total
    return {name: (cost or {}).get(name, 0) for name in COSTS}


def _failures(done: Mapping[str, Any]) -> dict[str, int]:
    """Failures by kind, other than the ends of episodes."""
    named = {
        "unusable reflections": done.get("unusable_reflections"),
        "tasks given up": done.get("given_up"),
        "environments that failed": done.get("env_failures"),
        "servers that died": done.get("server_restarts"),
        "actors lost": (done.get("ray") or {}).get("lost_actors"),
    }
    policy = {
        f"endpoint: {name}": number
        for name, number in went_wrong(done.get("policy_failures") or {}).items()
    }
    unusable = {
        f"unusable: {name}": number for name, number in (done.get("unusable") or {}).items()
    }
    return {name: int(number) for name, number in (named | policy | unusable).items() if number}


def start_rows(runs: Sequence[tuple[str, RunFolder]]) -> list[dict[str, Any]]:
    """Every start of every run: time, commit, machine, and versions that changed since the first
    start."""
    out = []
    for label, run in runs:
        starts = run.manifest.get("starts") or []
        for start in starts:
            first, versions = starts[0].get("versions") or {}, start.get("versions") or {}
            machine, git = start.get("machine") or {}, start.get("git") or {}
            differ = [
                name for name in {**first, **versions} if first.get(name) != versions.get(name)
            ]
            changed = [
                f"{name} {first.get(name, 'absent')} → {versions.get(name, 'absent')}"
                for name in differ
            ]
            out.append(
                {
                    "run": label,
                    "time": str(start.get("time", "")),
                    "commit": str(git.get("commit", ""))[:12]
                    + (" (changed)" if git.get("changed") else ""),
                    "machine": str(machine.get("system", "")),
                    "cpus": machine.get("cpus"),
                    "changed": ", ".join(changed),
                }
            )
    return out


def _add(total: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, 0) + amount
