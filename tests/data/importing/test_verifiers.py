"""Traces of verifiers. `data/traces.jsonl` was written by verifiers 0.4.0's own models
(`tests/data/importing/make_files.py`); where it is installed, they read it too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leafe.core import UserError
from leafe.data import LoggedEpisode, Problems, read_log
from tests.data.importing.logs import played, write_lines
from tests.data.importing.make_files import FILES


def load(path: Path) -> tuple[list[LoggedEpisode], Problems]:
    problems = Problems()
    return list(read_log(path, "verifiers", problems)), problems


def test_the_traces_are_the_episodes_that_were_played() -> None:
    found, problems = load(FILES / "traces.jsonl")
    assert not problems.left_out
    trees = played(3, 2)
    episodes = [(name, tree, e) for name, tree in trees.items() for e in tree.episodes]
    assert len(found) == len(episodes)
    for each, (name, tree, episode) in zip(found, episodes, strict=True):
        turns = tree.trajectory(episode)
        assert (each.task, each.payload, each.instruction, each.model) == (
            name,
            tree.task.payload,
            tree.task.instruction,
            "fickle",
        )
        assert [t.text for t in each.turns] == [t.action_text for t in turns]
        assert [t.answer for t in each.turns] == [f"s{t.step + 1} {t.observation}" for t in turns]
        assert each.reward == sum(t.reward for t in turns)
        assert {t.tokens for t in each.turns} == {
            (8, 9, 10)
        }  # those that the mask says were sampled


def test_verifiers_own_models_have_the_same_messages() -> None:
    trace_store = pytest.importorskip("verifiers.v1.episode", reason="verifiers is not installed")
    from verifiers.v1.state import State
    from verifiers.v1.task import WireTaskData

    found, _ = load(FILES / "traces.jsonl")
    for line, each in zip(
        (FILES / "traces.jsonl").read_text("utf-8").splitlines(), found, strict=True
    ):
        episode = trace_store.Episode[WireTaskData, State].model_validate_json(line)
        trace = episode.traces[0]
        messages = trace.branches[0].messages
        assert each.first == messages[0].content
        assert [t.text for t in each.turns] == [
            m.content for m in messages if m.role == "assistant"
        ]
        assert each.reward == trace.reward


def row(**changes: Any) -> dict[str, Any]:
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "go"}]
    completion = [
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    return {
        "example_id": 3,
        "prompt": prompt,
        "completion": completion,
        "reward": 0.5,
        "info": {"k": 1},
        "answer": "",
        "metrics": {"won": 0.5},
    } | changes


def test_results_of_version_0(tmp_path: Path) -> None:
    found, problems = load(
        write_lines(
            tmp_path / "results.jsonl",
            [row(), row(info=json.dumps({"task": "t", "payload": {"n": 1}}), example_id=4)],
        )
    )
    assert not problems.left_out
    assert [(e.task, e.system, e.first, e.reward, e.payload) for e in found] == [
        ("3", "s", "go", 0.5, None),
        ("t", "s", "go", 0.5, {"n": 1}),
    ]
    assert [(t.text, t.answer) for t in found[0].turns] == [("a", "b"), ("c", None)]


def test_a_folder_and_a_data_set(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    write_lines(tmp_path / "results.jsonl", [row()])
    table = pyarrow.Table.from_pylist(
        [
            row(prompt=json.dumps(row()["prompt"]), completion=json.dumps(row()["completion"])),
            row(example_id=9),
        ][:1]
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    as_lists = pyarrow.Table.from_pylist([row(), row(reward=None)])
    parquet.write_table(as_lists, tmp_path / "b.parquet")

    def texts(path: Path) -> list[Any]:
        return [
            (e.system, e.first, [(t.text, t.answer) for t in e.turns], e.reward)
            for e in load(path)[0]
        ]

    assert texts(tmp_path) == texts(tmp_path / "a.parquet") == texts(tmp_path / "b.parquet")
    assert load(tmp_path / "b.parquet")[1].sentences == [
        "b.parquet, row 2: it has neither a reward nor success."
    ]
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:100])
    with pytest.raises(UserError, match="is no parquet file, or a part of one"):
        load(tmp_path / "c.parquet")


def node(parent: int | None, role: str, content: str, **more: Any) -> dict[str, Any]:
    return {
        "parent": parent,
        "message": {"role": role, "content": content},
        "sampled": role == "assistant",
    } | more


def trace(*nodes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    rewards = {"a": {"score": 1, "weight": 0.5}, "b": {"score": 2, "weight": 1}, "c": None}
    return {"task": {"data": {"idx": 5}}, "nodes": list(nodes), "rewards": rewards} | changes


LINE = (node(None, "user", "go"), node(0, "assistant", "a"), node(1, "tool", "b"))


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (trace(*LINE, node(0, "assistant", "other")), "fork into 2 conversations"),
        (trace(*LINE, node(None, "user", "x")), "fork into 2 conversations"),
        (trace(node(0, "user", "x")), "a parent that does not precede it"),
        (trace(node("a", "user", "x")), "a parent that does not precede it"),  # type: ignore[arg-type]
        (trace({"parent": None}), "holds no message"),
        (trace(nodes="x"), "no list of objects"),
        (trace(*LINE, rewards={}), "neither a reward nor success"),
        (trace(*LINE, rewards={"a": {"score": "x"}}), "a score is 'x'"),
        (
            trace(
                node(None, "user", "go"),
                node(0, "assistant", "shot", sampled=False),
                node(1, "user", "q"),
                node(2, "assistant", "a"),
            ),
            "few-shot",
        ),
        (
            row(
                prompt=[
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "shot"},
                    {"role": "user", "content": "go"},
                ]
            ),
            "few-shot",
        ),
        (row(completion=None), "no messages"),
        (row(reward="x"), "its reward is 'x'"),
        ({"traces": [trace(*LINE, rewards={})]}, "line 2, trace 0: it has neither"),
        ({"traces": [7]}, "trace 0 of it is no object"),
        ({"hello": 1}, "neither nodes nor prompt and completion"),
    ],
)
def test_what_is_left_out_and_why(record: dict[str, Any], why: str, tmp_path: Path) -> None:
    found, problems = load(write_lines(tmp_path / "a.jsonl", [trace(*LINE), record]))
    assert len(found) == 1
    assert (found[0].task, found[0].reward) == ("5", 2.5)
    assert problems.left_out.total() == 1
    assert why in problems.sentences[0]
    assert problems.sentences[0].startswith("a.jsonl, line 2")


def test_a_prompt_and_a_completion_of_plain_text(tmp_path: Path) -> None:
    found, _ = load(write_lines(tmp_path / "a.jsonl", [row(prompt="go", completion="[gone")]))
    assert (found[0].first, found[0].turns[0].text) == ("go", "[gone")
