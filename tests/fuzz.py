"""Answers as no model should write them, and as models do: drawn and mutated, the same for the same
seed.

    text = answer(random.Random(7))
"""

from __future__ import annotations

import json
import random

PROGRAMS = [
    "def f(x):\n    return x",
    "from typing import List\n\n\n"
    "def has_close_elements(numbers: List[float], threshold: float) -> bool:\n    return False",
    "class A:\n    def __eq__(self, other):\n        return True\n\n\ndef f(x):\n    return A()",
    'def f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return [x] * 3',
    "def f(x):\n    raise ValueError('\\ud800' * 300)",
    "import sys\nsys.setrecursionlimit(10**6)\n\n\ndef f(x):\n    return f(x)",
    "def f(x):\n    return " + "(" * 300 + "x" + ")" * 300,
    "def f(x):\n    return " + "not " * 3000 + "x",
    "def f(x):\n    return {x: {x: [x, (x, 'é\\x00\\u202e')]}}",
    "import os\n\n\ndef f(x):\n    os.write(3, b'{\"outcome\": 1}\\n' * 50)\n    return x",
    "f = lambda x: 10**5000",
    "raise SystemExit(3)",
    "x = 1\x00",
]
TEXTS = [
    "Thought: I look first.\nAction: go north",
    "**Thought:** hm\n\n**Action:**\n```\ngo south\n```",
    "Action 1: go east\nObservation: You see a lamp.\nThought: b\nAction 2: take lamp",
    "<think>Action: wait</think>\n### Action: go west",
    "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>go",
    "I cannot do that.",
    "",
    "\x1b[2J\x1b]0;title\x07\u202ego\u202c",
    "钥匙 مفتاح กุญแจ 🗝️ می‌خواهم",
]
REFLECTIONS = [
    '{"step": 0, "experience": "Go north first."}',
    '{"step": 1, "experience": "raw\nbreaks\tand \\ud800 halves",}',
    '{"reflection": {"step": 0.0, "experience": "wrapped"}}',
    '<think>{"step": 0, "experience": "draft"}</think>{"step": 0, "experience": "final"}',
    "{'step': '0', 'experience': 'it is \"so\"'}",
    '```json\n{"step": 0, "experience": "fenced {brace}"}\n```',
    '{"step": ' + "1" * 5000 + ', "experience": "x"}',
    '{"step": ' + "[" * 3000,
    '{"a": ' * 2000 + "1" + "}" * 2000,
]
PIECES = [
    "\ud800",
    "\udfff",
    "\ud83d\ude00",
    "\x00",
    "\x1b[31m",
    "\u202e",
    "\u2028",
    "\ufeff",
    "\r\n",
    "\n",
    "\t",
    " " * 200,
    "```",
    "~~~",
    "```python\n",
    "<think>",
    "</think>",
    "Action:",
    "Thought:",
    "Observation:",
    "{",
    "}",
    "[",
    "]",
    '"',
    "'",
    '"""',
    "\\",
    "\\u12",
    "{observation}",
    "{{",
    "<|im_end|>",
    "<|end|>",
    "<|user|>",
    "\ue0f1leafe\ue0f2",
    "9" * 30,
    "-1",
    "NaN",
    "null",
    "a" * 2000,
    "é" * 700,
    "def f(x): return x\n",
    "(",
    ")" * 50,
    "<script>alert(1)</script>",
    "&amp;",
    "%s%n",
    "../../etc",
    "; DROP TABLE turns",
]


def answer(draw: random.Random, reflect: bool = False) -> str:
    """One answer: a form of its kind, or any other, mutated up to five times."""
    kind = draw.random()
    if kind < 0.1:
        text = "".join(
            chr(
                draw.choice((draw.randrange(128), draw.randrange(0x3000), draw.randrange(0x110000)))
            )
            for _ in range(draw.randrange(60))
        )
    elif kind < 0.2:
        text = json.dumps(_value(draw, 4), ensure_ascii=draw.random() < 0.5)
    elif kind < (0.8 if reflect else 0.3):
        text = draw.choice(REFLECTIONS)
    elif kind < (0.9 if reflect else 0.6):
        text = draw.choice(TEXTS)
    else:
        text = draw.choice(
            ("{}", "```python\n{}\n```", "So.\n```\n{}\n```\nDone.", "```python\n{}")
        ).replace("{}", draw.choice(PROGRAMS))
    for _ in range(draw.choice((0, 0, 1, 1, 2, 3, 5))):
        text = _mutated(text, draw)
    return text[:20_000]


def _mutated(text: str, draw: random.Random) -> str:
    a, b = sorted((draw.randrange(len(text) + 1), draw.randrange(len(text) + 1)))
    other = draw.choice((*TEXTS, *REFLECTIONS, *PROGRAMS))
    return draw.choice(
        (
            text[:a] + draw.choice(PIECES) + text[a:],
            text[:a] + draw.choice(PIECES) * draw.choice((2, 50)) + text[b:],
            text[:a] + text[b:],
            text[:b],
            text[:b] + text[a:],
            text[:a] + other + text[b:],
            text + "\n" + other,
            text[:a] + text[a:b].swapcase() + text[b:],
            text[:a] + text[a:b][::-1] + text[b:],
        )
    )


def _value(draw: random.Random, depth: int) -> object:
    kind = draw.randrange(8 if depth else 5)
    if kind < 5:
        return draw.choice(
            (
                None,
                True,
                draw.randrange(-9, 99),
                draw.random() * 1e300,
                float("nan"),
                draw.choice(PIECES),
                draw.choice(TEXTS),
            )
        )
    if kind == 5:
        return [_value(draw, depth - 1) for _ in range(draw.randrange(4))]
    keys = ("step", "experience", "action", "thought", draw.choice(PIECES))
    return {draw.choice(keys): _value(draw, depth - 1) for _ in range(draw.randrange(5))}
