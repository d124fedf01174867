"""Finds the program of an answer: which of its fenced blocks is meant, and whether it is complete.

Fences are read by line and not by a Markdown library. CommonMark misreads a program in a list item,
one whose docstring holds a fence, one without an opening fence, and one whose closing fence ends a
line. The program itself is never parsed: its lines alone tell what it looks like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LONGEST = 200_000
"""Characters of an answer that are read."""
_MOST = 100
"""Blocks of an answer that are read."""
_OPENING = re.compile(
    r"(?P<before>[ \t]*(?:>[ \t]?|[-*+][ \t]+|\d{1,3}[.)][ \t]+)*)"
    r"(?P<mark>`{3,}|~{3,})(?P<info>[^`\n]*)"
)
_TAG = re.compile(r"\{?\.?(?:i?python|py)\d*\}?(?:[ \t]++|$)", re.IGNORECASE)
_PYTHON = re.compile(r"\W*(?:i?python[\d.]*|py\d*)(?:\W|$)|.*\.py\b", re.IGNORECASE)
_DEFINITION = (
    r"(?:async[ \t]+)?def[ \t]+\w+[ \t]*\(|class[ \t]+\w+[ \t]*[(:]|@\w+"
    r"|from[ \t]+[\w.]+[ \t]+import[ \t]"
    r"|import[ \t]+[\w.]+(?:[ \t]*(?:,|as[ \t])[ \t]*[\w.]+)*[ \t]*$"
)
_BEGINS = re.compile(_DEFINITION, re.MULTILINE)
_LOOKS_LIKE_PYTHON = re.compile(
    rf"{_DEFINITION}|\#!|[A-Za-z_]\w*(?:[ \t]*,[ \t]*\w+)*[ \t]*[-+*/|&]?=(?!=)"
    r"|(?:for|while|if|with|try|print|return|assert|raise|del)\b.*[:()]"
    r"|[A-Za-z_][\w.]*\(.*\)|\"\"\"|'''",
    re.MULTILINE,
)
_DEFINES = re.compile(
    r"^(?:async[ \t]+def|def|class)[ \t]+(?!test)\w", re.MULTILINE | re.IGNORECASE
)
_STRING = re.compile(
    r"""(?P<long>\"\"\"|''')(?:\\.|[^\\])*?(?:(?P<end>(?P=long))|\\?\Z)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?|\#[^\n]*""",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of an answer."""

    start: int
    """Offset of its opening fence in the text."""
    tag: str
    code: str
    closed: bool = True

    @property
    def rank(self) -> tuple[bool, int, bool]:
        """How likely this is the program and not its use, output or input; higher is likelier."""
        if self.code.lstrip().startswith(">>>"):
            return False, 0, False
        kind = 2 if _PYTHON.match(self.tag) else 0 if self.tag.strip(" {}.") else 1
        if kind and _DEFINES.search(self.code):
            return True, 0, True
        return False, kind, _reads_as_python(self.code)


def program(text: str, cut: bool = False, ends_at_fence: bool = False) -> tuple[str, str]:
    """Read the program in a fence; the whole text if there is no fence.

    Args:
        text: The answer, drafts taken out.
        cut: The answer reached its token limit: an open block is incomplete then.
        ends_at_fence: A fence is a stop text: a block that ends the answer is complete if the
            answer was not cut.

    Returns:
        (thought, program). Of several blocks the last that defines something, else the last in
        Python, else the last that looks like it. The program is empty if that block is not closed,
        or if the answer was cut and has no block.
    """
    text = text[:LONGEST].replace("\r\n", "\n").replace("\r", "\n")
    blocks = [block for block in read_blocks(text) if block.code.strip()]
    if not blocks:
        return "", "" if cut or "```" in text else text.strip()
    best = max(enumerate(blocks), key=lambda numbered: (numbered[1].rank, numbered[0]))[1]
    whole = best.closed or (ends_at_fence and not cut and best is blocks[-1])
    return text[: best.start].strip(), best.code if whole else ""


def read_blocks(text: str) -> list[Block]:
    """The fenced blocks of a text, in order. A program at its beginning that a fence closes and
    none opens counts."""
    lines = text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    blocks: list[Block] = []
    at = 0
    if _BEGINS.match(text.lstrip("\n")):
        end, closed, last = _end(text, lines, starts, 0, "```")
        if closed:
            blocks.append(Block(0, "", "\n".join([*lines[:end], *last]).strip("\n")))
            at = end + 1
    while at < len(lines) and len(blocks) < _MOST:
        line = lines[at].strip()
        if len(line) > 6 and line.startswith("```") and line.endswith("```") and line.strip("`"):
            inline = line.strip("`").strip()
            blocks.append(Block(starts[at], "python", _TAG.sub("", inline, count=1)))
        elif opening := _OPENING.fullmatch(lines[at]):
            end, closed, last = _end(text, lines, starts, at + 1, opening["mark"])
            tag = opening["info"].strip()
            first = _TAG.sub("", tag, count=1)
            begun = [first] if _BEGINS.match(first) else []
            inner = [_within(line, opening["before"]) for line in [*lines[at + 1 : end], *last]]
            blocks.append(Block(starts[at], tag, _dedented([*begun, *inner]), closed))
            at = end if closed else end - 1
        at += 1
    return blocks


def _dedented(lines: list[str]) -> str:
    """The lines without their common indentation. Unlike `textwrap.dedent` it keeps the blanks of
    blank lines, which may be part of a string."""
    indents = [line[: len(line) - len(line.lstrip(" \t"))] for line in lines if line.strip()]
    margin = min(indents, key=len, default="")
    while not all(indent.startswith(margin) for indent in indents):
        margin = margin[:-1]
    return "\n".join(line.removeprefix(margin) for line in lines).strip("\n")


def _end(
    text: str, lines: list[str], starts: list[int], begin: int, mark: str
) -> tuple[int, bool, list[str]]:
    """The end of the block that begins at a line: (line, whether a fence closes it there, the text
    before the fence in that line).

    A fence within a multi-line string is part of the program. A fence that opens another block ends
    this one, which is not closed.
    """
    within = _Strings(text, starts[min(begin, len(lines))])
    doubtful: int | None = None
    for at in range(begin, len(lines)):
        line = lines[at].strip().lstrip("> ")
        place = starts[at] + lines[at].find(line)
        if line.startswith(mark) and not line.strip(mark[0]):
            if not within.long(place):
                return at, True, []
            doubtful = at if doubtful is None else doubtful
        elif (
            line.startswith(("```", "~~~")) and _OPENING.fullmatch(line) and not within.long(place)
        ):
            if line.startswith(mark[0]):
                return at, False, []
        elif line.endswith(mark) and not within.any(place + len(line) - len(mark)):
            return at, True, [lines[at].rstrip()[: -len(mark)].rstrip(mark[0])]
    return (doubtful, True, []) if doubtful is not None else (len(lines), False, [])


class _Strings:
    """The strings and comments of a program, read lazily."""

    def __init__(self, text: str, begin: int) -> None:
        self._found: Iterator[re.Match[str]] = _STRING.finditer(text, begin)
        self._last: re.Match[str] | None = None

    def any(self, place: int) -> bool:
        """Whether a place is within one; call it with ascending places."""
        while (self._last is None or self._last.end() <= place) and (
            found := next(self._found, None)
        ) is not None:
            self._last = found
        return self._last is not None and self._last.start() < place < self._last.end()

    def long(self, place: int) -> bool:
        """Whether a place is within a closed multi-line string."""
        return self.any(place) and self._last is not None and bool(self._last["end"])


def _within(line: str, before: str) -> str:
    """A line of a block without what precedes its opening fence: indentation, as far as the line
    has it, or quote marks."""
    if ">" in before:
        return re.sub(r"^[ \t]*>[ \t]?", "", line)
    indent = len(before.expandtabs(4))
    line = line.expandtabs(4) if indent and line.startswith("\t") else line
    return line[min(indent, len(line) - len(line.lstrip(" "))) :]


def _reads_as_python(code: str) -> bool:
    """Whether the first line that is no comment looks like Python."""
    line = next(
        (
            line
            for each in code.split("\n", 50)
            if (line := each.strip()) and not line.startswith("# ")
        ),
        "",
    )
    return bool(_LOOKS_LIKE_PYTHON.match(line))
