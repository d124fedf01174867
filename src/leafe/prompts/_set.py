"""A prompt set: every word that leafe says to a model, as data that a user can override.

A set is a TOML file. Its texts hold names in braces (`{observation}`, `{step}`, ...) that are
filled in once; a brace that
names nothing known stays as it is, so that JSON examples need no escaping.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from leafe.core import Message, UserError
from leafe.core.textfile import parsed_toml, read_text

NAMES = (
    "instruction",
    "actions_help",
    "observation",
    "step",
    "preamble",
    "experience",
    "last",
    "history",
    "shown",
    "items",
    "id",
    "section",
    "text",
    "outcome",
    "lesson",
    "action",
    "thought",
    "other",
)
_NAME = re.compile(r"\{(" + "|".join(NAMES) + r")\}")


class Example(BaseModel):
    """One few-shot message."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Literal["user", "assistant"]
    content: str


class PromptSet(BaseModel):
    """The wording and the formats of one kind of task. Texts are filled in with the names in
    `NAMES`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    system: str = ""
    """The system message; none where empty. Never holds an experience: what changes comes after the
    history."""
    examples: tuple[Example, ...] = ()
    """Few-shot messages between the system message and the task."""
    first: str = "{instruction}\n\n{actions_help}\n\n{preamble}[Step {step}]\n{observation}"
    """The first user message: task and o_0."""
    preamble: str = (
        "An earlier attempt at this task failed. What was done, and what came of "
        "it:\n{experience}\n"
    )
    """One earlier attempt (iterative refinement), its steps put into words by `attempt`; repeated
    for each, oldest first."""
    attempt: str = "Step {step}: {action}\n{observation}\n"
    """One step of an earlier attempt. Empty: of an attempt its last observation alone is shown."""
    attempt_chars: int = Field(4000, ge=1)
    """The most characters of one attempt's steps; what is left out where they are longer:
    `leafe.prompts.attempt_text`."""
    left_out: str = "(left out for want of room)"
    """In the place of an action or an observation that is left out."""
    turn: str = "[Step {step}]\n{observation}"
    """Every later user message: o_t."""
    experience: str = (
        "\n\nAdvice from an earlier attempt at this very step: {experience}\n"
        "Act on it as if you had found it out yourself: your thought gives reasons from "
        "the task and the observations alone, without a word of this advice or "
        "of an earlier attempt."
    )
    """Put after the last observation where an action is sampled in the light of an experience e.
    Stage 2 trains the answer without e in the prompt, so that
    a thought may not lean on it."""
    tried: str = (
        "\n\nAdvice for step {step} that was followed already, without success: {experience}"
    )
    """Put before `reflect`, once for each piece of advice that was given for a step of this history
    and did not solve the task. Empty: none is shown."""
    mentions: str = (
        r"\b(advi[cs]e[ds]?|hint(s|ed)?|lessons?|suggest(s|ed|ions?)|recommend(s|ed|ations?)|reminded|warned|(was|were|been|am|as) "
        r""
        r"(told|instructed)"
        r"|last time|(earlier|previous|prior|past|first|last|other) "
        r"(attempts?|tr(y|ies)|runs?|episodes?|trials?))\b"
    )
    """A regular expression, capitals and small letters alike, of the words by which a thought shows
    that it leans on an experience. Empty: none does.
    They count where nothing else that the policy was told holds them
    (`distill.mentioned_advice`)."""
    reflect: str = (
        "\n\nStop here and look back. Which of the steps 0 to {last} was the first that "
        "led this attempt astray, and what should be done at that step "
        'instead? Answer with one JSON object and nothing else: {"step": <number>, '
        '"experience": "<what went wrong and what to do, in one or two sentences>"}'
    )
    """Put after the last observation where the policy is asked to reflect."""
    window: str = (
        "{instruction}\n\n{actions_help}\n\n{preamble}The last {shown} "
        "turns:\n{history}\n\n[Step {step}]\n{observation}"
    )
    """The one user message of `history = "window:N"`."""
    advice: str = "After an earlier attempt at this task you told yourself: {experience}\n\n"
    """In the place of `preamble` where what is carried from attempt to attempt is the policy's own
    reflection (strategy `reflexion`)."""
    advice_attempt: str = ""
    """What `reflexion` puts into the last `advice` where the last attempt itself is shown too:
    {experience} is the reflection, {history} the attempt's
    steps. Empty: the reflection alone, as Reflexion does except where it writes programs."""

    # a playbook that grows over tasks (leafe.baselines.ace)
    playbook: str = "Lessons from earlier tasks of this kind. Use those that apply here:\n{items}\n"
    """Before everything else in the first user message, where there is a playbook: frozen, it is a
    prefix that all prompts share."""
    item: str = "[{id}] {section}: {text}\n"
    """One item of the playbook."""
    lesson: str = (
        "\n\nThis attempt is over: {outcome}. Do not act now. What is the one most useful "
        "lesson for other tasks of this kind: a rule, a strategy or a "
        "mistake to avoid, not the solution of this task alone? And which of the numbered "
        "lessons at the beginning (if there are any) helped, which misled? "
        'Answer with one JSON object and nothing else: {"section": "<topic, one or two '
        'words>", "lesson": "<one or two sentences, or none>", '
        '"helpful": "<numbers, or none>", "harmful": "<numbers, or none>"}'
    )
    """Put after the last observation where the policy is asked, as reflector, what an attempt
    teaches."""
    won: str = "the task was solved"
    """{outcome} of a successful attempt; empty: no lesson is asked of those."""
    lost: str = "the task was not solved"
    lesson_form: Literal["json", "pattern"] = "json"
    lesson_pattern: str = ""
    """For `pattern`: a regular expression with the groups `section` and `text`. An item of that
    section that says the same counts as helpful, one that says
    something else as harmful, and what is new is added without a curator."""
    curate: str = (
        "You keep a list of lessons for an agent. It is shown to the agent before every "
        "task, so it must stay short and general.\n\nThe list (number, topic, "
        'text):\n{items}\nAn attempt at the task "{instruction}" has taught this, under '
        "the topic {section}:\n{lesson}\n\nChange at most one item of the list: "
        "ADD the lesson as a new item if the list does not say it yet, UPDATE an item "
        "whose text the lesson makes more precise, REMOVE an item that the lesson "
        "shows to be wrong, or NONE. Answer with one JSON object and nothing else: "
        '{"operation": "<ADD, UPDATE, REMOVE or NONE>", '
        '"item": <number of the item to change, else 0>, "section": "<topic>", "text": '
        '"<the item\'s new text, else none>"}'
    )
    """What the policy is asked, as curator, in a conversation of its own."""

    # states beside an expert's way (leafe.baselines.early_experience)
    predict: str = (
        "\n\nDo not act now. Say word for word what the next observation will be if you do "
        "this: {action}"
    )
    """Put after the last observation where the next one is to be predicted."""
    explain: str = (
        "\n\nDo not act now. Two actions were tried from here.\nAction A: {action}\nIts "
        "outcome: {outcome}\nAction B: {other}\nIts outcome: {observation}\n\n"
        "Think it through in two or three sentences, as you would before acting and "
        "without having seen the outcomes: why is action A the better choice here? "
        "Write these sentences only."
    )
    """Put after the last observation where the policy is asked why the expert's action is the
    better one. Empty: it cannot say."""
    reasoned: str = "Thought: {thought}\nAction: {action}"
    """An explanation and an action as one answer, in the form that `action` reads."""

    action: Literal["plain", "line", "react", "code"] = "react"
    """How an action is read out of the answer: the whole text; its first line; what follows
    `Action:`; the program in a fenced code block."""
    multiline: bool = False
    """An action after `Action:` may have several lines, up to what the model invents of the next
    turn; else its first line alone is the action."""
    reflection: Literal["json", "pattern"] = "json"
    reflection_pattern: str = ""
    """For `pattern`: a regular expression with the groups `step` and `experience`, searched for in
    the answer."""
    max_tokens: int = 256
    reflect_max_tokens: int = 256
    stop: tuple[str, ...] = ()

    @field_validator("reflection_pattern")
    @classmethod
    def _has_groups(cls, value: str) -> str:
        if value and not {"step", "experience"} <= set(re.compile(value).groupindex):
            raise ValueError("needs the groups (?P<step>...) and (?P<experience>...)")
        return value

    @field_validator("mentions")
    @classmethod
    def _compiles(cls, value: str) -> str:
        re.compile(value)
        return value

    @field_validator("lesson_pattern")
    @classmethod
    def _has_lesson_groups(cls, value: str) -> str:
        if value and not {"section", "text"} <= set(re.compile(value).groupindex):
            raise ValueError("needs the groups (?P<section>...) and (?P<text>...)")
        return value

    @property
    def shots(self) -> tuple[Message, ...]:
        return tuple(Message(e.role, e.content) for e in self.examples)


def fill(template: str, values: Mapping[str, object]) -> str:
    """Replace the known names in one pass: what is put in is never read again."""
    return "".join(
        [
            part if name is None else str(values[name]) if name in values else part
            for part, name in _parts(template)
        ]
    )


@lru_cache(maxsize=1024)
def _parts(template: str) -> tuple[tuple[str, str | None], ...]:
    """The template cut up: (text, None) as it is, or ("{name}", name). Every turn of every prompt
    is filled in: templates are read once."""
    pieces = _NAME.split(template)
    return tuple(
        (piece, None) if i % 2 == 0 else (f"{{{piece}}}", piece)
        for i, piece in enumerate(pieces)
        if piece
    )


def load_prompt_set(name_or_path: str) -> PromptSet:
    """A built-in set by name or a TOML file by path; UserError where there is none or it is not
    valid."""
    builtin = resources.files("leafe.prompts") / "sets" / f"{name_or_path}.toml"
    if builtin.is_file():
        text, where = builtin.read_text(encoding="utf-8"), f"built-in prompt set {name_or_path}"
    elif Path(name_or_path).is_file():
        text, where = read_text(name_or_path), f"The prompt set {name_or_path}"
    else:
        raise UserError(
            f"There is no prompt set {name_or_path!r}: give a TOML file or one of "
            f"{', '.join(prompt_sets())}."
        )
    try:
        return PromptSet(**parsed_toml(text, where))
    except re.error as error:
        raise UserError(f"{where} cannot be read: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error


def prompt_sets() -> list[str]:
    """Names of the built-in sets."""
    return sorted(
        p.name.removesuffix(".toml")
        for p in (resources.files("leafe.prompts") / "sets").iterdir()
        if p.name.endswith(".toml")
    )
