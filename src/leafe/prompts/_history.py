"""History to messages, and back from text to actions and reflections. History is append-only.

The prompt at h_{t+1} is the prompt at h_t, the action, and the next observation; an experience or a
reflection request
comes after the last observation, never before it. So a branch shares every token before tau with
its parent.
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
from leafe.prompts._reflecting import shortened, tried_on
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
    """The policy's reflection names no step in range or no experience; the message says which."""


@dataclass(frozen=True, slots=True)
class History:
    """h_t as the policy sees it: o_0, then the act turns, each with the observation that followed
    it."""

    task: Task
    first_observation: str
    turns: tuple[Turn, ...] = ()
    notes: Mapping[int, str] = field(default_factory=dict)
    """Experiences in the context, by the step before which they stand."""
    preamble: tuple[str, ...] = ()
    """Feedback of earlier attempts, oldest first."""
    left_out: int = 0
    """How many of the oldest texts a reflection's prompt is without (`shortened`)."""
    tried: tuple[tuple[int, str], ...] = ()
    """(step, experience) of the advice that a reflection is told of (`tried_on`)."""

    @property
    def step(self) -> int:
        """t: the index of the action that comes next."""
        return len(self.turns)

    def then(self, turn: Turn) -> History:
        """h_{t+1}."""
        return History(
            self.task, self.first_observation, (*self.turns, turn), self.notes, self.preamble
        )


def history_before(tree: Tree, turn: Turn, *, with_experience: bool) -> History:
    """The history in which `turn` was sampled.

    With the experience: exactly what stood in the prompt (notes, preamble and, of a reflection,
    what was left out for it to fit and which advice it
    was told of). Without: h_tau alone, what Stage 2 trains on.
    """
    path = tree.path(turn.parent)
    episode = tree.episode_of(turn.id)
    notes = notes_on(tree, path) if with_experience else {}
    if with_experience and turn.experience is not None:
        first = episode.acts[0] if episode.acts else turn
        notes[first.step if episode.scope is Scope.branch else turn.step] = tree[
            turn.experience
        ].note
    preamble = episode.preamble if with_experience else ()
    root = tree.episode_of(path[0].id) if path else episode
    history = History(tree.task, root.first_observation, tuple(path), notes, preamble)
    if turn.kind is Kind.reflect and with_experience:
        tried = (
            tried_on(tree, path, episode.index, episode.experience)[-turn.tried :]
            if turn.tried
            else ()
        )
        history = replace(history, left_out=turn.left_out, tried=tried)
    return history


def notes_on(tree: Tree, path: Sequence[Turn]) -> dict[int, str]:
    """The experiences that stay in the context along a path: those of episodes whose scope is the
    whole branch, by step."""
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
    """The messages of one history that grows, so that each of its parts is put into words once,
    however many turns follow. Belongs to one `Prompts`."""

    history: History | None = None
    """What `messages` say, without the note on the action that comes next."""
    messages: list[Message] = field(default_factory=list)

    def begins(self, history: History) -> bool:
        """Whether that history is this one, or this one and further turns."""
        mine = self.history
        return (
            mine is not None
            and mine.turns == history.turns[: mine.step]
            and (mine.task, mine.first_observation, mine.preamble)
            == (history.task, history.first_observation, history.preamble)
            and all(
                mine.notes.get(step) == history.notes.get(step)
                for step in {*mine.notes, *history.notes}
                if step < mine.step
            )
        )


class Prompts:
    """A prompt set bound to an environment's help text. `history`: "full", or "window:N" as some
    harnesses prompt (no shared prefixes). `playbook`: a text that
    begins every first user message (of a window: every one), the same for all tasks. `lessons`: by
    topic what stands, as an experience would, at every step
    whose observation holds all words of the topic and that has no experience of its own."""

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
        """The same with this playbook, or these lessons, in the place of any other."""
        return Prompts(self.set, self.actions_help, self.history, playbook, lessons)

    def saying(self, **texts: str) -> Prompts:
        """The same with some of the set's texts replaced."""
        return Prompts(
            self.set.model_copy(update=texts),
            self.actions_help,
            self.history,
            self.playbook,
            self.lessons,
        )

    def reflection_schema(self, steps: int) -> Mapping[str, Any] | None:
        """What to ask of an engine that can constrain its output, for a history of `steps` actions;
        None where the set has its own pattern."""
        if self.set.reflection != "json":
            return None
        facts = REFLECTION_SCHEMA["properties"]
        return {
            **REFLECTION_SCHEMA,
            "properties": {**facts, "step": {**facts["step"], "maximum": steps - 1}},
        }

    def act(self, history: History, said: PromptCache | None = None) -> tuple[Message, ...]:
        """The messages in answer to which the policy acts at step t. `said` is what was said of the
        history when it was shorter; it changes no word."""
        return self._messages(history, "", said)

    def shows(self, history: History, step: int) -> bool:
        """Whether an experience that was put before action `step` stands in the messages of `act`:
        a window forgets it with that action."""
        return step <= history.step if self.window is None else step == history.step

    def reflect(self, history: History, said: PromptCache | None = None) -> tuple[Message, ...]:
        """The messages in answer to which the policy reflects on h_t; at least one action must have
        been taken."""
        if not history.turns:
            raise ValueError("there is no action to reflect on")
        if history.left_out:
            first, turns = shortened(
                history.first_observation, history.turns, history.left_out, self.set.left_out
            )
            history, said = replace(history, first_observation=first, turns=turns), None
        tried = "".join(
            fill(self.set.tried, {"step": step, "experience": note}) for step, note in history.tried
        )
        return self._messages(
            history,
            tried + fill(self.set.reflect, {"last": history.step - 1, "step": history.step}),
            said,
        )

    def after(self, history: History, request: str) -> tuple[Message, ...]:
        """The history with a request of another kind after the last observation; in answer to it
        the policy does not act. No action need have been taken."""
        return self._messages(history, request, None)

    def _messages(
        self, history: History, suffix: str, said: PromptCache | None
    ) -> tuple[Message, ...]:
        if self.window is not None:
            now = (
                self.playbook
                + self._windowed(history)
                + self._note(history, history.step, suffix)
                + suffix
            )
            return (*self._system(history), *self.set.shots, Message("user", now))
        said = PromptCache() if said is None else said
        if not said.begins(history):
            said.messages = self._system(history)
            said.messages += self.set.shots
            said.messages.append(
                Message(
                    "user",
                    self.playbook
                    + self._fill(
                        self.set.first, history, step=0, observation=history.first_observation
                    ),
                )
            )
            said.history = None
        known = said.history.step if said.history is not None else 0
        for turn in history.turns[known:]:
            said.messages[-1] = _and(said.messages[-1], self._note(history, turn.step))
            said.messages.append(Message("assistant", turn.action_text, turn.tokens))
            said.messages.append(
                Message(
                    "user",
                    fill(self.set.turn, {"step": turn.step + 1, "observation": turn.observation}),
                )
            )
        said.history = history
        return (
            *said.messages[:-1],
            _and(said.messages[-1], self._note(history, history.step, suffix) + suffix),
        )

    def _system(self, history: History) -> list[Message]:
        """The system message; none where it says nothing."""
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
        return fill(
            template,
            {
                "instruction": about.task.instruction,
                "actions_help": self.actions_help,
                "preamble": preamble,
                **values,
            },
        )

    def _note(self, history: History, step: int, suffix: str = "") -> str:
        note = history.notes.get(step) or ("" if suffix else self._lessons(history, step))
        return fill(self.set.experience, {"experience": note, "step": step}) if note else ""

    def _lessons(self, history: History, step: int) -> str:
        """The lessons on what is seen at this step; none where something else than an action is
        asked for."""
        if not self.lessons:
            return ""
        seen = _words(history.turns[step - 1].observation if step else history.first_observation)
        return " ".join(
            text for topic, text in self.lessons.items() if _words(topic) and _words(topic) <= seen
        )

    def parse_action(self, text: str, cut: bool = False) -> tuple[str, str]:
        """(thought, action) of an answer; docs/own-model.md lists the forms that are read.

        Args:
            text: The answer as it was written.
            cut: It ended because no more could be written (`finish = "length"`): an open block is
            not whole then.

        Returns:
            What was thought before, drafts included, and the action. An answer without the expected
            form is taken whole as the action: the environment
            says what is wrong with it. The action is empty where there is nothing but a draft, or
            no whole program.
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
        """(tau, e) with 0 <= tau < steps; UnusableReflection says why not."""
        _, answer = split_drafts(text)
        if self.set.reflection == "pattern":
            match = re.search(self.set.reflection_pattern, answer)
            if match is None:
                raise UnusableReflection("the answer does not have the form that was asked for")
            said, note = match["step"], match["experience"]
        else:
            try:
                found = last_object(answer, "step")
            except Unreadable as error:
                raise UnusableReflection(str(error)) from error
            said, note = found.get("step"), found.get("experience")
        step = whole_number(said)
        if step is None:
            raise UnusableReflection(f"step is {_short(said)}, not a number in bounds")
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


def _and(message: Message, text: str) -> Message:
    return Message(message.role, message.content + text) if text else message
