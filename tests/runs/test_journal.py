"""What was appended is there after a cut at any byte, in order, and nothing else is."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import Episode, JournalError, Stop, Task, Tree, UserError
from leafe.runs import Journal, load_trees, read_journal, read_tasks, write_tasks
from tests.core.growth import grown_trees, tasks
from tests.trees import make_task, make_tree


def write(folder: Path, lines: Sequence[Sequence[Episode]], shard_bytes: int = 1 << 20) -> None:
    with Journal(folder, shard_bytes=shard_bytes) as journal:
        for line in lines:
            journal.append(line)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Tree], list[list[Episode]]]:
    """Trees of distinct tasks, and journal lines that hold their episodes in a possible order:
    tasks interleaved, one episode or several a line."""
    trees = [
        draw(grown_trees(task=task, max_episodes=4))
        for task in draw(st.lists(tasks, min_size=1, max_size=3, unique_by=lambda t: t.id))
    ]
    left, lines = [list(t.episodes) for t in trees], []
    while any(left):
        queue = draw(st.sampled_from([q for q in left if q]))
        several = draw(st.integers(1, len(queue)))
        lines.append(queue[:several])
        del queue[:several]
    return trees, lines


@settings(max_examples=60)
@given(run=runs(), shard_bytes=st.sampled_from([1, 600, 1 << 20]), data=st.data())
def test_a_run_cut_at_any_byte_goes_on_to_the_same_trees(
    run: tuple[list[Tree], list[list[Episode]]], shard_bytes: int, data: st.DataObject
) -> None:
    trees, lines = run
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder, [t.task for t in trees])
        marks = list[tuple[Path, int]]()
        with Journal(folder, shard_bytes=shard_bytes) as journal:
            for line in lines:
                journal.append(line)
                last = max(folder.glob("journal-*"))
                marks.append((last, last.stat().st_size))
        # a killed process leaves the last shard cut at some byte
        last = max(folder.glob("journal-*"))
        keep = data.draw(st.integers(0, last.stat().st_size))
        with last.open("r+b") as file:
            file.truncate(keep)
        torn = keep > 0 and not last.read_bytes().endswith(b"\n")
        finished = [
            line
            for line, (path, end) in zip(lines, marks, strict=True)
            if path < last or end <= keep
        ]
        assert [list(line) for line in read_journal(folder)] == finished
        with Journal(folder, shard_bytes=shard_bytes) as journal:
            assert journal.torn == torn
            assert [list(line) for line in journal.read()] == finished
            for line in lines[len(finished) :]:
                journal.append(line)
        loaded = load_trees(folder)
        assert list(loaded) == [t.task.id for t in trees]
        assert [t.episodes for t in loaded.values()] == [t.episodes for t in trees]
        assert [t.branches() for t in loaded.values()] == [t.branches() for t in trees]


def test_torn_lines_are_counted_where_they_were_and_cut(tmp_path: Path) -> None:
    episodes = make_tree().episodes
    write(tmp_path, [[e] for e in episodes])
    (shard,) = tmp_path.glob("journal-*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with Journal(tmp_path) as journal:
        assert journal.torn == 1
        assert shard.read_bytes() == whole[: whole[:-1].rindex(b"\n") + 1]
    with Journal(tmp_path) as journal:
        assert journal.torn == 0


def test_a_full_shard_is_followed_by_another(tmp_path: Path) -> None:
    episodes = make_tree().episodes
    write(tmp_path, [[e] for e in episodes], shard_bytes=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"journal-{n:05d}.jsonl" for n in range(3)
    ]
    assert [line for (line,) in read_journal(tmp_path)] == episodes


def test_a_missing_shard_is_found_out(tmp_path: Path) -> None:
    write(tmp_path, [[e] for e in make_tree().episodes], shard_bytes=1)
    (tmp_path / "journal-00001.jsonl").unlink()
    with pytest.raises(JournalError, match=r"lacks its shard journal-00001\.jsonl"):
        list(read_journal(tmp_path))


UNKNOWN_STOP = b'{"episodes": [{"task_id": "t0", "index": 0, "stop": "??", "turns": []}]}'


@pytest.mark.parametrize(
    "rubbish", [b"{", b'{"episodes": [{}]}', UNKNOWN_STOP, b"[]", b"\xff\xfe", b""]
)
def test_a_damaged_line_is_named_by_file_and_line(tmp_path: Path, rubbish: bytes) -> None:
    write(tmp_path, [[e] for e in make_tree().episodes])
    (shard,) = tmp_path.glob("journal-*")
    lines = shard.read_bytes().split(b"\n")
    lines[2] = rubbish
    shard.write_bytes(b"\n".join(lines))
    with pytest.raises(JournalError, match=r"journal-00000\.jsonl, line 3 is damaged"):
        list(read_journal(tmp_path))
    assert len(next(iter(read_journal(tmp_path)))) == 1


def test_a_damaged_first_line_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "journal-00000.jsonl").write_text("hello\n")
    with pytest.raises(JournalError, match="line 1 is damaged"):
        list(read_journal(tmp_path))
    with pytest.raises(JournalError, match="line 1 is damaged"):
        Journal(tmp_path)
    assert (tmp_path / "journal-00000.jsonl").read_text() == "hello\n"


def test_another_format_is_the_users_to_mend(tmp_path: Path) -> None:
    write(tmp_path, [make_tree().episodes])
    (shard,) = tmp_path.glob("journal-*")
    shard.write_bytes(shard.read_bytes().replace(b'"format": 1', b'"format": 99', 1))
    for attempt in (lambda: list(read_journal(tmp_path)), lambda: Journal(tmp_path)):
        with pytest.raises(UserError, match="format 99"):
            attempt()


def test_no_journal_reads_as_empty(tmp_path: Path) -> None:
    assert list(read_journal(tmp_path / "nothing")) == []


def test_a_second_journal_on_the_folder_is_refused_until_the_first_is_closed(
    tmp_path: Path,
) -> None:
    first = Journal(tmp_path)
    with pytest.raises(UserError, match="in use"):
        Journal(tmp_path)
    first.close()
    first.close()
    with pytest.raises(ValueError, match="closed"):
        first.append([])
    Journal(tmp_path).close()


def test_the_lines_are_plain_json(tmp_path: Path) -> None:
    tree = make_tree()
    write(tmp_path, [tree.episodes[:2], tree.episodes[2:]])
    (shard,) = tmp_path.glob("journal-*")
    header, *lines = [json.loads(line) for line in shard.read_text("ascii").splitlines()]
    assert header == {"journal": "leafe", "format": 1}
    assert lines == [
        {"episodes": [e.to_json() for e in part]} for part in (tree.episodes[:2], tree.episodes[2:])
    ]


def test_tasks_keep_their_order_and_ids_are_unique(tmp_path: Path) -> None:
    some = [make_task(name) for name in ("b", "a", "c")]
    write_tasks(tmp_path / "new", some)
    assert read_tasks(tmp_path / "new") == some
    assert list(load_trees(tmp_path / "new")) == ["b", "a", "c"]
    with pytest.raises(UserError, match="Two tasks of the environment 'toy' have the id 'a'"):
        write_tasks(tmp_path / "new", [*some, make_task("a")])
    assert read_tasks(tmp_path / "new") == some


def test_a_folder_without_tasks_is_no_stage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no tasks\.jsonl"):
        load_trees(tmp_path)
    (tmp_path / "tasks.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(JournalError, match="line 1 is damaged"):
        read_tasks(tmp_path)


@pytest.mark.parametrize(
    ("episodes", "words"),
    [
        ([Episode("t9", 0, Stop.failure, ())], "not in tasks"),
        ([Episode("t0", 1, Stop.failure, ())], "not a tree"),
        ([Episode("t0", 0, Stop.failure, ())] * 2, "not a tree"),
    ],
)
def test_a_journal_that_does_not_fit_the_tasks_is_damaged(
    tmp_path: Path, episodes: list[Episode], words: str
) -> None:
    write_tasks(tmp_path, [Task("t0", "toy", "train", "x")])
    write(tmp_path, [episodes])
    with pytest.raises(JournalError, match=words):
        load_trees(tmp_path)
