"""A prompt set: every text that leafe says to a model, as data that a user can override.

A set is a TOML file. Its texts hold names in braces (`{observation}`, `{step}`, ...) that are
filled in once. Braces around any other name stay, so that JSON examples need no escaping.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

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
"""What braces in a text may name."""
_NAME = re.compile(r"\{(" + "|".join(NAMES) + r")\}")
_GROUPS = {"reflection_pattern": ("step", "experience"), "lesson_pattern": ("section", "text")}


class Example(BaseModel):
    """One few-shot message."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Literal["user", "assistant"]
    content: str


class PromptSet(BaseModel):
    """The wording and the answer formats of one kind of task. Texts are filled in with the names in
    `NAMES`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    system: str = ""
    """The system message; none if empty. It never holds an experience: what changes comes after the
    history."""
    examples: tuple[Example, ...] = ()
    """Few-shot messages between the system message and the task."""
    first: str = "{instruction}\n\n{actions_help}\n\n{preamble}[Step {step}]\n{observation}"
    """The first user message: task and o_0."""
    preamble: str = (
        "An earlier attempt at this task failed. What was done, and what came of "
        "it:\n{experience}\n"
    )
    """One earlier attempt (iterative refinement), its steps worded by `attempt`; repeated for each,
    oldest first."""
    attempt: str = "Step {step}: {action}\n{observation}\n"
    """One step of an earlier attempt. Empty: only an attempt's last observation is shown."""
    attempt_chars: int = Field(4000, ge=1)
    """Most characters of one attempt's steps; `leafe.prompts.attempt_text` shortens longer ones."""
    left_out: str = "(left out for want of room)"
    """Stands for an action or an observation that is left out."""
    turn: str = "[Step {step}]\n{observation}"
    """Every later user message: o_t."""
    experience: str = (
        "\n\nAdvice from an earlier attempt at this very step: {experience}\n"
        "Act on it as if you had found it out yourself: your thought gives reasons from "
        "the task and the observations alone, without a word of this advice or "
        "of an earlier attempt."
    )
    """Follows the last observation when an action is sampled with an experience e. Stage 2 trains
    the answer without e in the prompt, so that a thought must not refer to it."""
    tried: str = (
        "\n\nAdvice for step {step} that was followed already, without success: {experience}"
    )
    """Precedes `reflect`, once for each piece of advice that was given for a step of this history
    and did not solve the task. Empty: none is shown."""
    mentions: str = (
        r"\b(advi[cs]e[ds]?|hint(s|ed)?|lessons?|suggest(s|ed|ions?)|recommend(s|ed|ations?)"
        r"|reminded|warned|(was|were|been|am|as) (told|instructed)|last time"
        r"|(earlier|previous|prior|past|first|last|other) "
        r"(attempts?|tr(y|ies)|runs?|episodes?|trials?))\b"
    )
    """A regular expression, case ignored, of words that show that a thought refers to an
    experience. Empty: none does. They count if no message to the policy holds them
    (`distill.mentioned_advice`)."""
    reflect: str = (
        "\n\nStop here and look back. Which of the steps 0 to {last} was the first that "
        "led this attempt astray, and what should be done at that step "
        'instead? Answer with one JSON object and nothing else: {"step": <number>, '
        '"experience": "<what went wrong and what to do, in one or two sentences>"}'
    )
    """Follows the last observation when the policy is asked to reflect."""
    window: str = (
        "{instruction}\n\n{actions_help}\n\n{preamble}The last {shown} "
        "turns:\n{history}\n\n[Step {step}]\n{observation}"
    )
    """The one user message of `history = "window:N"`."""
    advice: str = "After an earlier attempt at this task you told yourself: {experience}\n\n"
    """Replaces `preamble` if the policy's own reflection is carried from attempt to attempt
    (strategy `reflexion`)."""
    advice_attempt: str = ""
    """What `reflexion` puts into the last `advice` if the last attempt itself is shown too:
    {experience} is the reflection, {history} the attempt's steps. Empty: the reflection alone, as
    Reflexion does except for programs."""

    # the playbook of leafe.baselines.ace
    playbook: str = "Lessons from earlier tasks of this kind. Use those that apply here:\n{items}\n"
    """Begins the first user message if there is a playbook; a frozen playbook is a prefix that all
    prompts share."""
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
    """Follows the last observation when the policy, as reflector, is asked what an attempt
    teaches."""
    won: str = "the task was solved"
    """{outcome} of a successful attempt; empty: successes are not asked about."""
    lost: str = "the task was not solved"
    """{outcome} of any other attempt."""
    lesson_form: Literal["json", "pattern"] = "json"
    """How a lesson is read out of the answer."""
    lesson_pattern: str = ""
    """For `pattern`: a regular expression with the groups `section` and `text`. An item of that
    section with the same text counts as helpful, another one as harmful; a new text is added
    without a curator."""
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
    """The request to the policy as curator, in a conversation of its own."""

    # alternative actions of leafe.baselines.early_experience
    predict: str = (
        "\n\nDo not act now. Say word for word what the next observation will be if you do "
        "this: {action}"
    )
    """Follows the last observation when the next one is to be predicted."""
    explain: str = (
        "\n\nDo not act now. Two actions were tried from here.\nAction A: {action}\nIts "
        "outcome: {outcome}\nAction B: {other}\nIts outcome: {observation}\n\n"
        "Think it through in two or three sentences, as you would before acting and "
        "without having seen the outcomes: why is action A the better choice here? "
        "Write these sentences only."
    )
    """Follows the last observation when the policy is asked why the expert's action is the better
    one. Empty: it is not asked."""
    reasoned: str = "Thought: {thought}\nAction: {action}"
    """An explanation and an action as one answer, in the format that `action` reads."""

    action: Literal["plain", "line", "react", "code"] = "react"
    """How an action is read out of the answer. plain: the whole text. line: its first line. react:
    what follows `Action:`. code: the program in a fenced code block."""
    multiline: bool = False
    """Whether an action after `Action:` may have several lines, up to what the model invents of the
    next turn; else it is the first line alone."""
    reflection: Literal["json", "pattern"] = "json"
    """How a reflection is read out of the answer."""
    reflection_pattern: str = ""
    """For `pattern`: a regular expression with the groups `step` and `experience`, searched for in
    the answer."""
    max_tokens: int = 256
    """Most tokens of an action's answer."""
    reflect_max_tokens: int = 256
    """Most tokens of a reflection."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""

    @field_validator("mentions", "reflection_pattern", "lesson_pattern")
    @classmethod
    def _compiles(cls, value: str, info: ValidationInfo) -> str:
        groups = _GROUPS.get(str(info.field_name), ())
        if value and not set(groups) <= set(re.compile(value).groupindex):
            raise ValueError("needs the groups " + " and ".join(f"(?P<{g}>...)" for g in groups))
        return value

    @property
    def shots(self) -> tuple[Message, ...]:
        """The few-shot messages."""
        return tuple(Message(e.role, e.content) for e in self.examples)


def fill(template: str, values: Mapping[str, object]) -> str:
    """Replace the names of `values` in one pass: what is put in is not filled in again."""
    return "".join([str(values.get(name, part)) for part, name in _parts(template)])


@lru_cache(maxsize=1024)
def _parts(template: str) -> tuple[tuple[str, str], ...]:
    """The template in pieces: (text, "") as it is, or ("{name}", name). Cached, since every turn of
    every prompt is filled in."""
    pieces = enumerate(_NAME.split(template))
    return tuple((f"{{{p}}}", p) if i % 2 else (p, "") for i, p in pieces if p)


def load_prompt_set(name_or_path: str) -> PromptSet:
    """A built-in set by name, or a TOML file by path.

    Raises:
        UserError: There is no such set, or it is not valid.
    """
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
