"""Inspect AI's logs. `data/gates.eval` and `data/gates.json` were written by inspect_ai itself
(`tests/data/importing/make_files.py`); where it is installed, it reads too.

Format: https://inspect.aisi.org.uk/eval-logs.html
"""

from __future__ import annotations

import asyncio
import copy
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from leafe.core import Stop, UserError
from leafe.data import LoggedEpisode, Problems, read_log, replayed
from leafe.explore import EnvPool
from tests.data.importing.logs import PROMPTS, make, played, tasks
from tests.data.importing.make_files import FILES, LONG

pytest.importorskip("pyarrow", reason="logs zipped with zstandard are unpacked by pyarrow")


def load(path: Path) -> tuple[list[LoggedEpisode], Problems]:
    problems = Problems()
    return list(read_log(path, "inspect", problems)), problems


def without_where(found: list[LoggedEpisode]) -> list[dict[str, Any]]:
    return sorted(
        (
            {name: getattr(each, name) for name in each.__slots__ if name != "where"}
            for each in found
        ),
        key=str,
    )


def test_both_forms_say_the_same() -> None:
    zipped, plain = load(FILES / "gates.eval"), load(FILES / "gates.json")
    assert without_where(zipped[0]) == without_where(plain[0])
    assert len(zipped[0]) == 5
    assert zipped[1].left_out == plain[1].left_out == {"no reward": 1}
    assert (
        zipfile.ZipFile(FILES / "gates.eval").infolist()[0].compress_type == 93
    )  # zstandard, which zipfile may not know
    assert all(
        each.system == f"Be quick. {LONG}" and each.model == "mockllm/fickle" for each in zipped[0]
    )


def test_the_episodes_are_those_that_were_played() -> None:
    """Tool calls and plain text alike are the actions; played again in the environment nothing
    diverges."""
    problems = Problems()
    known = {task.id: task for task in tasks(3)}

    async def main() -> Any:
        pool = EnvPool(make, 2)
        try:
            return await replayed(
                read_log(FILES / "gates.eval", "inspect", problems),
                pool,
                known,
                PROMPTS,
                problems=problems,
            )
        finally:
            pool.close()

    found = asyncio.run(main())
    assert found.stops[Stop.diverged.value] == 0
    trees = played(3, 2)
    acted = {
        (name, *(t.action for t in tree.trajectory(e)))
        for name, tree in trees.items()
        for e in tree.episodes
    }
    mine = {
        (name, *(t.action for t in tree.trajectory(e)))
        for name, tree in found.trees.items()
        for e in tree.episodes
    }
    assert mine < acted
    assert len(acted) - len(mine) <= 1
    assert {t.thought for tree in found.trees.values() for t in tree} == {"", "So."}


def test_inspect_ais_own_reader_has_the_same_texts() -> None:
    log = pytest.importorskip("inspect_ai.log", reason="inspect_ai is not installed")
    theirs = log.read_eval_log(str(FILES / "gates.eval"))
    found, problems = load(FILES / "gates.eval")
    scored = [sample for sample in theirs.samples if sample.scores]
    assert len(found) == len(scored) == len(theirs.samples) - problems.left_out.total()
    mine = {each.where.rpartition("/")[2]: each for each in found}
    for sample in scored:
        each = mine[f"{sample.id}_epoch_{sample.epoch}.json"]
        assert each.first == sample.messages[1].text
        said = [m for m in sample.messages if m.role == "assistant"]
        assert [t.action or t.text for t in each.turns] == [
            m.tool_calls[0].arguments["command"] if m.tool_calls else m.text for m in said
        ]
        answers = [m.text for m in sample.messages[2:] if m.role != "assistant"]
        assert [t.answer for t in each.turns] == answers
        assert each.reward == {"C": 1.0, "I": 0.0}[str(next(iter(sample.scores.values())).value)]


def sample(**changes: Any) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": "attachment://abc"},
        {"role": "assistant", "content": "go"},
    ]
    return {
        "id": 7,
        "epoch": 1,
        "messages": messages,
        "scores": {"a": {"value": "C"}},
        "attachments": {"abc": "a long text"},
    } | changes


def as_log(folder: Path, *samples: Any, kind: str = "json") -> Path:
    head = {"version": 2, "status": "success", "eval": {"model": "m"}}
    path = folder / f"a.{kind}"
    if kind == "json":
        path.write_text(json.dumps(head | {"samples": list(samples)}))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("header.json", json.dumps(head))
            for nth, each in enumerate(samples):
                archive.writestr(
                    f"samples/{nth}.json", each if isinstance(each, str) else json.dumps(each)
                )
    return path


def test_long_texts_beside_the_messages_are_put_back(tmp_path: Path) -> None:
    found, _ = load(as_log(tmp_path, sample(), kind="eval"))
    assert (found[0].first, found[0].task, found[0].reward) == ("a long text", "7", 1.0)


@pytest.mark.parametrize(
    ("value", "reward"),
    [
        ("C", 1.0),
        ("I", 0.0),
        ("P", 0.5),
        (0.25, 0.25),
        (True, 1.0),
        ({"a": 1}, None),
        ("good", None),
        (float("nan"), None),
        (None, None),
    ],
)
def test_scores(value: object, reward: float | None, tmp_path: Path) -> None:
    found, problems = load(
        as_log(
            tmp_path,
            sample(scores={"a": {"value": value}}),
            sample(scores={"a": {"value": "C"}}, id="b"),
        )
    )
    assert [each.reward for each in found] == ([reward] if reward is not None else []) + [1.0]
    assert problems.left_out.total() == (reward is None)


def test_a_damaged_sample_is_left_out_and_said(tmp_path: Path) -> None:
    path = as_log(
        tmp_path,
        sample(),
        '{"id": 1, "messages"',
        [1],
        sample(messages=[]),
        sample(error={"message": "out of tokens"}),
        kind="eval",
    )
    found, problems = load(path)
    assert len(found) == 2
    assert problems.left_out == {"a damaged sample": 1, "no object": 1, "no messages": 1}
    assert problems.noted == {"a sample that ended in an error": 1}
    assert any(s.startswith("a.eval, samples/1.json: it is damaged") for s in problems.sentences)


def test_a_flipped_byte_is_a_damaged_sample(tmp_path: Path) -> None:
    """In the middle of a packed sample, of both ways of packing."""
    for kind in ("zstd", "deflate"):
        if kind == "zstd":
            data = bytearray((FILES / "gates.eval").read_bytes())
        else:
            data = bytearray(
                as_log(
                    tmp_path,
                    sample(messages=sample()["messages"] * 40),
                    sample(id="b"),
                    kind="eval",
                ).read_bytes()
            )
        path = tmp_path / "broken.eval"
        path.write_bytes(data)
        info = next(
            i for i in zipfile.ZipFile(path).infolist() if i.filename.startswith("samples/")
        )
        data[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0xFF
        path.write_bytes(data)
        found, problems = load(path)
        assert problems.left_out["a damaged sample"] == 1, kind
        assert found, kind


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it is not JSON"),
        (b"{}", 'has no object "eval"'),
        (b'{"eval": {"model": "m"}}', "holds no episode"),
        (b'{"eval": {"model": "m"}, "samples": [', "or a part of one"),
        ('{"eval": {}}'.encode("utf-16"), "it is UTF-16"),
        (b"PK\x03\x04" + b"x" * 50, "or a part of one"),
    ],
)
def test_what_is_no_log(data: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.eval").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.eval") as raised:
        load(tmp_path / "a.eval")
    assert why in str(raised.value)


def test_half_a_log_is_said_to_be_one(tmp_path: Path) -> None:
    whole = (FILES / "gates.eval").read_bytes()
    (tmp_path / "a.eval").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="or a part of one"):
        load(tmp_path / "a.eval")
    with zipfile.ZipFile(tmp_path / "b.eval", "w") as archive:
        archive.writestr("other.txt", "x")
    with pytest.raises(UserError, match=r"no header\.json"):
        load(tmp_path / "b.eval")


def test_metadata_brings_a_task_along(tmp_path: Path) -> None:
    meta = {"task": "mine", "payload": {"size": 3}, "instruction": "go"}
    found, _ = load(as_log(tmp_path, sample(metadata=copy.deepcopy(meta))))
    assert (found[0].task, found[0].payload, found[0].instruction) == ("mine", {"size": 3}, "go")
