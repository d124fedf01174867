"""From wording to text and back: templates are filled once, and no answer of a model gives a step
out of range."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import UserError
from leafe.prompts import (
    REFLECTION_SCHEMA,
    Prompts,
    PromptSet,
    UnusableReflection,
    load_prompt_set,
    prompt_sets,
)
from leafe.prompts._set import NAMES, fill

JSON = Prompts(PromptSet(name="j"))
PATTERN = Prompts(
    PromptSet(
        name="p",
        reflection="pattern",
        reflection_pattern=r"^s(?P<step>-?\w+) : (?P<experience>.*)$",
    )
)
braces = st.lists(
    st.sampled_from([*("{" + name + "}" for name in NAMES), "{other}", "{", "}", "{{", " x "])
).map("".join)


@given(braces, st.dictionaries(st.sampled_from(NAMES), braces))
def test_fill_never_reads_what_it_put_in(template: str, values: dict[str, str]) -> None:
    expected, rest = "", template
    while rest:
        name = next((n for n in values if rest.startswith("{" + n + "}")), None)
        expected += rest[0] if name is None else values[name]
        rest = rest[1:] if name is None else rest[len(name) + 2 :]
    assert fill(template, values) == expected


@pytest.mark.parametrize("prompts", [JSON, PATTERN], ids=["json", "pattern"])
@given(
    text=st.text()
    | st.from_regex(r"s-?\d+ : .*")
    | st.from_regex(r'\{"step": -?\d+, "experience": "\w*"\}'),
    steps=st.integers(1, 30),
)
def test_no_text_gives_a_step_out_of_range_or_an_empty_experience(
    prompts: Prompts, text: str, steps: int
) -> None:
    try:
        step, note = prompts.parse_reflection(text, steps)
    except UnusableReflection:
        return
    assert 0 <= step < steps
    assert note
    assert note == note.strip()


@given(
    st.integers(),
    st.text(),
    st.integers(1, 30),
    st.sampled_from(["{}", "So: {}", "```json\n{}\n```", "[1] {{not json {}"]),
)
def test_a_json_reflection_is_read_wherever_it_stands(
    step: int, note: str, steps: int, around: str
) -> None:
    text = around.replace("{{", "{").replace(
        "{}", json.dumps({"step": step, "experience": note}), 1
    )
    if 0 <= step < steps and note.strip():
        assert JSON.parse_reflection(text, steps) == (step, note.strip())
    else:
        with pytest.raises(UnusableReflection):
            JSON.parse_reflection(text, steps)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no idea", "no JSON object"),
        ("[1, 2]", "no JSON object"),
        ('{"step": 1}', "empty"),
        ('{"step": 1, "experience": "  "}', "empty"),
        ('{"step": 1, "experience": 7}', "empty"),
        ('{"step": true, "experience": "x"}', "not a number"),
        ('{"step": 1.5, "experience": "x"}', "not a number"),
        ('{"step": null, "experience": "x"}', "not a number"),
        ('{"step": 3, "experience": "x"}', "outside 0..2"),
        ('{"step": -1, "experience": "x"}', "outside 0..2"),
    ],
)
def test_an_unusable_reflection_says_why(text: str, why: str) -> None:
    with pytest.raises(UnusableReflection, match=why):
        JSON.parse_reflection(text, 3)


def test_a_step_in_quotes_is_a_step() -> None:
    assert JSON.parse_reflection('{"step": "2", "experience": "x"}', 3) == (2, "x")
    assert PATTERN.parse_reflection("s2 : use lamp", 3) == (2, "use lamp")


def test_the_schema_goes_with_json_only() -> None:
    schema = JSON.reflection_schema(5)
    assert schema is not None
    assert schema["properties"]["step"] == {**REFLECTION_SCHEMA["properties"]["step"], "maximum": 4}
    assert schema["required"] == REFLECTION_SCHEMA["required"]
    assert PATTERN.reflection_schema(5) is None


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("plain", "  take lamp\nnow ", ("", "take lamp\nnow")),
        ("line", "take lamp\nand more", ("", "take lamp")),
        ("react", "Thought: it is dark\nAction: take lamp", ("it is dark", "take lamp")),
        ("react", "**Thought:** hm\nAction: `go`\nAction: stay", ("hm", "go")),
        ("react", "take lamp", ("", "take lamp")),
        (
            "code",
            "Here:\n```python\nx = 1\n```\nor\n```python\ny = 2\n```",
            ("Here:\n```python\nx = 1\n```\nor", "y = 2"),
        ),
        ("code", "```python\ndef f():\n    return 1", ("", "")),
        ("code", "x = 1", ("", "x = 1")),
    ],
)
def test_how_an_action_is_read(kind: str, text: str, expected: tuple[str, str]) -> None:
    assert Prompts(PromptSet(name="t", action=kind)).parse_action(text) == expected  # type: ignore[arg-type]


@given(st.sampled_from(["plain", "line", "react", "code"]), st.text())
def test_any_text_is_some_action(kind: str, text: str) -> None:
    _, action = Prompts(PromptSet(name="t", action=kind)).parse_action(text)  # type: ignore[arg-type]
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    assert any(action in said for said in (text, lines, lines.expandtabs(4)))


@pytest.mark.parametrize("name", prompt_sets())
def test_a_built_in_set_is_valid_and_named_as_its_file(name: str) -> None:
    assert load_prompt_set(name).name == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('name = "x"\nsistem = "y"', "sistem"),
        ('name = "x"\naction = "dance"', "action"),
        ("name = ", "cannot be read"),
        ('name = "x"\nreflection = "pattern"\nreflection_pattern = "s(.*)"', "reflection_pattern"),
    ],
)
def test_a_bad_set_is_the_users_mistake(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as refused:
        load_prompt_set(str(path))
    assert "mine.toml" in str(refused.value)


def test_an_unknown_set_names_those_there_are() -> None:
    with pytest.raises(UserError, match="plain"):
        load_prompt_set("no-such-set")
