"""Chat lines, good and bad: what is taken is taken word for word, and nothing is left out without a
sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import Message, UserError
from leafe.data import CHAT_PROMPTS, LoggedEpisode, Problems, as_logged, read_log
from leafe.data.importing import _read as reading
from leafe.distill import build, preset
from leafe.prompts import History, Prompts, load_prompt_set
from tests.data.importing.logs import write_lines

CHAT = Prompts(load_prompt_set(CHAT_PROMPTS))
text = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=30)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    """A system message or none, then user and assistant in turn; it may end with either."""
    said = [{"role": "system", "content": draw(text)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 5))):
        said += [
            {"role": "user", "content": draw(text)},
            {"role": "assistant", "content": draw(text)},
        ]
    return said + ([{"role": "user", "content": draw(text)}] if draw(st.booleans()) else [])


@given(logs=st.lists(st.tuples(conversations(), st.booleans()), min_size=1, max_size=6))
def test_training_prompts_are_the_logs_own_messages(
    logs: list[tuple[list[dict[str, str]], bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every assistant message of a success is a sample whose prompt is the messages before it, word
    for word, and nothing else is a sample."""
    path = write_lines(
        tmp_path_factory.mktemp("chat") / "a.jsonl",
        [{"messages": said, "success": won} for said, won in logs],
    )
    problems = Problems()
    found = as_logged(read_log(path, "chat", problems), problems=problems)
    data = build(found.trees, CHAT, preset("rft"), 0)
    mine = {(s.messages, s.answer) for s in data.samples}
    theirs = set()
    for said, won in logs:
        messages = tuple(Message(m["role"], m["content"]) for m in said)  # type: ignore[arg-type]
        if won:
            theirs |= {(messages[:at], m) for at, m in enumerate(messages) if m.role == "assistant"}
    assert mine == theirs
    assert found.episodes + problems.left_out.total() == len(logs)
    assert problems.left_out.keys() <= {"the same again"}
    assert len(data.samples) + sum(data.duplicates.values()) >= len(theirs)


def one(row: Any, tmp_path: Path) -> tuple[list[LoggedEpisode], Problems]:
    """The line as it is read, after one that is right."""
    good = {
        "messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "gone"}],
        "reward": 1,
    }
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        json.dumps(good).encode()
        + b"\n"
        + (row if isinstance(row, bytes) else json.dumps(row).encode())
        + b"\n"
        + json.dumps(good).encode()
    )
    problems = Problems()
    return list(read_log(path, "chat", problems)), problems


USER, ACT = {"role": "user", "content": "go"}, {"role": "assistant", "content": "gone"}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (b'{"messages": [', "it is not JSON"),
        (b"[1, 2]", "it is JSON, and no object"),
        (b'{"messages": "\xff\xfe"}', "it is not UTF-8 (byte 14)"),
        (b'{"a": ' * 5000 + b"1" + b"}" * 5000, "it is not JSON"),
        ({"reward": 1}, "it has no list of messages"),
        ({"messages": [], "reward": 1}, "it has no list of messages"),
        ({"messages": "go", "reward": 1}, "it has no list of messages"),
        ({"messages": ["go"], "reward": 1}, "message 0 is no object"),
        ({"messages": [{"content": "go"}, ACT], "reward": 1}, "message 0 has no role"),
        (
            {"messages": [{"from": "human", "value": "go"}, ACT], "reward": 1},
            "message 0 has no role",
        ),
        (
            {"messages": [{"role": "boss", "content": "go"}, ACT], "reward": 1},
            "message 0 has the role 'boss'",
        ),
        ({"messages": [USER, ACT]}, "it has neither a reward nor success"),
        (
            {"messages": [USER, ACT], "reward": "high"},
            "its reward is 'high', and not a finite number",
        ),
        (
            (
                b'{"messages": [{"role": "user", "content": "go"}, {"role": "assistant", '
                b'"content": "x"}], "reward": NaN}'
            ),
            "its reward is 'nan'",
        ),
        ({"messages": [USER, ACT], "success": "yes"}, "its success is 'yes'"),
        ({"messages": [USER], "reward": 1}, "it has no assistant message"),
        (
            {"messages": [ACT, USER], "reward": 1},
            "there is no message before the first assistant message",
        ),
        ({"messages": [USER, ACT, ACT], "reward": 1}, "messages 1 and 2 are both the assistant's"),
        (
            {
                "messages": [USER | {"content": [{"type": "image_url", "image_url": "x"}]}, ACT],
                "reward": 1,
            },
            "message 0 holds 'image_url'",
        ),
        (
            {"messages": [USER | {"content": 7}, ACT], "reward": 1},
            "message 0 is neither a text nor a list of parts",
        ),
        ({"messages": [USER, ACT | {"content": "\ud800"}], "reward": 1}, "half a surrogate pair"),
        ({"messages": [USER, ACT | {"tokens": [1, -2]}], "reward": 1}, "the tokens of message 1"),
        (
            {"messages": [USER, ACT | {"tool_calls": "x"}], "reward": 1},
            "the tool_calls of message 1",
        ),
        (
            {"messages": [USER, ACT], "reward": 1, "task": [1]},
            "its task is neither an id nor an object",
        ),
        (
            {"messages": [USER, ACT], "reward": 1, "task": {"id": "a", "payload": 3}},
            "the payload of its task",
        ),
    ],
)
def test_a_bad_line_is_left_out_and_said(row: Any, why: str, tmp_path: Path) -> None:
    found, problems = one(row, tmp_path)
    assert [each.where for each in found] == ["a.jsonl, line 1", "a.jsonl, line 3"]
    assert problems.left_out.total() == 1
    assert len(problems.sentences) == 1
    assert problems.sentences[0].startswith("a.jsonl, line 2: ")
    assert why in problems.sentences[0]


def test_a_line_that_is_too_long_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_LINE", 1000)
    found, problems = one(
        {"messages": [USER | {"content": "x" * 5000}, ACT], "reward": 1}, tmp_path
    )
    assert len(found) == 2
    assert problems.left_out == {"a line that is too long": 1}


def test_sentences_are_bounded_and_counts_are_not(tmp_path: Path) -> None:
    good = {"messages": [USER, ACT], "reward": 1}
    path = write_lines(
        tmp_path / "a.jsonl",
        [good] + [{"messages": [USER, ACT], "reward": "x" * 10_000}] * 300 + [[]] * 2,
    )
    problems = Problems()
    assert len(list(read_log(path, "chat", problems))) == 1
    assert problems.left_out == {"a reward that is no number": 300, "no object": 2}
    assert len(problems.sentences) == 7
    assert problems.unreported == 295
    assert max(map(len, problems.sentences)) <= 400


def test_a_mark_of_utf8_and_other_line_ends(tmp_path: Path) -> None:
    good = json.dumps({"messages": [USER, ACT], "reward": 1}).encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\r\n" + good + b"\r\n")
    assert len(list(read_log(path, "chat", Problems()))) == 2


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "holds no episode in the format 'chat'"),
        (b"\n\n", "It is empty"),
        (b"hello\n", "The first: a.jsonl, line 1: it is not JSON"),
        ('{"a": 1}\n'.encode("utf-16"), "it is UTF-16"),
        (b"PK\x03\x04....", "is no file of JSON lines"),
        (b"PAR1....", "is no file of JSON lines"),
    ],
)
def test_a_file_of_which_nothing_can_be_read_is_the_users_mistake(
    data: bytes, why: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.jsonl") as raised:
        list(read_log(tmp_path / "a.jsonl", "chat", Problems()))
    assert why in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.jsonl", tmp_path):
        with pytest.raises(UserError, match="is not there"):
            list(read_log(path, "chat", Problems()))


def test_tool_calls_are_actions(tmp_path: Path) -> None:
    """Calls are written out; what stood beside them is the thought."""
    said = [
        USER,
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"id": "1", "function": {"name": "act", "arguments": '{"command": "look"}'}}
            ],
        },
        {"role": "tool", "content": [{"type": "text", "text": "a lamp"}], "tool_call_id": "1"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"name": "take", "arguments": {"what": "lamp", "times": 2}}],
        },
        {"role": "tool", "content": "taken", "tool_call_id": "2"},
        {"role": "user", "content": "well done"},
    ]
    found, _ = one({"messages": said, "success": True}, tmp_path)
    first, second = found[1].turns
    look = '{"name": "act", "arguments": {"command": "look"}}'
    assert (first.text, first.action, first.thought, first.answer) == (
        f"I look.\n{look}",
        look,
        "I look.",
        "a lamp",
    )
    assert (json.loads(second.text), second.answer) == (
        {"name": "take", "arguments": {"what": "lamp", "times": 2}},
        "taken\nwell done",
    )


def test_reasoning_is_left_out_and_noted(tmp_path: Path) -> None:
    found, problems = one(
        {"messages": [USER, ACT | {"reasoning_content": "hm"}], "reward": 1}, tmp_path
    )
    assert found[1].turns[0].text == "gone"
    assert problems.noted == {"reasoning left out": 1}


def test_one_task_is_one_prompt(tmp_path: Path) -> None:
    rows = [
        {"task": "a", "messages": [USER, ACT], "reward": 1},
        {"task": "a", "messages": [USER, ACT | {"content": "stay"}], "reward": 0},
        {"task": "a", "messages": [{"role": "user", "content": "another"}, ACT], "reward": 1},
        {"messages": [USER, ACT], "reward": 0.5},
        {"task": "a", "messages": [USER, ACT], "reward": 1},
    ]
    problems = Problems()
    found = as_logged(
        read_log(write_lines(tmp_path / "a.jsonl", rows), "chat", problems), problems=problems
    )
    assert [len(tree.episodes) for tree in found.trees.values()] == [2, 1, 1]
    assert list(found.trees)[:2] == ["a", "a~2"]
    assert problems.noted == {"a task with several prompts": 1}
    assert problems.left_out == {"the same again": 1}
    assert "line 5: it is the same episode as a.jsonl, line 1" in problems.sentences[-1]
    assert found.solved == 2
    problems = Problems()
    found = as_logged(
        read_log(tmp_path / "a.jsonl", "chat", problems), success_at=0.5, problems=problems
    )
    assert found.solved == 3


def test_an_experience_and_a_reflection_can_be_asked_for_in_imported_words(tmp_path: Path) -> None:
    found, problems = one(
        {
            "messages": [{"role": "system", "content": "Be {observation}."}, USER, ACT, USER],
            "reward": 0,
        },
        tmp_path,
    )
    tree = list(as_logged(found, problems=problems).trees.values())[1]
    said = CHAT.reflect(History(tree.task, tree.first_observation, tuple(tree)))
    assert [m.role for m in said] == ["system", "user", "assistant", "user"]
    assert said[0].content == "Be {observation}."
    assert said[-1].content.startswith("go")
    assert "Which of the steps" in said[-1].content
