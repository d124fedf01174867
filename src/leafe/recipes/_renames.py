"""Recipe keys that have other names since 0.2.

A recipe that uses an old key is refused with a sentence that names the new one. The settings that a
run of 0.1 keeps are read with the new names.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from leafe.core import UserError

_LORA = {
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "targets": "target_modules",
}
_TRAINING = {
    "steps": "max_steps",
    "warmup": "warmup_steps",
    "clip": "max_grad_norm",
    "tasks_batch": "tasks_per_batch",
    "eval_every": "eval_steps",
    "checkpoint_every": "save_steps",
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
_ACE = {"most": "max_items"}
_REWARDS = {"world": "env"}
"""Values of `reward` in GRPO."""


def _under(path: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{path}.{old}": f"{path}.{new}" for old, new in names.items()}


RENAMED: Mapping[str, str] = {
    "world": "env",
    **_under("explore", _EXPLORE),
    **_under("arms.*.distill", _DISTILL),
    **_under("arms.*.distill.lora", _LORA),
    **_under("arms.*.grpo", _GRPO),
    **_under("arms.*.grpo.lora", _LORA),
    **_under("arms.*.ace", _ACE),
    "arms.*.early.world": "arms.*.early.world_model",
    **_under("arms.*.early.world_model", _DISTILL),
    **_under("arms.*.early.world_model.lora", _LORA),
    **_under("arms.*.sweep", _DISTILL),
}
"""Every old key and its new one; `*` is any name. An arm with the preset `grpo` sweeps under the
names of `arms.*.grpo` instead, one with `ace` under those of `arms.*.ace`."""

REMOVED = "hedge"
"""The option of `policy.options` that is gone since 0.2."""
_SWEPT = {"grpo": _GRPO, "ace": _ACE}
"""Old names that a sweep may hold, by the arm's preset."""


def refuse_old_names(data: Mapping[str, Any], what: str) -> None:
    """Refuse a recipe that uses an old name.

    Args:
        data: The recipe as plain data.
        what: Names the recipe in the error.

    Raises:
        UserError: It uses one; the sentence has the new name.
    """
    if REMOVED in _policy_options(data):
        raise UserError(f"{what}: policy.options.{REMOVED} was removed in leafe 0.2: take it out.")
    for path, table, names in _tables(data):
        for old, new in names.items():
            if old in table:
                was, now = ".".join((*path, old)), ".".join((*path, new))
                raise UserError(f"{what}: {was} is called {now} since leafe 0.2: rename it.")
        for value in _rewards(table, names):
            if value in _REWARDS:
                raise UserError(
                    f'{what}: {".".join(path)}.reward = "{value}" is called "{_REWARDS[value]}" '
                    "since leafe 0.2: rename it."
                )


def modernise(data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of an earlier run's settings in which every old name is the new one."""
    out: dict[str, Any] = copy.deepcopy(dict(data))
    _policy_options(out).pop(REMOVED, None)
    for _, table, names in _tables(out):
        for old in names.keys() & table.keys():
            table[names[old]] = table.pop(old)
        reward = table.get("reward")
        if list(_rewards(table, names)):
            table["reward"] = (
                [_REWARDS.get(value, value) for value in reward]
                if isinstance(reward, list)
                else _REWARDS.get(reward, reward)
            )
    return out


def _policy_options(data: Mapping[str, Any]) -> dict[str, Any]:
    policy = data.get("policy")
    options = policy.get("options") if isinstance(policy, Mapping) else None
    return options if isinstance(options, dict) else {}


def _rewards(table: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """The values of `reward` in a table of GRPO's, or in its sweep."""
    reward = table.get("reward") if names is _GRPO else None
    values = reward if isinstance(reward, list) else [reward]
    return [value for value in values if isinstance(value, str)]


def _tables(data: Any) -> Iterator[tuple[tuple[str, ...], Any, Mapping[str, str]]]:
    """(path, table, old to new names) of every table with renamed keys, outer tables first."""

    def at(table: Any, *path: str) -> Iterator[Any]:
        for key in path:
            table = table.get(key) if isinstance(table, Mapping) else None
        if isinstance(table, Mapping):
            yield table

    for table in at(data):
        yield (), table, {"world": "env"}
    for table in at(data, "explore"):
        yield ("explore",), table, _EXPLORE
    for arms in at(data, "arms"):
        for name, arm in arms.items():
            yield from _tables_of_arm(name, arm, at)


def _tables_of_arm(
    name: str, arm: Any, at: Any
) -> Iterator[tuple[tuple[str, ...], Any, Mapping[str, str]]]:
    here = ("arms", name)
    for table in at(arm, "early"):
        yield (*here, "early"), table, {"world": "world_model"}
    phases: tuple[tuple[tuple[str, ...], Mapping[str, str]], ...] = (
        (("distill",), _DISTILL),
        (("grpo",), _GRPO),
        (("ace",), _ACE),
        (("early", "world_model"), _DISTILL),
    )
    for path, names in phases:
        for table in at(arm, *path):
            yield (*here, *path), table, names
        for table in at(arm, *path, "lora"):
            yield (*here, *path, "lora"), table, _LORA
    for table in at(arm, "sweep"):
        yield (*here, "sweep"), table, _SWEPT.get(arm.get("preset"), _DISTILL)
        settings = table.get("lora")
        for setting in settings if isinstance(settings, list) else ():
            for lora in at(setting):
                yield (*here, "sweep", "lora"), lora, _LORA
