"""ScienceWorld: elementary science in text, 30 tasks in a house of ten places.

A wrong focus ends an episode; most other mistakes only cost steps. The simulator is the package's
own. This module makes replay exact and explains refusals. It departs from the package's Python
class in three ways. An unknown action is answered with the possible forms. An ambiguous request can
be followed by any action (there, whatever follows counts as a wrong choice, and time passes). The
list of all valid actions is not made at each step (there it takes most of a step's time, and draws
from the environment's random source). An episode is the list of inputs since a load: sending them
again gives the same state.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from leafe.core import EnvError, Environment, StepResult, Task, UserError
from leafe.envs._options import check_split, whole_number
from leafe.envs.scienceworld._jvm import Jvm, Thrown, installed, package_versions
from leafe.envs.scienceworld._variations import SPLITS, VARIATIONS, balanced

T = TypeVar("T")

SIMPLIFICATIONS = (
    "teleportAction",
    "openDoors",
    "openContainers",
    "selfWateringFlowerPots",
    "noElectricalAction",
)
MAX_ACTION = 300
"""Characters of an action; a longer one is refused unread."""
MAX_CHOICES = 20
"""Choices of an ambiguous request that are shown."""

_UNKNOWN = "No known action matches that input."
_AMBIGUOUS = "Ambiguous request"
_CHOICE = re.compile(r"^(\d+):\t", re.MULTILINE)
_FORMS = {
    "activate": "activate OBJ",
    "turn on": "turn on OBJ",
    "deactivate": "deactivate OBJ",
    "turn off": "turn off OBJ",
    "open": "open OBJ",
    "close": "close OBJ",
    "connect": "connect OBJ to OBJ",
    "disconnect": "disconnect OBJ",
    "dunk": "dunk OBJ into OBJ",
    "eat": "eat OBJ",
    "flush": "flush OBJ",
    "focus on": "focus on OBJ",
    "go to": "go to OBJ",
    "go": "go to OBJ",
    "look at": "look at OBJ",
    "look in": "look in OBJ",
    "examine": "examine OBJ",
    "mix": "mix OBJ",
    "move": "move OBJ to OBJ",
    "put": "put OBJ in OBJ",
    "pick up": "pick up OBJ",
    "take": "take OBJ",
    "get": "get OBJ",
    "pour": "pour OBJ into OBJ",
    "put down": "put down OBJ",
    "drop": "drop OBJ",
    "read": "read OBJ",
    "teleport to": "teleport to OBJ",
    "use": "use OBJ on OBJ",
}
"""Verb -> form. The simulator decides what is understood; these only choose the words of a
refusal."""


@dataclass(slots=True)
class _Episode:
    task: str
    variation: int
    sent: list[str] = field(default_factory=list)
    """The inputs that the simulator understood since the load: they are the state."""
    score: int = 0
    best: int = 0
    forms: str = ""
    question: str = ""
    """An ambiguous request that waits for a number, withdrawn from the simulator."""
    choices: int = 0
    done: bool = False


class ScienceWorld(Environment):
    """ScienceWorld: 30 tasks of elementary science in a text environment (boil, grow, measure,
    connect, classify, find).

    The splits are the package's: train, valid (its dev set) and test, with 3,592, 1,796 and 1,819
    variations of the 30 tasks.

    Args:
        only: Names of tasks; by default all 30.
        simplification: "easy", as agents are usually run, "" for none, or names with commas between
            (teleportAction, openDoors, openContainers, selfWateringFlowerPots,
            noElectricalAction).
        horizon: Steps.
        heap: Megabytes of memory for the JVM's objects.
    """

    name = "scienceworld"
    process: ClassVar[bool] = True
    horizon = 30
    splits = SPLITS
    needs: ClassVar[str] = "pip install 'leafe[scienceworld]' (it brings its own Java)"

    def __init__(
        self,
        only: Sequence[str] | None = None,
        simplification: str = "easy",
        horizon: int = 30,
        heap: int = 128,
    ) -> None:
        self.horizon = whole_number(self.name, "horizon", horizon)
        self.heap = whole_number(self.name, "heap", heap, least=64)
        if only is not None and (isinstance(only, str) or not only):
            raise UserError(
                f"The environment 'scienceworld' cannot have only = {only!r}: give a list "
                "of task names."
            )
        self.only = (
            sorted({_known_task(name) for name in only}) if only is not None else sorted(VARIATIONS)
        )
        self.simplification = _known_simplification(simplification)
        self.actions_help = _help(
            "teleportAction" in simplification or simplification == "easy",
            "noElectricalAction" not in simplification,
        )
        installed()
        self._jvm: Jvm | None = None
        self._episode: _Episode | None = None
        self._instructions: dict[tuple[str, int], str] = {}

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The split's variations, with equally many of each task while it has any."""
        check_split(self.name, split, SPLITS)
        chosen = list(balanced(self.only, split, seed))[:count]
        missing = [each for each in chosen if each not in self._instructions]
        if missing:
            self._ensure_jvm()
            self._instructions.update(
                zip(missing, self._checked(lambda jvm: jvm.descriptions(missing)), strict=True)
            )
            self._resend()
        return [
            Task(
                f"scienceworld-{task}-{variation}",
                self.name,
                split,
                self._instructions[task, variation],
                {"task": task, "variation": variation},
            )
            for task, variation in chosen
        ]

    def reset(self, task: Task, seed: int) -> str:
        """Start a variation, which decides everything: `seed` is not used."""
        name, variation = _known_task(task.payload.get("task")), task.payload.get("variation")
        if not isinstance(variation, int) or not 0 <= variation < VARIATIONS[name]:
            raise UserError(
                f"The task {name!r} of the environment 'scienceworld' has the variations 0 "
                f"to {VARIATIONS[name] - 1}, and no {variation!r}."
            )
        self._episode = None
        self._ensure_jvm()
        episode = _Episode(name, variation)
        observation = self._load(episode)
        episode.score = self._score()
        episode.best = max(0, episode.score)
        # without "reset task", which only undoes progress
        episode.forms = ", ".join(
            form for form in self._call("getPossibleActions") if form != "reset task"
        )
        self._episode = episode
        return observation

    def step(self, action: str) -> StepResult:
        episode = self._episode
        if episode is None:
            raise RuntimeError("step before reset")
        text = " ".join(action.encode("utf-8", "replace").decode().split())
        if episode.done:
            return self._refuse("The episode is over: nothing was done.")
        if not text:
            return self._refuse(f"There is no action in this answer. {_forms(episode)}")
        if len(text) > MAX_ACTION:
            return self._refuse(
                f"An action is one short command, and this is {len(text)} characters long. "
                f"{_forms(episode)}"
            )
        if re.fullmatch(r"[0-9]+", text):
            if not episode.question or int(text) >= episode.choices:
                what = (
                    f"the choices are 0 to {episode.choices - 1}"
                    if episode.question
                    else "there is nothing to choose from"
                )
                return self._refuse(
                    f"{_UNKNOWN} A number answers an ambiguous request, and {what}."
                )
            return self._send(episode, [episode.question, str(int(text))])
        return self._send(episode, [text])

    def valid_actions(self) -> Sequence[str]:
        """The package's list, with object names. It takes seconds and disturbs the simulator, so
        the episode is sent again afterwards."""
        if self._episode is None or self._episode.done:
            return []
        actions: list[str] = sorted(set(self._call("getValidActionObjectCombinations")))
        self._resend()
        return actions

    def gold_actions(self, task: Task) -> Sequence[str]:
        """The package's own solution of a task, for tests and references. Its search needs `heap` =
        512 on some tasks."""
        self._ensure_jvm()
        self._call(
            "load", task.payload["task"], task.payload["variation"], self.simplification, True
        )
        actions: list[str] = self._call("getGoldActionSequence")
        self._resend()
        return actions

    def versions(self) -> Mapping[str, str]:
        return package_versions()

    def close(self) -> None:
        if self._jvm is not None:
            self._jvm.close()
        self._jvm = self._episode = None

    def _send(self, episode: _Episode, inputs: Sequence[str]) -> StepResult:
        """Send one input, or an ambiguous one and its number, and return the answer."""
        text = ""
        try:
            for each in inputs:
                text = str(self._call("step", each))
        except Thrown as error:
            episode.done = True
            failure = (
                f"The simulator itself failed on this action ({str(error)[:200]}): the episode "
                "is over."
            )
            return StepResult(
                failure, done=True, progress=float(episode.best), info={"score": episode.score}
            )
        if text.strip() == _UNKNOWN:
            return self._refuse(f"{_UNKNOWN} {_hint(inputs[-1], episode)}")
        if text.startswith(_AMBIGUOUS) and self._withdraw_question():
            episode.question, episode.choices = inputs[-1], len(_CHOICE.findall(text))
            return self._answer(_question(text))
        episode.sent += inputs
        episode.question = ""
        before, episode.score = episode.score, self._score()
        episode.best = max(episode.best, episode.score)
        failed, completed = episode.score < 0, bool(self._call("getCompleted"))
        episode.done = failed or completed
        if failed:
            what = "what you focused on" if inputs[-1].lower().startswith("focus") else "this"
            text = (
                f"{text.rstrip()}\nThe task has failed: {what} is not what it asks for. The "
                "episode is over."
            )
        elif completed:
            text = f"{text.rstrip()}\nThe task is completed."
        return self._answer(text, gained=episode.score - before, success=completed and not failed)

    def _answer(self, text: str, gained: int = 0, success: bool = False) -> StepResult:
        """The reward is the points gained as a fraction of 1: the sum is the final score, -1 for a
        failed task. A reset may begin above 0."""
        episode = self._episode
        assert episode is not None
        return StepResult(
            text,
            reward=gained / 100,
            done=episode.done,
            success=success,
            progress=float(episode.best),
            info={"score": episode.score},
        )

    def _refuse(self, why: str) -> StepResult:
        episode = self._episode
        assert episode is not None
        return StepResult(
            why,
            valid=False,
            done=episode.done,
            progress=float(episode.best),
            info={"score": episode.score},
        )

    def _withdraw_question(self) -> bool:
        """Whether the simulator asks for a number. Its question is withdrawn, so that any action
        may follow."""
        asked = self._checked(Jvm.is_ambiguous)
        if asked:
            self._checked(Jvm.clear_ambiguity)
        return asked

    def _score(self) -> int:
        return round(100 * float(self._call("getScore")))

    def _load(self, episode: _Episode) -> str:
        try:
            refused = self._call(
                "load", episode.task, episode.variation, self.simplification, False
            )
            if refused:
                raise EnvError(
                    "The simulator of the environment 'scienceworld' cannot load "
                    f"{episode.task}, variation {episode.variation}: {refused}"
                )
            # as the package's reset does; some goals count it
            return str(self._call("step", "look around"))
        except Thrown as error:
            raise EnvError(
                "The simulator of the environment 'scienceworld' failed on "
                f"{episode.task}, variation {episode.variation}: {error}"
            ) from error

    def _resend(self) -> None:
        """Bring the current episode, if any, back to its state."""
        if self._episode is not None and not self._episode.done:
            self._load(self._episode)
            for each in self._episode.sent:
                self._call("step", each)

    def _ensure_jvm(self) -> None:
        """Start a JVM if none is alive; UserError if its simulator has other variations than we
        know."""
        if self._jvm is not None and self._jvm.alive:
            return
        self.close()
        jvm = Jvm(self.heap)
        found = {
            str(name): int(jvm.call("getTaskMaxVariations", name))
            for name in jvm.call("getTaskNames")
        }
        if found != VARIATIONS:
            jvm.close()
            odd = min(
                name
                for name in found.keys() | VARIATIONS
                if found.get(name) != VARIATIONS.get(name)
            )
            raise UserError(
                f"The simulator of scienceworld {package_versions()['scienceworld']} has "
                f"other tasks than leafe knows (variations of {odd}: "
                f"{found.get(odd, 0)} and not {VARIATIONS.get(odd, 0)}): run pip install "
                "'scienceworld==1.2.3'."
            )
        self._jvm = jvm

    def _call(self, method: str, *arguments: object) -> Any:
        return self._checked(lambda jvm: jvm.call(method, *arguments))

    def _checked(self, ask: Callable[[Jvm], T]) -> T:
        assert self._jvm is not None
        try:
            return ask(self._jvm)
        except Thrown:
            raise
        except EnvError:
            self._episode = None  # it died with the JVM
            raise


def _known_task(name: object) -> str:
    if isinstance(name, str) and name in VARIATIONS:
        return name
    near = difflib.get_close_matches(str(name), VARIATIONS, 1)
    raise UserError(
        f"The environment 'scienceworld' has no task {name!r}: "
        + (f"did you mean {near[0]!r}?" if near else f"it has {', '.join(VARIATIONS)}.")
    )


def _known_simplification(value: object) -> str:
    if not isinstance(value, str) or any(
        part not in SIMPLIFICATIONS for part in value.split(",") if value not in ("", "easy")
    ):
        raise UserError(
            f"The environment 'scienceworld' has no simplification {value!r}: give easy, "
            f"an empty text, or some of {', '.join(SIMPLIFICATIONS)} with commas between."
        )
    return value


def _help(teleport: bool, electricity: bool) -> str:
    places = "teleport to PLACE (any place at once), " if teleport else ""
    wires = (
        " In tasks about electricity: connect OBJ to OBJ, disconnect OBJ." if electricity else ""
    )
    return (
        "Actions, one each time: look around, inventory, task (repeats the task), go to "
        f"PLACE, {places}open OBJ, close OBJ, look at OBJ, look in OBJ, "
        "read OBJ, pick up OBJ, put down OBJ, move OBJ to OBJ, pour OBJ into OBJ, dunk OBJ "
        "into OBJ, mix OBJ, activate OBJ, deactivate OBJ, use OBJ on OBJ, "
        f"eat OBJ, flush OBJ, focus on OBJ, wait (10 steps of time), wait1 (one).{wires} "
        "OBJ is a thing that is here, by the name that is printed. "
        "Focus only on what the task asks for: a wrong focus fails the task at once."
    )


def _forms(episode: _Episode) -> str:
    return f"The actions are: {episode.forms}."


def _hint(text: str, episode: _Episode) -> str:
    """Why an input was not understood, as far as its words show."""
    lowered = text.lower()
    for verb in sorted(_FORMS, key=len, reverse=True):
        if lowered == verb:
            return f"It lacks what to do it with: {_FORMS[verb]}."
        if lowered.startswith(verb + " "):
            form = _FORMS[verb]
            if verb in ("go to", "go"):
                why = "you can only go to a place that a door here leads to"
            elif form.count("OBJ") == 2:
                why = "it takes two things that are here, by the names that are printed"
            else:
                why = f"nothing that is here is called {text[len(verb) + 1 :][:60]!r}"
            return f"The form is {form}, and {why}. To see what is here: look around."
    return _forms(episode)


def _question(text: str) -> str:
    """The simulator's question with at most `MAX_CHOICES` of its choices, adapted to what may
    follow here."""
    head, *choices = text.strip().split("\n")
    shown = choices[:MAX_CHOICES]
    more = (
        [f"... and {len(choices) - len(shown)} more: name the things more exactly."]
        if len(choices) > len(shown)
        else []
    )
    return "\n".join([head.replace("(or blank to cancel)", "(or any other action)"), *shown, *more])
