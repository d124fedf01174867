"""History to messages, and text back to actions and reflections. History is append-only.

The prompt at h_{t+1} is the prompt at h_t, the action, and the next observation. An experience or a
reflection request comes after the last observation, never before it. So a branch shares every token
before tau with its parent (docs/method.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leafe.core import Kind, Message, Scope, Task, Tree, Turn, UserError
from leafe.prompts._answers import labelled, split_drafts
from leafe.prompts._objects import Unreadable, last_object, whole_number
from leafe.prompts._programs import program
from leafe.prompts._reflecting import shortened, tried_advice
from leafe.prompts._set import PromptSet, fill

REFLECTION_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "step": {"type": "integer", "minimum": 0},
        "experience": {"type": "string", "minLength": 1, "maxLength": 600},
    },
    "required": ["step", "experience"],
    "additionalProperties": False,
}


class UnusableReflection(ValueError):
    """The policy's reflection has no step in range or no experience; the message says which."""


@dataclass(frozen=True, slots=True)
class History:
    """h_t as the policy sees it: o_0, then the act turns, each with the observation after it."""

    task: Task
    first_observation: str
    turns: tuple[Turn, ...] = ()
    notes: Mapping[int, str] = field(default_factory=dict)
    """Experiences in the context, by the step before which they stand."""
    preamble: tuple[str, ...] = ()
    """Texts on earlier attempts, oldest first."""
    left_out: int = 0
    """How many of the oldest texts a reflection's prompt leaves out (`shortened`)."""
    tried: tuple[tuple[int, str], ...] = ()
    """(step, experience) of the advice that a reflection is shown (`tried_advice`)."""

    @property
    def step(self) -> int:
        """t: the index of the next action."""
        return len(self.turns)

    def then(self, turn: Turn) -> History:
        """h_{t+1}."""
        return History(
            self.task, self.first_observation, (*self.turns, turn), self.notes, self.preamble
        )


def history_before(tree: Tree, turn: Turn, *, with_experience: bool) -> History:
    """The history in which `turn` was sampled.

    Args:
        tree: The task's tree.
        turn: One of its turns.
        with_experience: True: exactly what stood in the prompt (notes, preamble and, of a
            reflection, what was left out and which advice was shown). False: h_tau alone, which
            Stage 2 trains on.
    """
    path = tree.path(turn.parent)
    episode = tree.episode_of(turn.id)
    root = tree.episode_of(path[0].id) if path else episode
    history = History(tree.task, root.first_observation, tuple(path))
    if not with_experience:
        return history
    notes = notes_on(tree, path)
    if turn.experience is not None:
        first = episode.acts[0] if episode.acts and episode.scope is Scope.branch else turn
        notes[first.step] = tree[turn.experience].note
    history = replace(history, notes=notes, preamble=episode.preamble)
    if turn.kind is Kind.reflect:
        tried = tried_advice(tree, path, episode.index, episode.experience) if turn.tried else ()
        history = replace(history, left_out=turn.left_out, tried=tried[-turn.tried :])
    return history


def notes_on(tree: Tree, path: Sequence[Turn]) -> dict[int, str]:
    """The experiences that stay in the context along a path, by step: those of episodes with scope
    "branch"."""
    notes: dict[int, str] = {}
    for turn in path:
        episode = tree.episode_of(turn.id)
        if (
            episode.scope is Scope.branch
            and turn.experience is not None
            and turn.id == episode.acts[0].id
        ):
            notes[turn.step] = tree[turn.experience].note
    return notes


@dataclass(slots=True)
class PromptCache:
    """The messages of one growing history, so that each of its parts is worded once. Belongs to one
    `Prompts`."""

    history: History | None = None
    """The history of `messages`, without the note on the next action."""
    messages: list[Message] = field(default_factory=list)

    def is_prefix_of(self, history: History) -> bool:
        """Whether `history` is the cached one, or continues it."""
        own = self.history
        return (
            own is not None
            and own.turns == history.turns[: own.step]
            and (own.task, own.first_observation, own.preamble)
            == (history.task, history.first_observation, history.preamble)
            and all(
                own.notes.get(step) == history.notes.get(step)
                for step in {*own.notes, *history.notes}
                if step < own.step
            )
        )


class Prompts:
    """A prompt set bound to an environment's help text.

    Args:
        prompt_set: The wording.
        actions_help: The environment's help on its actions.
        history: "full", or "window:N": the last N turns alone, as some harnesses prompt (no shared
            prefixes).
        playbook: A text that begins every first user message (of a window: every one), the same for
            all tasks.
        lessons: Texts by topic. A lesson stands like an experience at every step whose observation
            holds all words of its topic and that has no experience of its own.

    Raises:
        UserError: `history` has another form.
    """

    def __init__(
        self,
        prompt_set: PromptSet,
        actions_help: str = "",
        history: str = "full",
        playbook: str = "",
        lessons: Mapping[str, str] | None = None,
    ) -> None:
        self.set = prompt_set
        self.actions_help = actions_help
        self.history = history
        self.playbook = playbook
        self.lessons = dict(lessons or {})
        match = re.fullmatch(r"full|window:([1-9]\d*)", history)
        if match is None:
            raise UserError(
                f'history = {history!r} is neither "full" nor "window:N" with N from 1.'
            )
        self.window = int(match[1]) if match[1] else None

    def with_playbook(
        self, playbook: str = "", lessons: Mapping[str, str] | None = None
    ) -> Prompts:
        """The same with this playbook or these lessons instead of any other."""
        return Prompts(self.set, self.actions_help, self.history, playbook, lessons)

    def with_texts(self, **texts: str) -> Prompts:
        """The same with some of the set's texts replaced."""
        words = self.set.model_copy(update=texts)
        return Prompts(words, self.actions_help, self.history, self.playbook, self.lessons)

    def reflection_schema(self, steps: int) -> Mapping[str, Any] | None:
        """The JSON schema of a reflection on `steps` actions, for engines that can constrain their
        output; None if the set has its own pattern."""
        if self.set.reflection != "json":
            return None
        facts = REFLECTION_SCHEMA["properties"]
        step = {**facts["step"], "maximum": steps - 1}
        return {**REFLECTION_SCHEMA, "properties": {**facts, "step": step}}

    def act(self, history: History, cache: PromptCache | None = None) -> tuple[Message, ...]:
        """The messages to which the policy answers with action t.

        Args:
            history: h_t.
            cache: Of a shorter history; it changes no word.
        """
        return self._messages(history, "", cache)

    def reflect(self, history: History, cache: PromptCache | None = None) -> tuple[Message, ...]:
        """The messages to which the policy answers with a reflection on h_t.

        Args:
            history: h_t, with at least one action.
            cache: Of a shorter history; it changes no word.
        """
        if not history.turns:
            raise ValueError("there is no action to reflect on")
        if history.left_out:
            first, turns = shortened(
                history.first_observation, history.turns, history.left_out, self.set.left_out
            )
            history, cache = replace(history, first_observation=first, turns=turns), None
        tried = "".join(
            fill(self.set.tried, {"step": step, "experience": note}) for step, note in history.tried
        )
        request = fill(self.set.reflect, {"last": history.step - 1, "step": history.step})
        return self._messages(history, tried + request, cache)

    def with_request(self, history: History, request: str) -> tuple[Message, ...]:
        """The messages of a history with a request of another kind after its last observation."""
        return self._messages(history, request, None)

    def shows_experience(self, history: History, step: int) -> bool:
        """Whether an experience put before action `step` stands in the messages of `act`; a window
        drops it with that action."""
        return step <= history.step if self.window is None else step == history.step

    def _messages(
        self, history: History, suffix: str, cache: PromptCache | None
    ) -> tuple[Message, ...]:
        note = self._note(history, history.step, suffix)
        if self.window is not None:
            text = self.playbook + self._windowed(history) + note + suffix
            return (*self._system(history), *self.set.shots, Message("user", text))
        cache = PromptCache() if cache is None else cache
        if not cache.is_prefix_of(history):
            first = self._fill(
                self.set.first, history, step=0, observation=history.first_observation
            )
            opening = Message("user", self.playbook + first)
            cache.messages = [*self._system(history), *self.set.shots, opening]
            cache.history = None
        known = cache.history.step if cache.history is not None else 0
        for turn in history.turns[known:]:
            values = {"step": turn.step + 1, "observation": turn.observation}
            cache.messages[-1] = _appended(cache.messages[-1], self._note(history, turn.step))
            cache.messages += [
                Message("assistant", turn.action_text, turn.tokens),
                Message("user", fill(self.set.turn, values)),
            ]
        cache.history = history
        return (*cache.messages[:-1], _appended(cache.messages[-1], note + suffix))

    def _system(self, history: History) -> list[Message]:
        text = self._fill(self.set.system, history)
        return [Message("system", text)] if text else []

    def _windowed(self, history: History) -> str:
        assert self.window is not None
        shown = history.turns[-self.window :]
        first = history.step - len(shown)
        before = history.turns[first - 1].observation if first else history.first_observation
        lines = []
        for turn in shown:
            lines.append(f"[Step {turn.step}] {before}\n{turn.action_text}")
            before = turn.observation
        if not shown:
            return self._fill(self.set.first, history, step=0, observation=before)
        return self._fill(
            self.set.window,
            history,
            step=history.step,
            observation=before,
            history="\n".join(lines),
            shown=len(shown),
        )

    def _fill(self, template: str, about: History, /, **values: object) -> str:
        preamble = "".join(fill(self.set.preamble, {"experience": p}) for p in about.preamble)
        common = {
            "instruction": about.task.instruction,
            "actions_help": self.actions_help,
            "preamble": preamble,
        }
        return fill(template, common | values)

    def _note(self, history: History, step: int, suffix: str = "") -> str:
        """The experience at a step, or the lessons on it; a request (`suffix`) sees no lessons."""
        note = history.notes.get(step) or ("" if suffix else self._lessons(history, step))
        return fill(self.set.experience, {"experience": note, "step": step}) if note else ""

    def _lessons(self, history: History, step: int) -> str:
        if not self.lessons:
            return ""
        seen = _words(history.turns[step - 1].observation if step else history.first_observation)
        return " ".join(
            text for topic, text in self.lessons.items() if _words(topic) and _words(topic) <= seen
        )

    def parse_action(self, text: str, cut: bool = False) -> tuple[str, str]:
        """Read the action out of an answer; docs/own-model.md lists the forms that are read.

        Args:
            text: The answer as it was written.
            cut: The answer reached its token limit (`finish = "length"`): an open block is
                incomplete then.

        Returns:
            (thought, action), drafts in the thought. An answer without the expected form is the
            action as a whole: the environment says what is wrong with it. The action is empty if
            there is only a draft, or no complete program.
        """
        draft, answer = split_drafts(text)
        thought, action = self._read_action(answer, cut)
        return "\n".join(filter(None, (draft, thought))), action

    def _read_action(self, answer: str, cut: bool) -> tuple[str, str]:
        match self.set.action:
            case "line":
                return "", answer.strip().split("\n", 1)[0].strip()
            case "react":
                return labelled(answer.replace("\r\n", "\n"), self.set.multiline) or (
                    "",
                    answer.strip(),
                )
            case "code":
                return program(
                    answer, cut, ends_at_fence=any("```" in stop for stop in self.set.stop)
                )
        return "", answer.strip()

    def parse_reflection(self, text: str, steps: int) -> tuple[int, str]:
        """Read (tau, e) out of an answer.

        Args:
            text: The answer as it was written.
            steps: How many actions the history has: 0 <= tau < steps.

        Returns:
            The step to go back to and the experience.

        Raises:
            UnusableReflection: The answer holds no such pair.
        """
        _, answer = split_drafts(text)
        if self.set.reflection == "pattern":
            match = re.search(self.set.reflection_pattern, answer)
            if match is None:
                raise UnusableReflection("the answer does not have the form that was asked for")
            value, note = match["step"], match["experience"]
        else:
            try:
                found = last_object(answer, "step")
            except Unreadable as error:
                raise UnusableReflection(str(error)) from error
            value, note = found.get("step"), found.get("experience")
        step = whole_number(value)
        if step is None:
            raise UnusableReflection(f"step is {_short(value)}, not a number in bounds")
        if not isinstance(note, str) or not note.strip():
            raise UnusableReflection("the experience is empty")
        if not 0 <= step < steps:
            raise UnusableReflection(f"step {step} is outside 0..{steps - 1}")
        return step, note.strip()


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _appended(message: Message, text: str) -> Message:
    return Message(message.role, message.content + text) if text else message
