"""What the viewer knows of a run beside its journals: the recipe and its stages, the prompts in the
run's own words, a tokenizer where one is at hand.

Nothing here is needed to look at trees. Whatever cannot be had (a recipe of another version, an
environment that is not installed here, weights on another machine)
is a sentence on the pages that would have shown it. What takes seconds (an environment's start, a
tokenizer) is done in the background.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Callable
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
"""How long a page waits for what is done in the background."""
_LIVE_S = 90.0
"""A stage that is not finished counts as going on where its files were written to so lately."""


@dataclass(frozen=True, slots=True)
class Had(Generic[T]):
    """Something that may not be to be had: then `value` is None and `why` a sentence."""

    value: T | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Arm:
    """A training that learns from the trees of a stage."""

    name: str
    stage: str
    config: DistillConfig
    seed: int


class Run:
    """A run folder as it is now. UserError where it is none, or one of another version."""

    def __init__(self, path: Path, told: Callable[[], None] = lambda: None) -> None:
        """`told` is called when something that was done in the background is there."""
        self.path = path
        self._told = told
        self.folder = RunFolder.read(path)
        self._read_at = self._stamp()
        self._workers = ThreadPoolExecutor(2, "facts")
        self._closed = False
        self._helps: dict[str, Future[Had[str]]] = {}
        self._chat: Future[Had[ChatTokens]] | None = None
        self._mutex = threading.Lock()

    def fresh(self) -> Run:
        """This run, or the run as it is since its settings were changed (an arm was added, it was
        started over)."""
        with contextlib.suppress(OSError, UserError):
            if self._stamp() != self._read_at:
                return Run(self.path, self._told)
        return self

    def _stamp(self) -> tuple[int, int]:
        return (self.path / "config.toml").stat().st_mtime_ns, (
            self.path / "manifest.json"
        ).stat().st_mtime_ns

    @property
    def name(self) -> str:
        return str(self.folder.config.get("name") or self.path.resolve().name)

    @cached_property
    def recipe(self) -> Had[Recipe]:
        try:
            return Had(recipe_of(self.folder))
        except UserError as error:
            return Had(
                None,
                (
                    f"The settings of this run are not those of this leafe ({error}), so that "
                    "prompts and training data cannot be shown."
                ),
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
        """What the marker of a finished stage says of its trees, by the index's names."""
        done = self.marker(stage)
        out: dict[str, object] = {name: done.get(name) for name in ("tasks", "solved", "rescued")}
        stops = done.get("stops")
        if isinstance(stops, dict):
            numbers = {
                str(stop): number for stop, number in stops.items() if isinstance(number, int)
            }
            out |= {
                "episodes": sum(numbers.values()),
                "diverged": numbers.get("diverged", 0),
                "unusable": done.get("unusable_reflections"),
            }
            out["errors"] = sum(numbers.get(stop, 0) for stop in ("env_error", "policy_error"))
        return {name: value for name, value in out.items() if isinstance(value, int)}

    def arms(self, stage: str) -> list[Arm]:
        """The trainings that learn from the stage's trees."""
        out = []
        for each in self.stages.values():
            if (
                each.kind == "distill"
                and each.attempt is not None
                and stage in each.attempt.explored
                and isinstance(each.attempt.config, DistillConfig)
            ):
                config = each.attempt.config.model_copy(update={"seed": each.variant.seed})
                out.append(Arm(each.row, each.name, config, each.variant.seed))
        return out

    def prompts(self, stage: str, wait: float = _WAIT_S) -> Had[Prompts]:
        """The run's prompts as that stage used them."""
        recipe, known = self.recipe.value, self.stages.get(stage)
        if recipe is None:
            return Had(None, self.recipe.why)
        if known is None:
            return Had(
                None, f"The recipe names no stage {stage}, so that its prompts are not known."
            )
        try:
            prompt_set = load_prompt_set(recipe.prompts)
        except (UserError, OSError) as error:
            return Had(None, f"The prompts cannot be put together: {error}")
        told = self._help(recipe, known, wait)
        if told.value is None:
            return Had(None, told.why)
        prompts = Prompts(prompt_set, told.value, recipe.history)
        if known.kind == "explore" and known.strategy == "reflexion":
            prompts = prompts.saying(preamble=prompt_set.advice)
        return Had(prompts)

    def _help(self, recipe: Recipe, stage: Stage, wait: float) -> Had[str]:
        """What the environment says of its actions."""
        options = env_options(recipe, stage.variant)
        key = json.dumps([recipe.env.name, options], sort_keys=True, default=str)
        with self._mutex:
            future = self._helps.get(key)
            if future is None:
                future = self._helps[key] = self._workers.submit(
                    _actions_help, recipe.env.name, options, self.path
                )
                future.add_done_callback(lambda _: self._told())
        return waited(
            future,
            (
                f"The environment {recipe.env.name!r} is being asked for its part of the "
                "prompt: look again in a moment."
            ),
            wait,
        )

    def chat(self, wait: float = _WAIT_S) -> Had[ChatTokens]:
        """The tokenizer of the run's model with its chat template, from a folder on this machine;
        nothing is fetched."""
        with self._mutex:
            if self._chat is None:
                self._chat = self._workers.submit(_chat, self._model_folders())
                self._chat.add_done_callback(lambda _: self._told())
        return waited(self._chat, "The tokenizer is being loaded: look again in a moment.", wait)

    def _model_folders(self) -> Callable[[], list[Path]]:
        def found() -> list[Path]:
            model = self.recipe.value.policy.model if self.recipe.value else ""
            folders = []
            if model == "embedded":
                from leafe.embedded import base_path

                folders.append(base_path())
            elif model and Path(model).expanduser().is_dir():
                folders.append(Path(model).expanduser())
            return folders + sorted(self.path.glob("distill/*/checkpoint"))

        return found

    def warm(self) -> None:
        """Begin with what pages will ask for and what takes seconds."""
        try:
            self.chat(0.0)
            for stage in self.stages.values():
                if stage.kind == "explore":
                    self.prompts(stage.name, 0.0)
                    return
        except RuntimeError:
            if not self._closed:  # a viewer that is ended at once takes no more work
                raise

    def close(self) -> None:
        self._closed = True
        self._workers.shutdown(wait=False, cancel_futures=True)


def waited(future: Future[Had[T]], meanwhile: str, wait: float = _WAIT_S) -> Had[T]:
    """The result, if it is there within so many seconds."""
    try:
        return future.result(wait)
    except NotYet:
        return Had(None, meanwhile)


def _actions_help(name: str, options: dict[str, Any], run: Path) -> Had[str]:
    module = name.partition(":")[0].partition(".")[0]
    if ":" in name and _lies_in(module, run):
        return Had(
            None,
            (
                f"The environment {name!r} lies in the run's own folder: its code is not run "
                "by the viewer, and so the prompts are not shown."
            ),
        )
    try:
        env = make_env(name, **options)
        try:
            return Had(str(env.actions_help))
        finally:
            with contextlib.suppress(Exception):  # it is thrown away
                env.close()
    # an environment is foreign code, and whatever it says is no reason not to show the tree
    except Exception as error:
        said = str(error) if isinstance(error, LeafeError) else f"{type(error).__name__}: {error}"
        return Had(
            None, f"The prompts cannot be put together without the environment {name!r}: {said}"
        )


def _lies_in(module: str, run: Path) -> bool:
    """Whether importing the module would run code out of the run's folder, which may come from
    somebody else."""
    for place in [*sys.path, "."]:
        for found in (Path(place or ".") / f"{module}.py", Path(place or ".") / module):
            if found.exists() and found.resolve().is_relative_to(run.resolve()):
                return True
    spec = None
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(module)
    return bool(spec and spec.origin and Path(spec.origin).resolve().is_relative_to(run.resolve()))


def _chat(folders: Callable[[], list[Path]]) -> Had[ChatTokens]:
    why = "No folder with this run's model is on this machine: token texts are not shown."
    try:
        for folder in folders():
            if (folder / "tokenizer_config.json").is_file():
                from leafe.policies.hf.loading import load_tokenizer

                return Had(ChatTokens(load_tokenizer(folder), str(folder)))
    except LeafeError as error:
        why = f"Token texts are not shown: {error}"
    return Had(None, why)
