"""Trees read one at a time are the trees that are loaded all at once; what is damaged is named."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import Episode, JournalError, Tree, UserError
from leafe.runs import Journal, StoredTrees, load_trees, write_tasks
from tests.runs.test_journal import UNKNOWN_STOP, runs, write
from tests.trees import make_task, make_tree


@settings(max_examples=60)
@given(run=runs(), shard_bytes=st.sampled_from([1, 600, 1 << 20]), data=st.data())
def test_they_are_the_loaded_trees_whatever_the_order(
    run: tuple[list[Tree], list[list[Episode]]], shard_bytes: int, data: st.DataObject
) -> None:
    trees, lines = run
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder, [t.task for t in trees])
        write(folder, lines, shard_bytes)
        if lines:  # a killed process leaves the last shard cut at some byte
            with max(folder.glob("journal-*")).open("r+b") as file:
                file.truncate(data.draw(st.integers(0, Path(file.name).stat().st_size)))
        loaded, stored = load_trees(folder), StoredTrees(folder)
        assert list(stored) == list(loaded)
        assert len(stored) == len(loaded)
        for task in data.draw(st.lists(st.sampled_from(list(loaded)), max_size=6)) + list(loaded):
            assert stored[task].task == loaded[task].task
            assert stored[task].episodes == loaded[task].episodes
        with pytest.raises(KeyError):
            stored["".join(loaded) + "?"]


def test_one_line_may_hold_several_tasks(tmp_path: Path) -> None:
    trees = [make_tree(task_id=t) for t in ("a", "b")]
    write_tasks(tmp_path, [t.task for t in trees])
    write(tmp_path, [[t.episodes[n] for t in trees] for n in range(3)])
    assert [t.episodes for t in StoredTrees(tmp_path).values()] == [t.episodes for t in trees]


def test_few_trees_are_held_and_lines_that_come_later_are_not_seen(tmp_path: Path) -> None:
    names = [f"t{n}" for n in range(20)]
    write_tasks(tmp_path, [make_task(t) for t in names])
    with Journal(tmp_path) as journal:
        for name in names:
            journal.append(make_tree(task_id=name).episodes[:2])
        stored = StoredTrees(tmp_path)
        journal.append(make_tree(task_id="t19").episodes[2:])
    held = [t.task.id for t in list(stored.values())]
    assert held == names
    assert list(stored._kept) == names[-8:]
    first = stored["t12"]
    assert stored["t12"] is first
    assert list(stored._kept)[-1] == "t12"
    assert len(stored["t19"].episodes) == 2


@pytest.mark.parametrize(
    "rubbish", [b"{", b'{"episodes": [{}]}', b'{"episodes": [[1]]}', b"[]", b"\xff\xfe", b""]
)
def test_a_damaged_line_is_named_at_once(tmp_path: Path, rubbish: bytes) -> None:
    write_tasks(tmp_path, [make_task()])
    write(tmp_path, [[e] for e in make_tree().episodes])
    (shard,) = tmp_path.glob("journal-*")
    lines = shard.read_bytes().split(b"\n")
    lines[2] = rubbish
    shard.write_bytes(b"\n".join(lines))
    with pytest.raises(JournalError, match=r"journal-00000\.jsonl, line 3 is damaged"):
        StoredTrees(tmp_path)


def test_damage_within_an_episode_is_named_when_its_tree_is_asked_for(tmp_path: Path) -> None:
    write_tasks(tmp_path, [make_task("t0"), make_task("t1")])
    write(tmp_path, [make_tree(task_id="t1").episodes])
    with (tmp_path / "journal-00000.jsonl").open("ab") as file:
        file.write(UNKNOWN_STOP + b"\n")
    stored = StoredTrees(tmp_path)
    assert len(stored["t1"].episodes) == 3
    with pytest.raises(JournalError, match=r"journal-00000\.jsonl, line 3 is damaged \(ValueError"):
        stored["t0"]


def test_an_episode_that_does_not_fit_and_a_task_that_is_not_there(tmp_path: Path) -> None:
    episodes = make_tree().episodes
    write_tasks(tmp_path, [make_task()])
    write(tmp_path, [[episodes[0]], [episodes[2]]])
    with pytest.raises(JournalError, match="is not a tree"):
        StoredTrees(tmp_path)["t0"]
    write_tasks(tmp_path, [make_task("t1")])
    with pytest.raises(JournalError, match="'t0', which is not in"):
        StoredTrees(tmp_path)
    with pytest.raises(UserError, match=r"holds no tasks\.jsonl"):
        StoredTrees(tmp_path / "nothing")
