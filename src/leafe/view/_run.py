"""What the viewer reads of a run beside its journals: the recipe and its stages, the prompts, the
tokenizer.

Trees are shown without any of it. What is not available (a recipe of another version, an
environment that is not installed here, weights on another machine) is a sentence on the pages that
would have shown it. What takes seconds (an environment's start, a tokenizer) is done in the
background.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from leafe.core import ChatTokens, LeafeError, UserError
from leafe.distill import DistillConfig
from leafe.envs import make_env
from leafe.pipeline import Stage, env_options, plan, recipe_of
from leafe.prompts import Prompts, load_prompt_set
from leafe.recipes import Recipe
from leafe.runs import RunFolder

T = TypeVar("T")
_WAIT_S = 0.3
"""How long a page waits for the background."""
_LIVE_S = 90.0
"""An unfinished stage counts as running where a file of it was written in the last seconds."""


@dataclass(frozen=True, slots=True)
class Available(Generic[T]):
    """A value, or None with a sentence on why there is none."""

    value: T | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Arm:
    """A training that learns from the trees of a stage: its row and stage, options and seed."""

    name: str
    stage: str
    config: DistillConfig
    seed: int


class Run:
    """A run folder as it is now.

    Args:
        path: The folder.
        notify: Called when the background has finished something.

    Raises:
        UserError: The folder is no run, or one of another format.
    """

    def __init__(self, path: Path, notify: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self._notify = notify
        self.folder = RunFolder.read(path)
        self._read_at = self._stamp()
        self._workers = ThreadPoolExecutor(2, "facts")
        self._helps: dict[str, Future[Available[str]]] = {}
        self._chat: Future[Available[ChatTokens]] | None = None
        self._mutex = threading.Lock()

    def fresh(self) -> Run:
        """This object, or another where the settings have changed (an arm was added, the run was
        started over)."""
        with contextlib.suppress(OSError, UserError):
            if self._stamp() != self._read_at:
                return Run(self.path, self._notify)
        return self

    def _stamp(self) -> tuple[int, int]:
        config, manifest = self.path / "config.toml", self.path / "manifest.json"
        return config.stat().st_mtime_ns, manifest.stat().st_mtime_ns

    @property
    def name(self) -> str:
        return str(self.folder.config.get("name") or self.path.resolve().name)

    @cached_property
    def recipe(self) -> Available[Recipe]:
        try:
            return Available(recipe_of(self.folder))
        except UserError as error:
            return Available(
                None,
                f"The settings of this run are not those of this leafe ({error}), so that prompts "
                "and training data cannot be shown.",
            )

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """The planned stages by folder; none where the recipe cannot be read."""
        return {stage.name: stage for stage in plan(self.recipe.value)} if self.recipe.value else {}

    def state(self, stage: str) -> str:
        """`finished`, `running` or `not finished`."""
        if (self.path / stage / "done.json").is_file():
            return "finished"
        try:
            written = max(file.stat().st_mtime for file in (self.path / stage).iterdir())
        except (OSError, ValueError):
            return "not finished"
        return "running" if time.time() - written < _LIVE_S else "not finished"

    def marker(self, stage: str) -> dict[str, Any]:
        try:
            found = json.loads((self.path / stage / "done.json").read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
        except (OSError, ValueError):
            return {}

    def begun(self) -> set[str]:
        """The stages whose tasks are on disk."""
        return {"/".join(path.parts[-3:-1]) for path in self.path.glob("[!.]*/[!.]*/tasks.jsonl")}

    def figures(self, stage: str) -> dict[str, int]:
        """The counts in the marker of a finished stage, by the index's names."""
        done = self.marker(stage)
        out: dict[str, object] = {name: done.get(name) for name in ("tasks", "solved", "rescued")}
        if isinstance(stops := done.get("stops"), dict):
            numbers = {stop: number for stop, number in stops.items() if isinstance(number, int)}
            out |= {
                "episodes": sum(numbers.values()),
                "diverged": numbers.get("diverged", 0),
                "unusable": done.get("unusable_reflections"),
                "errors": numbers.get("env_error", 0) + numbers.get("policy_error", 0),
            }
        return {name: value for name, value in out.items() if isinstance(value, int)}

    def arms(self, stage: str) -> list[Arm]:
        """The trainings that learn from the stage's trees."""
        return [
            Arm(each.row, each.name, config.model_copy(update={"seed": seed}), seed)
            for each in self.stages.values()
            if each.kind == "distill" and each.attempt and stage in each.attempt.explored
            for config, seed in [(each.attempt.config, each.variant.seed)]
            if isinstance(config, DistillConfig)
        ]

    def prompts(self, stage: str, wait: float = _WAIT_S) -> Available[Prompts]:
        """The run's prompts as that stage used them; the page waits `wait` seconds for them."""
        recipe, known = self.recipe.value, self.stages.get(stage)
        if recipe is None:
            return Available(None, self.recipe.why)
        if known is None:
            why = f"The recipe has no stage {stage}, so that its prompts are not known."
            return Available(None, why)
        try:
            prompt_set = load_prompt_set(recipe.prompts)
        except (UserError, OSError) as error:
            return Available(None, f"The prompts cannot be put together: {error}")
        actions = self._actions_help(recipe, known, wait)
        if actions.value is None:
            return Available(None, actions.why)
        prompts = Prompts(prompt_set, actions.value, recipe.history)
        if known.kind == "explore" and known.strategy == "reflexion":
            prompts = prompts.with_texts(preamble=prompt_set.advice)
        return Available(prompts)

    def _actions_help(self, recipe: Recipe, stage: Stage, wait: float) -> Available[str]:
        """The environment's `actions_help`."""
        options = env_options(recipe, stage.variant)
        key = json.dumps([recipe.env.name, options], sort_keys=True, default=str)
        with self._mutex:
            future = self._helps.get(key)
            if future is None:
                future = self._helps[key] = self._workers.submit(
                    _actions_help, recipe.env.name, options, self.path
                )
                future.add_done_callback(lambda _: self._notify())
        meanwhile = (
            f"The environment {recipe.env.name!r} is being asked for its part of the prompt: look "
            "again in a moment."
        )
        return waited(future, meanwhile, wait)

    def chat(self, wait: float = _WAIT_S) -> Available[ChatTokens]:
        """The tokenizer of the run's model with its chat template, from a folder on this machine;
        nothing is fetched."""
        with self._mutex:
            if self._chat is None:
                self._chat = self._workers.submit(lambda: _chat(self._model_folders()))
                self._chat.add_done_callback(lambda _: self._notify())
        return waited(self._chat, "The tokenizer is being loaded: look again in a moment.", wait)

    def _model_folders(self) -> Iterator[Path]:
        """Folders that may hold the run's tokenizer."""
        model = self.recipe.value.policy.model if self.recipe.value else ""
        if model == "embedded":
            from leafe.embedded import base_path

            yield base_path()
        elif model:
            yield Path(model).expanduser()
        yield from sorted(self.path.glob("distill/*/checkpoint"))

    def warm(self) -> None:
        """Start in the background what pages will need and what takes seconds."""
        explored = [stage.name for stage in self.stages.values() if stage.kind == "explore"]
        with contextlib.suppress(RuntimeError):  # closed at once: the pool takes no more work
            self.chat(0.0)
            for stage in explored[:1]:
                self.prompts(stage, 0.0)

    def close(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)


def waited(future: Future[Available[T]], meanwhile: str, wait: float = _WAIT_S) -> Available[T]:
    """The result, where it is there within `wait` seconds; else the sentence `meanwhile`."""
    try:
        return future.result(wait)
    except NotYet:
        return Available(None, meanwhile)


def _actions_help(name: str, options: dict[str, Any], run: Path) -> Available[str]:
    module = name.partition(":")[0].partition(".")[0]
    if ":" in name and _lies_in(module, run):
        return Available(
            None,
            f"The environment {name!r} lies in the run's own folder: the viewer does not run its "
            "code, so the prompts are not shown.",
        )
    try:
        env = make_env(name, **options)
        try:
            return Available(str(env.actions_help))
        finally:
            with contextlib.suppress(Exception):  # it is thrown away
                env.close()
    except Exception as error:  # foreign code: the tree is shown whatever it raises
        what = str(error) if isinstance(error, LeafeError) else f"{type(error).__name__}: {error}"
        return Available(
            None, f"The prompts cannot be put together without the environment {name!r}: {what}"
        )


def _lies_in(module: str, run: Path) -> bool:
    """Whether importing the module would run code in the run's folder, which may be somebody
    else's."""
    found = [
        path
        for place in [*sys.path, "."]
        for path in (Path(place or ".") / f"{module}.py", Path(place or ".") / module)
        if path.exists()
    ]
    with contextlib.suppress(ImportError, ValueError):
        if (spec := importlib.util.find_spec(module)) and spec.origin:
            found.append(Path(spec.origin))
    return any(path.resolve().is_relative_to(run.resolve()) for path in found)


def _chat(folders: Iterator[Path]) -> Available[ChatTokens]:
    why = "No folder with this run's model is on this machine: token texts are not shown."
    try:
        for folder in folders:
            if (folder / "tokenizer_config.json").is_file():
                from leafe.policies.hf.loading import load_tokenizer

                return Available(ChatTokens(load_tokenizer(folder), str(folder)))
    except LeafeError as error:
        why = f"Token texts are not shown: {error}"
    return Available(None, why)
