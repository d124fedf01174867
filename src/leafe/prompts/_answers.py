"""Reads a model's answer: separates its drafts, and finds the one action in the rest.

Models write the forms that they were trained on, whatever a prompt asks for. Forms that are
unambiguous are read; of anything else the action is the whole text, and the environment says what
is wrong with it. Every pattern takes time linear in the text: spaces are matched possessively.
"""

from __future__ import annotations

import re

# drafts

_TAGS = "think|thinking|thoughts?|reasoning|analysis|scratchpad|seed:think"
_DRAFT = re.compile(
    rf"""
    (?P<open><(?:{_TAGS})(?:\s[^<>\n]{{0,99}})?> | \[THINK\] | ◁think▷ | <\|begin_of_thought\|>
        | <\|START_THINKING\|> | <\|channel>(?:thought|analysis)?)
    | (?P<close></(?:{_TAGS})\s*> | \[/THINK\] | ◁/think▷ | <\|end_of_thought\|>
        | <\|END_THINKING\|> | <channel\|>)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_QUOTES = tuple("\"'`\\(|")
_FENCE_LINE = re.compile(r"^[ \t]*+(?:```|~~~)", re.MULTILINE)
_FINAL = re.compile(
    r"<\|channel\|>\s*final\b[^<\n]{0,99}(?:<\|constrain\|>[^<\n]{0,99})?<\|message\|>|assistantfinal"
)
_CONTROL = re.compile(r"<\|\w{1,30}\|>")
_CHANNEL = re.compile(
    r"\s*(?:(?:<\|start\|>\s*assistant\s*)?<\|channel\|>|analysis(?=.*assistantfinal))", re.DOTALL
)
_ENDS = (
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|eot_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<end_of_turn>",
    "<eos>",
)
_WRAPPED = re.compile(
    r"<(answer|final_answer|final|response)>(.*?)(?:</\1>)?", re.DOTALL | re.IGNORECASE
)


def split_drafts(text: str) -> tuple[str, str]:
    """(drafts, answer): text between marks such as `<think>` is a draft; an unclosed mark makes the
    rest of the text a draft."""
    if _CHANNEL.match(text):
        finals = list(_FINAL.finditer(text))
        if not finals:
            return _CONTROL.sub(" ", text).strip(), ""
        return _CONTROL.sub(" ", text[: finals[-1].start()]).strip(), _unwrapped(
            text[finals[-1].end() :]
        )
    drafts: list[str] = []
    kept: list[str] = []
    start = counted = fences = mentioned = 0
    inside = False
    for mark in _DRAFT.finditer(text):
        if mark["open"] and inside:
            continue
        quoted = (
            text[mark.start() - 1 : mark.start()] in _QUOTES
            and text[mark.start() - 2 : mark.start()] != "``"
        )
        if mark["open"]:
            fences += len(_FENCE_LINE.findall(text, counted, mark.start()))
            counted = mark.start()
            if quoted or fences % 2:  # a program or a sentence mentions the mark
                mentioned += 1
                continue
            kept.append(text[start : mark.start()])
            inside = True
        elif inside:
            drafts.append(text[start : mark.start()])
            inside = False
        elif mentioned:
            mentioned -= 1
            continue
        elif quoted:
            continue
        else:  # the prompt ended with the opening mark
            drafts += [*kept, text[start : mark.start()]]
            kept, fences = [], 0
        start = counted = mark.end()
    (drafts if inside else kept).append(text[start:])
    return "\n".join(d.strip() for d in drafts if d.strip()), _unwrapped("".join(kept))


def _unwrapped(answer: str) -> str:
    """The answer without end-of-turn marks, if a server left them in, and out of a wrapper."""
    answer = answer.rstrip().lstrip("\r\n")  # keeps the first line's indentation, of a program
    while answer.endswith(_ENDS):
        answer = answer[: answer.rindex("<")].rstrip()
    wrapper = _WRAPPED.fullmatch(answer.lstrip())
    return wrapper[2].strip() if wrapper else answer


# an action after its label

_BEFORE = (
    r"^[ \t]*+(?:>[ \t]*+)*+(?:[-+•*][ \t]++|\d{1,3}[.)][ \t]++)?"
    r"(?:\#{1,6}[ \t]*+)?(?P<bold>[*_]{0,3})[ \t]*+"
)
_NUMBER = r"(?:[ \t]*+[\#(\[]?[ \t]*+\d{1,4}[)\]]?)?"
_COLON = r"[ \t]*+[*_]{0,3}[ \t]*+[:：][ \t]*+"
_LABEL = re.compile(
    rf"{_BEFORE}action{_NUMBER}{_COLON}(?P<mark>[*_]{{0,3}})[ \t]*+", re.IGNORECASE | re.MULTILINE
)
_HEADING = re.compile(
    rf"^[ \t]*+(?:\#{{1,6}}[ \t]*+[*_]{{0,3}}action{_NUMBER}[*_]{{0,3}}"
    rf"|[*_]{{2,3}}action{_NUMBER}[*_]{{2,3}})(?P<bold>)(?P<mark>)[ \t]*+$",
    re.IGNORECASE | re.MULTILINE,
)
_WITHIN = re.compile(
    r"(?<=[\s*])(?P<bold>)Action(?: \d{1,4})?[*_]{0,3}:[ \t]*+(?P<mark>[*_]{0,3})[ \t]*+"
)
_THOUGHT = re.compile(
    rf"{_BEFORE}thoughts?{_NUMBER}[ \t]*+[*_]{{0,3}}(?:{_COLON}[*_]{{0,3}}[ \t]*+|[ \t]*+\n)",
    re.IGNORECASE,
)
_AFTER = re.compile(
    rf"{_BEFORE}(?:(?:observation|thought|action|feedback|result){_NUMBER}{_COLON}"
    rf"|\[Step[ \t]++\d+\])"
    rf"|^[ \t]*+(?:\#{{1,6}}[ \t]*+[*_]{{0,3}}|[*_]{{2,3}})"
    rf"(?:observation|thought|action){_NUMBER}[*_]{{0,3}}[ \t]*+$",
    re.IGNORECASE | re.MULTILINE,
)
_INVENTED = re.compile(
    r"(?:(?<=\s)|(?<=[\])}*]))[*_]{0,3}(?:Observation|Thought|Action)(?: \d{1,4})?[*_]{0,3}[:：]"
    r"|<\|[\w ]{1,30}\|>|</s>|<end_of_turn>|<eos>"
)
_TICKS = re.compile(r"(`{3,}|~{3,})[ \t]*+[\w+.-]*+")


def labelled(text: str, several_lines: bool = False) -> tuple[str, str] | None:
    """(thought, action) of `Thought: ... Action: ...`; None if there is no such label.

    The first action counts. What follows it is dropped: an observation that the model invented and
    its later actions.
    """
    label = _first_label(text)
    if label is None:
        return None
    thought = _THOUGHT.sub("", text[: label.start()].strip(), count=1).strip()
    lines = _until_next(text[label.end() :]).strip("\n").split("\n")
    while len(lines) > 1 and not lines[0].strip():
        lines.pop(0)
    fence = _TICKS.fullmatch(lines[0].strip())
    closing = (
        i
        for i, line in enumerate(lines[1:], 1)
        if _TICKS.fullmatch(line.strip()) and (fence is None or line.strip().startswith(fence[1]))
    )
    lines = lines[bool(fence) : next(closing, len(lines))]
    if not several_lines:
        lines = [line for line in lines if line.strip()][:1]
    action = "\n".join(lines)
    invented = _INVENTED.search(action)
    return _unfenced(thought), _bare(
        action[: invented.start()] if invented else action, label["mark"] or label["bold"]
    )


def _first_label(text: str) -> re.Match[str] | None:
    """The label of the first action: at a line's beginning, as a heading, or else within a line."""
    label, heading = _LABEL.search(text), _HEADING.search(text)
    if heading is not None and (
        label is None
        or (heading.start() < label.start() and text[heading.end() : label.start()].strip())
    ):
        return heading
    return label or _WITHIN.search(text)


def _until_next(rest: str) -> str:
    following = _AFTER.search(rest, 1)
    return rest if following is None else rest[: following.start()]


def _bare(action: str, opened: str) -> str:
    """The action without marks of code or bold around it."""
    action = action.strip()
    if opened and action.endswith(opened):
        action = action[: -len(opened)].rstrip()
    for mark in ("```", "`", "**"):
        if len(action) > 2 * len(mark) and action.startswith(mark) and action.endswith(mark):
            action = action[len(mark) : -len(mark)].strip()
    alone = action.strip("`").strip()
    return action if "`" in alone else alone


def _unfenced(thought: str) -> str:
    """The thought without an opening fence that the action closes."""
    lines = thought.split("\n")
    if lines[-1].strip().startswith(("```", "~~~")):
        lines.pop()
    elif lines[0].strip().startswith(("```", "~~~")):
        lines = lines[1:]
        return _THOUGHT.sub("", "\n".join(lines), count=1).strip()
    return "\n".join(lines).strip()
