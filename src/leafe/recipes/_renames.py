"""Recipe keys that have other names since 0.2: a recipe that uses an old one is told the new name,
and the settings of an earlier run are read with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leafe.core import UserError

_TRAINING = {
    "steps": "max_steps",
    "warmup": "warmup_steps",
    "clip": "max_grad_norm",
    "tasks_batch": "tasks_per_batch",
    "eval_every": "eval_steps",
    "checkpoint_every": "save_steps",
    "lora.rank": "lora.r",
    "lora.alpha": "lora.lora_alpha",
    "lora.dropout": "lora.lora_dropout",
    "lora.targets": "lora.target_modules",
}
_DISTILL = _TRAINING | {
    "epochs": "num_train_epochs",
    "schedule": "lr_scheduler_type",
    "beta": "rehearsal_weight",
    "trackers": "report_to",
    "patience": "early_stopping_patience",
    "packing": "packing_strategy",
    "micro_tokens": "micro_batch_tokens",
    "rehearsal_batch": "rehearsal_batch_size",
    "counterfactual_batch": "counterfactual_batch_size",
    "anchor_batch": "anchor_batch_size",
    "reflection_batch": "reflection_batch_size",
}
_GRPO = _TRAINING | {
    "group": "num_generations",
    "clip_ratio": "epsilon",
    "iterations": "num_iterations",
    "loss": "loss_type",
    "micro_batch": "per_device_train_batch_size",
    "invalid_limit": "max_invalid_actions",
}
_EXPLORE = {
    "depth": "max_depth",
    "width": "branches_per_reflection",
    "every": "reflect_every",
    "until": "stop_when",
    "on_failure": "reflect_on_failure",
    "memory": "max_attempts_in_prompt",
    "reflect_tries": "max_reflection_attempts",
    "reflect_temperature": "reflection_temperature",
    "invalid_limit": "max_invalid_actions",
    "error_limit": "max_errors",
}
RENAMED: Mapping[str, str] = {
    "world": "env",
    **{f"explore.{old}": f"explore.{new}" for old, new in _EXPLORE.items()},
    **{f"arms.*.distill.{old}": f"arms.*.distill.{new}" for old, new in _DISTILL.items()},
    **{f"arms.*.sweep.{old}": f"arms.*.sweep.{new}" for old, new in (_DISTILL | _GRPO).items()},
    **{f"arms.*.grpo.{old}": f"arms.*.grpo.{new}" for old, new in _GRPO.items()},
    "arms.*.ace.most": "arms.*.ace.max_items",
    "arms.*.sweep.most": "arms.*.sweep.max_items",
    "arms.*.early.world": "arms.*.early.world_model",
    **{
        f"arms.*.early.world_model.{old}": f"arms.*.early.world_model.{new}"
        for old, new in _DISTILL.items()
    },
}
"""Old path to new one; `*` is any name. Both differ in their last name only. Tables come before
what they hold."""

REMOVED = ("policy.options.hedge",)
"""Paths of options that are gone since 0.2."""


def refuse_old_names(data: Mapping[str, Any], what: str) -> None:
    """UserError with the new name where plain data of a recipe use an old one; `what` names the
    recipe."""
    for old, new in RENAMED.items():
        for parents, _ in _found(data, old):
            was, now = (
                ".".join((*parents, *path.split(".")[len(parents) :])) for path in (old, new)
            )
            raise UserError(f"{what}: {was} is called {now} since leafe 0.2: rename it.")
    for path in REMOVED:
        for parents, _ in _found(data, path):
            name = ".".join((*parents, path.rpartition(".")[2]))
            raise UserError(f"{what}: {name} was removed in leafe 0.2: take it out.")


def modernise(data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of an earlier run's settings in which every old name is the new one."""
    out: dict[str, Any] = _copy(data)
    for old, new in RENAMED.items():
        for _, table in _found(out, old):
            table[new.rpartition(".")[2]] = table.pop(old.rpartition(".")[2])
    for path in REMOVED:
        for _, table in _found(out, path):
            del table[path.rpartition(".")[2]]
    return out


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _found(data: Any, path: str) -> list[tuple[tuple[str, ...], Any]]:
    """(names of the parents, the table that holds the last name) for every place that the path
    fits."""
    *parents, last = path.split(".")
    places: list[tuple[tuple[str, ...], Any]] = [((), data)]
    for name in parents:
        places = [
            ((*names, key), table[key])
            for names, table in places
            for key in (table if name == "*" else [name])
            if isinstance(table.get(key), Mapping)
        ]
    return [(names, table) for names, table in places if last in table]
