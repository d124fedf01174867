"""The forms in which models really write: read where there is no doubt, in time that does not
explode, and never a part for the whole."""

from __future__ import annotations

import json
import time
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.prompts import Prompts, PromptSet, UnusableReflection, load_prompt_set
from leafe.prompts._answers import split_drafts

REACT = Prompts(PromptSet(name="react"))
LINES = Prompts(PromptSet(name="lines", multiline=True))
CODE = Prompts(PromptSet(name="code", action="code"))
STOPPED = Prompts(PromptSet(name="stopped", action="code", stop=("\n```",)))
GO = "go to desk 1"
F = "def f():\n    return 1"


# drafts

DRAFTS = {
    "think": "<think>{}</think>",
    "thinking": "<thinking>\n{}\n</thinking>\n",
    "capitals": "<THINK>{}</THINK>",
    "no opening": "{}\n</think>\n\n",
    "two": "<think>{0}</think><think>{0}</think>",
    "nested": "<think>a <think>{0}</think> b {0}</think>",
    "attributes": '<think effort="low">{}</think>',
    "mistral": "[THINK]{}[/THINK]",
    "kimi": "◁think▷{}◁/think▷",
    "thought marks": "<|begin_of_thought|>{}<|end_of_thought|>",
    "command": "<|START_THINKING|>{}<|END_THINKING|>",
    "channels": "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final"
    "<|message|>",
    "gemma": "<|channel>thought\n{}<channel|>",
    "stripped channels": "analysis{}\nassistantfinal",
    "prose before": "Let me see.\n<think>{}</think>\n",
}
WRITTEN = {
    "react": (REACT, "Thought: bad\nAction: bad", f"Thought: t\nAction: {GO}", GO),
    "code": (CODE, "```python\ndef bad(): pass\n```", f"```python\n{F}\n```", F),
    "open code": (CODE, "```python\ndef bad(): pass", f"```python\n{F}\n```", F),
    "plain": (Prompts(PromptSet(name="plain", action="plain")), "bad", GO, GO),
    "line": (Prompts(PromptSet(name="line", action="line")), "bad", f"{GO}\nand so on", GO),
}


@pytest.mark.parametrize(("draft", "kind"), list(product(DRAFTS, WRITTEN)))
def test_a_draft_is_no_answer(draft: str, kind: str) -> None:
    if (draft, kind) == ("prose before", "plain") or (draft, kind) == ("prose before", "line"):
        pytest.skip("prose is an action there")
    prompts, drafted, final, expected = WRITTEN[kind]
    thought, action = prompts.parse_action(DRAFTS[draft].format(drafted) + final)
    assert action == expected
    assert "bad" in thought


@pytest.mark.parametrize(
    "opening",
    [
        "<think>",
        "<thinking>\n",
        "[THINK]",
        "<|channel|>analysis<|message|>",
        "<|channel>thought\n",
        "◁think▷",
    ],
)
@pytest.mark.parametrize("kind", WRITTEN)
def test_a_draft_that_was_cut_is_no_answer_either(opening: str, kind: str) -> None:
    prompts, drafted, *_ = WRITTEN[kind]
    assert prompts.parse_action(opening + drafted)[1] == ""
    with pytest.raises(UnusableReflection):
        REACT.parse_reflection(opening + '{"step": 0, "experience": "draft"}', 3)


@pytest.mark.parametrize("draft", DRAFTS)
def test_a_drafted_reflection_is_none(draft: str) -> None:
    text = DRAFTS[draft].replace("{0}", "{}").replace("{}", '{"step": 0, "experience": "draft"}')
    assert REACT.parse_reflection(text + '{"step": 2, "experience": "final"}', 3) == (2, "final")
    with pytest.raises(UnusableReflection):
        REACT.parse_reflection(text, 3)


@pytest.mark.parametrize(
    "program",
    [
        's = "<think>a</think>"',
        're.sub(r"<think>.*?</think>", "", s)',
        '"""A <think> in a text </think>"""\nx = 1',
        "s.split('</think>')[-1]",
    ],
)
def test_a_program_may_speak_of_such_marks(program: str) -> None:
    assert CODE.parse_action(f"```python\n{program}\n```")[1] == program


# actions

HEADS = [
    "Action: {}",
    "action : {}",
    "ACTION: {}",
    "Action:{}",
    "Action 1: {}",
    "Action #2: {}",
    "Action[3]: {}",
    "Action (4): {}",
    "**Action:** {}",
    "**Action**: {}",
    "**Action: {}**",
    "**Action 2:** {}",
    "*Action:* {}",
    "__Action__: {}",
    "### Action: {}",
    "#### **Action:** {}",
    "- Action: {}",
    "* Action: {}",
    "- **Action:** {}",
    "2. Action: {}",
    "2) **Action**: {}",
    "> Action: {}",
    "• Action: {}",
    "Action：{}",
    "  Action: {}",
    "Action: `{}`",
    "Action: **{}**",
    "Action: ```{}```",
    "Action:\n{}",
    "Action:\n\n  {}",
    "**Action:**\n{}",
    "### Action\n{}",
    "### Action:\n{}",
    "**Action**\n{}",
    "Action:\n```\n{}\n```",
    "Action:\n\n```text\n{}\n```",
    "Action:\n~~~\n{}\n~~~",
    "Action:\n`{}`",
    "```\nAction: {}\n```",
    "<answer>Action: {}</answer>",
]
TAILS = [
    "",
    "\n",
    "<|im_end|>",
    "\nObservation: You see a mug 1.\nThought: b\nAction: take mug 1",
    "\n\n**Observation:** x\n\n**Action:** take mug 1",
    "\n[Step 2]\nYou see a mug.\nAction: take mug 1",
    "\nAction: take mug 1",
    "\n### Observation\nx",
]
THOUGHTS = [
    "",
    "Thought: a\n",
    "Thought: a\n\n",
    "**Thought:** a\n\n",
    "Thought 1: a\n",
    "- Thought: a\n",
    "### Thought\na\n",
    "I look at my last Action: it failed.\n",
]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("head", HEADS)
def test_the_first_action_is_read_in_every_form(head: str, ends: str) -> None:
    for before, after in product(THOUGHTS, TAILS):
        if (head.startswith("<answer>") and (before or after)) or (
            head.endswith("```") and not after.startswith(("\n", "<")) and after
        ):
            continue
        text = (before + head.format(GO) + after).replace("\n", ends)
        assert REACT.parse_action(text)[1] == GO, text
        if "Observation" in after or not after.strip():
            assert LINES.parse_action(text)[1] == GO, text


@pytest.mark.parametrize(
    "text",
    [
        "Thought: a Action: go to desk 1",
        "Action: go to desk 1 Observation: You see",
        "Action: go to desk 1 Thought: hm",
    ],
)
def test_labels_within_a_line(text: str) -> None:
    assert REACT.parse_action(text)[1] == GO


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        ("Thought: a\nAction: x", "a"),
        ("**Thought:** a\n\n**Action:** x", "a"),
        ("### Thought\na\n### Action\nx", "a"),
        ("1. Thought: a\n2. Action: x", "a"),
        ("Action: x", ""),
    ],
)
def test_the_thought_is_what_stands_before(text: str, thought: str) -> None:
    assert REACT.parse_action(text) == (thought, "x")


@pytest.mark.parametrize(
    "text",
    ["Actions: look, go", "Action Input: x", "My plan of action: none", "I act.", "Interaction: x"],
)
def test_what_names_no_action_is_taken_whole(text: str) -> None:
    assert REACT.parse_action(text) == ("", text)


@pytest.mark.parametrize("text", ["Action:", "Thought: a\nAction:\nObservation: x", "Action:\n\n"])
def test_an_action_without_words_is_empty(text: str) -> None:
    assert REACT.parse_action(text)[1] == ""


def test_what_stands_in_quotes_or_ticks_is_left_alone() -> None:
    assert REACT.parse_action('Action: say "Action: x"')[1] == 'say "Action: x"'
    assert REACT.parse_action("Action: run `ls` now")[1] == "run `ls` now"


def test_actions_of_several_lines_where_the_set_allows_them() -> None:
    text = "Thought: a\nAction:\nline 1\n\n  line 2\nObservation: x\nAction: y"
    assert LINES.parse_action(text) == ("a", "line 1\n\n  line 2")
    assert REACT.parse_action(text) == ("a", "line 1")
    assert LINES.parse_action("Action: a\nb")[1] == "a\nb"
    assert LINES.parse_action("Action:\n```sh\na\n\n  b\n```\nThat is all.")[1] == "a\n\n  b"


# programs

FENCED = {
    "plain": "```python\n{}\n```",
    "no tag": "```\n{}\n```",
    "blank before the tag": "``` python\n{}\n```",
    "blanks after": "```python  \n{}\n```  ",
    "attribute": '```python title="a.py"\n{}\n```',
    "braces": "```{{python}}\n{}\n```",
    "pandoc": "```{{.python .numberLines}}\n{}\n```",
    "capital": "```Python3\n{}\n```",
    "file name": "```solution.py\n{}\n```",
    "tildes": "~~~python\n{}\n~~~",
    "four": "````python\n{}\n````",
    "longer closer": "```python\n{}\n`````",
    "stray closer": "{}\n```",
    "stray closer and text": "{}\n```\nThis function returns one.",
    "two closers": "```python\n{}\n```\n```",
    "closed in the line": "```python\n{}```",
    "indented closer": "```python\n{}\n    ```",
    "on the fence's line": "```python {}\n```",
    "in Markdown": "````markdown\n```python\n{}\n```\n````",
    "answer": "<answer>\n```python\n{}\n```\n</answer>",
    "ended turn": "```python\n{}\n```<|im_end|>",
}
BESIDE = {
    "nothing": "{}",
    "prose": "I count.\n{}\nIt returns 1.",
    "output": "{}\nOutput:\n```\n1\n```",
    "output tag": "{}\nOutput:\n```text\n1\n```",
    "usage": "{}\nUsage:\n```python\nprint(f())  # 1\n```",
    "session": "{}\nThen:\n```python\n>>> f()\n1\n```",
    "shell": "{}\nRun it:\n```bash\npython a.py\n```",
    "tests": "{}\nTests:\n```python\ndef test_f():\n    assert f() == 1\n```",
    "usage first": "It is used so:\n```python\nf()\n```\n{}",
    "json": "{}\n```json\n[1]\n```",
    "draft": "First:\n```python\ndef f():\n    return 0\n```\nBetter:\n{}",
    "usage cut": "{}\nUsage:\n```python\nprint(f(",
}


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("fence", FENCED)
def test_the_program_is_read_in_every_form_of_fence_and_beside_anything(
    fence: str, beside: str, ends: str
) -> None:
    if fence.startswith("stray") and ("first" in beside or beside in ("draft", "prose")):
        pytest.skip("without an opening fence nothing says where the program begins")
    if fence in ("two closers", "answer", "ended turn", "in Markdown") and beside != "nothing":
        pytest.skip("stands around all of the answer")
    text = BESIDE[beside].format(FENCED[fence].format(F)).replace("\n", ends)
    assert CODE.parse_action(text)[1] == F


@pytest.mark.parametrize("indent", [" ", "   ", "    ", "        ", "\t"])
def test_an_indented_fence(indent: str) -> None:
    text = (
        "1. Here:\n"
        + "\n".join(indent + line for line in f"```python\n{F}\n```".split("\n"))
        + "\n2. Done."
    )
    assert CODE.parse_action(text)[1] == F


def test_a_quoted_fence_and_an_indented_program() -> None:
    assert CODE.parse_action("> ```python\n> def f():\n>     return 1\n> ```")[1] == F
    assert CODE.parse_action("```python\n    def f():\n        return 1\n```")[1] == F


@pytest.mark.parametrize(
    "program",
    [
        'def f(s="```"):\n    return 1',
        'def f():\n    """\n    ```\n    f()\n    ```\n    """\n    return 1',
        '"""\n```\nf()\n```\n"""\ndef f():\n    return 1',
        "def f():\n    '''\n```python\nf()\n```\n    '''\n    return 1",
        "def f():\n    # ends with ```\n    return 1",
        "x = '''\n~~~\n'''\ny = \"\"\"\n```\n\"\"\"",
        'def f():\n    return "don\'t" + \'"""\'\n\ndef g():\n    """\n    ```\n    """',
    ],
)
def test_backticks_within_the_program(program: str) -> None:
    for around in (
        "```python\n{}\n```",
        "Here:\n```\n{}\n```\nDone.",
        "```python\n{}\n```\nOutput:\n```\n1\n```",
    ):
        assert CODE.parse_action(around.replace("{}", program))[1] == program


def test_a_contest_program_beside_its_input_and_output() -> None:
    program = "n = int(input())\nprint(n)"
    for text in (
        f"```python\n{program}\n```\nInput:\n```\n3\n```\nOutput:\n```\n3\n```",
        f"Input:\n```\n3\n```\n```\n{program}\n```\nOutput:\n```\n3\n```",
    ):
        assert CODE.parse_action(text)[1] == program


UNCLOSED = [
    f"```python\n{F}",
    f"So:\n```\n{F}\n",
    f"~~~python\n{F}",
    f"```python\n{F}\n\nUsage:\n```python\nf()\n```",
    f"```python\ndef f():\n    return 0\n```\nBetter:\n```python\n{F}",
]


@pytest.mark.parametrize("text", UNCLOSED)
def test_an_open_block_is_no_program(text: str) -> None:
    assert CODE.parse_action(text)[1] == ""
    assert CODE.parse_action(text, cut=True)[1] == ""


def test_a_stop_text_may_be_what_closes_a_block() -> None:
    text = f"So:\n```python\n{F}"
    assert STOPPED.parse_action(text) == ("So:", F)
    assert STOPPED.parse_action(text, cut=True)[1] == ""


def test_a_cut_answer_without_a_fence_is_no_program() -> None:
    assert CODE.parse_action(F) == ("", F)
    assert CODE.parse_action(F, cut=True)[1] == ""
    assert CODE.parse_action(f"```python\n{F}\n```\nIt retu", cut=True)[1] == F


# reflections

FORMS = {
    "json": '{"step": 2, "experience": "first"}',
    "in a fence": '```json\n{"step": 2, "experience": "first"}\n```',
    "trailing comma": '{"step": 2, "experience": "first",}',
    "float": '{"step": 2.0, "experience": "first"}',
    "text": '{"step": "2", "experience": "first"}',
    "named": '{"step": "Step 2", "experience": "first"}',
    "wrapper": '{"reflection": {"step": 2, "experience": "first"}}',
    "list": '[{"step": 2, "experience": "first"}]',
    "deep": '{"a": [{"b": {"step": 2, "experience": "first"}}]}',
    "call": '{"name": "reflect", "arguments": "{\\"step\\": 2, \\"experience\\": \\"first\\"}"}',
    "single quotes": "{'step': 2, 'experience': 'first'}",
    "no quotes": '{step: 2, experience: "first"}',
    "comma missing": '{"step": 2 "experience": "first"}',
    "capitals": '{"Step": 2, "Experience": "first"}',
    "lines": '{\n  "step": 2,\n  "experience": "first"\n}',
    "curly quotes": "{“step”: 2, “experience”: “first”}",
    "template": '{"step": <number>, ...} {"step": 2, "experience": "first"}',
    "wrapper with a comma": '{"reflection": {"step": 2, "experience": "first"},}',
    "more keys": '{"why": "x", "step": 2, "experience": "first", "sure": true}',
}
AROUND = [
    "{}",
    "It is {}.",
    "The state was {{}}. {}",
    '{{"step": 0, "experience": "draft"}}\nNo: {}',
    '{{"a": 1}} {}',
    "{} I am sure.",
    "The set {{1, 2}}: {}",
]


@pytest.mark.parametrize("form", FORMS)
def test_a_reflection_is_read_in_every_form(form: str) -> None:
    for around in AROUND:
        assert REACT.parse_reflection(around.format(FORMS[form]), 3) == (2, "first"), around


@pytest.mark.parametrize(
    ("written", "note"),
    [
        ("first\nthen", "first\nthen"),
        ("a\ttab", "a\ttab"),
        ("a {brace} in it", "a {brace} in it"),
        ("half \\ud800 pair", "half \ufffd pair"),
        ("pair \\ud83d\\ude00", "pair \U0001f600"),
        ('say \\"hi\\"', 'say "hi"'),
        ("it's", "it's"),
        ("\\u00e9t\\u00e9", "été"),
    ],
)
def test_what_an_experience_says_is_kept(written: str, note: str) -> None:
    for form in ('{"step": 1, "experience": "%s"}', '{"step": 1, "experience": "%s",}'):
        assert REACT.parse_reflection(form % written, 3) == (1, note)


UNREADABLE = [
    '{"step": 1, "experience": "cut off',
    '{"step": 1, "experience": "cut"',
    '{"step": 0, "experience": "draft"} {"step": 1, "experience": "cut',
    '{"step": 1, "experience": "use } now",}',
    '{"step": 1, "experience": "a {b}',
    '{"step": 1, "experience": "a" "b"}',
    '{"step": 1.5, "experience": "x"}',
    '{"step": ' + "1" * 5000 + ', "experience": "x"}',
    '{"step": "' + "1" * 5000 + '", "experience": "x"}',
    '{"step": -' + "1" * 5000 + ', "experience": "x"}',
    '{"step": 1e999, "experience": "x"}',
    '{"step": NaN, "experience": "x"}',
    '{"step": Infinity, "experience": "x"}',
    '{"step": 1' + "0" * 400 + '.0, "experience": "x"}',
    '{"step": ' + "[" * 3000,
    '{"a":' * 3000,
    '{"step":' * 3000,
    '{"step": ' + '{"a":' * 2000 + "1" + "}" * 2001,
    "[" * 100_000,
    '{"' * 50_000,
    '"' * 50_000,
    '{"step": "", "experience": "x"}',
    '{"step": [1], "experience": "x"}',
    '{"step": 1, "experience": ["x"]}',
    "{step",
    "",
    "{}",
    '{"step": 1}',
]


@pytest.mark.parametrize("text", UNREADABLE, ids=range(len(UNREADABLE)))
def test_what_cannot_be_read_is_unusable_with_a_short_reason(text: str) -> None:
    began = time.process_time()
    with pytest.raises(UnusableReflection) as refused:
        REACT.parse_reflection(text, 3)
    assert 0 < len(str(refused.value)) < 120
    assert time.process_time() - began < 10


@given(
    st.integers(0, 5),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=60),
    st.sampled_from([",", " ,\n", ""]),
)
def test_a_comma_too_many_never_changes_a_word(step: int, note: str, comma: str) -> None:
    text = f'{{"step": {step}, "experience": {json.dumps(note, ensure_ascii=False)}{comma}}}'
    try:
        assert REACT.parse_reflection(text, 6) == (step, note.strip())
    except UnusableReflection:
        assert comma or not note.strip()


# everything

PIECES = [
    "<think>",
    "</think>",
    "```",
    "```python\n",
    "~~~",
    "\n",
    " ",
    "\t",
    "Action:",
    "Thought:",
    "Observation: ",
    "**",
    "###",
    '"""',
    "'''",
    "\\",
    '"',
    "{",
    "}",
    "[",
    "]",
    '{"step": 1, "experience": "x"}',
    '"step":',
    ",",
    "def f():\n    return 1\n",
    "- ",
    "> ",
    "1. ",
    "\r",
    "\u202e",
    "<|channel|>",
    "final",
    "x",
    "\x00",
    "#",
    "_",
    "(",
    "|",
]


@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join), st.booleans())
def test_any_text_is_some_action_and_some_reflection_or_none(text: str, cut: bool) -> None:
    for prompts in (REACT, LINES, CODE, STOPPED):
        thought, action = prompts.parse_action(text, cut)
        assert isinstance(thought, str)
        assert action == action.strip("\n")
        try:
            step, note = prompts.parse_reflection(text, 3)
        except UnusableReflection:
            continue
        assert 0 <= step < 3
        assert note


@pytest.mark.parametrize("piece", PIECES)
def test_no_answer_takes_long_to_read(piece: str) -> None:
    began = time.process_time()
    for text in (
        piece * (60_000 // len(piece)),
        "```python\n" + piece * 6_000,
        "Action: " + piece * 6_000,
        "<think>" + piece * 6_000,
    ):
        split_drafts(text)
        for prompts in (REACT, LINES, CODE):
            prompts.parse_action(text)
    assert time.process_time() - began < 60  # a pattern that backtracks takes hours


@pytest.mark.parametrize("indent", ["", "  ", "    "])
def test_blank_lines_of_a_program_keep_their_blanks(indent: str) -> None:
    """They may stand in a text, whose value is another without them."""
    lines = ["def f():", '    return """a', "    ", "\t", '  b"""']
    block = "\n".join(indent + line for line in ["```python", *lines, "```"])
    prompts = Prompts(load_prompt_set("mbpp"), "")
    assert prompts.parse_action(f"So.\n{block}")[1] == "\n".join(lines)
