"""The index says what the journals say, however they grew, and survives what befalls them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import Kind, Stop, Tree
from leafe.runs import Journal, RunFolder, write_tasks
from leafe.view._follow import Follower, episodes
from leafe.view._index import FILTERS, SORTS, Index
from tests.trees import Ep, make_task, make_tree, trees
from tests.view.folders import STAGE, make_run, new_run, write_stage

SUMS = (
    "episodes",
    "samples",
    "successes",
    "depth",
    "turns",
    "saved",
    "branches",
    "diverged",
    "unusable",
    "errors",
    "tokens",
)


def by_hand(tree: Tree) -> dict[str, Any]:
    """The task's row, counted from the tree itself."""
    own = sum(len(e.acts) for e in tree.rollouts)
    return {
        "episodes": len(tree.rollouts),
        "samples": sum(e.count for e in tree.rollouts),
        "successes": sum(e.count for e in tree.rollouts if e.success),
        "depth": min((e.depth for e in tree.successes()), default=None),
        "turns": own,
        "saved": sum(e.count * len(tree.trajectory(e)) for e in tree.rollouts) - own,
        "branches": sum(e.experience is not None for e in tree.rollouts),
        "diverged": sum(e.count for e in tree.rollouts if e.stop is Stop.diverged),
        "unusable": sum(not t.valid for t in tree.reflections),
        "errors": sum(
            e.count for e in tree.rollouts if e.stop in (Stop.env_error, Stop.policy_error)
        ),
        "tokens": sum(t.usage.generated for t in tree),
    }


def looked(run: Path, cache: Path) -> tuple[Index, Follower]:
    index = Index(run, cache)
    follower = Follower(index)
    follower.update()
    return index, follower


def row_of(index: Index, task: str) -> dict[str, Any]:
    stage = index.stage(STAGE)
    assert stage is not None
    row = index.task(stage["id"], task)
    assert row is not None
    return {name: row[name] for name in SUMS}


def tree_of(index: Index, task: str) -> tuple[Tree, str]:
    stage = index.stage(STAGE)
    assert stage is not None
    return index.tree(STAGE, index.task(stage["id"], task))  # type: ignore[arg-type]


forests = st.integers(1, 4).flatmap(lambda n: st.tuples(*(trees(f"t{i}") for i in range(n))))


@settings(max_examples=15)
@given(forests, st.booleans())
def test_it_says_what_the_trees_say(forest: Sequence[Tree], together: bool) -> None:
    with tempfile.TemporaryDirectory() as where:
        run = make_run(Path(where) / "run", forest, together=together)
        index, follower = looked(run, Path(where) / "cache")
        assert follower.bytes_read == follower.bytes_total > 0
        for tree in forest:
            assert row_of(index, tree.task.id) == by_hand(tree)
            found, problem = tree_of(index, tree.task.id)
            assert not problem
            assert found.episodes == tree.episodes
        index.close()


@settings(max_examples=12)
@given(forests, st.lists(st.floats(0, 1), max_size=6))
def test_a_journal_that_grows_byte_by_byte_ends_as_the_whole(
    forest: Sequence[Tree], cuts: list[float]
) -> None:
    with tempfile.TemporaryDirectory() as where:
        whole = make_run(Path(where) / "whole", forest) / STAGE / "journal-00000.jsonl"
        if not whole.is_file():
            return
        data = whole.read_bytes()
        run = new_run(Path(where) / "run")
        write_tasks(run / STAGE, (tree.task for tree in forest))
        index, follower = looked(run, Path(where) / "cache")
        for cut in sorted(int(c * len(data)) for c in cuts):
            (run / STAGE / whole.name).write_bytes(data[:cut])
            follower.update()
            assert not follower.stage_problems
            assert sum(row_of(index, t.task.id)["episodes"] for t in forest) == max(
                0, data[:cut].count(b"\n") - 1
            )
        (run / STAGE / whole.name).write_bytes(data)
        follower.update()
        assert {t.task.id: row_of(index, t.task.id) for t in forest} == {
            t.task.id: by_hand(t) for t in forest
        }
        index.close()


def test_what_was_read_is_not_read_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tree()])
    looked(run, tmp_path / "cache")[0].close()
    (run / STAGE / "tasks.jsonl").touch()
    shard = run / STAGE / "journal-00000.jsonl"
    kept = shard.read_bytes()
    middle = len(kept) // 2
    assert middle > 4096 or len(kept) < 8192
    index = Index(run, tmp_path / "cache")
    follower = Follower(index)
    before = row_of(index, "t0")  # there before anything is read
    follower.update()
    assert row_of(index, "t0") == before == by_hand(make_tree())
    index.close()


def test_a_run_that_was_started_over_is_read_anew(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", [make_tree(Ep("go", "take"), Ep("open", "walk"), task_id="t0")]
    )
    index, follower = looked(run, tmp_path / "cache")
    assert row_of(index, "t0")["episodes"] == 2
    shutil.rmtree(run / STAGE)
    other = make_tree(Ep("fly", stop=Stop.failure), task_id="t9")
    write_stage(run, [other])
    follower.update()
    assert row_of(index, "t9") == by_hand(other)
    stage = index.stage(STAGE)
    assert stage is not None
    assert index.task(stage["id"], "t0") is None
    assert index.search("open", None, 0, 9)[0] == []
    index.close()


def test_a_longer_journal_in_the_place_of_another_is_noticed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tree(Ep("go"), task_id="t0")])
    index, follower = looked(run, tmp_path / "cache")
    longer = make_run(
        tmp_path / "other", [make_tree(*[Ep("open", "walk") for _ in range(9)], task_id="t0")]
    )
    os.replace(longer / STAGE / "journal-00000.jsonl", run / STAGE / "journal-00000.jsonl")
    follower.update()
    assert row_of(index, "t0")["episodes"] == 9
    index.close()


def test_tasks_that_are_added_and_moved_are_seen(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tree(task_id="b")])
    index, follower = looked(run, tmp_path / "cache")
    write_tasks(run / STAGE, [make_task("a"), make_task("b")])
    follower.update()
    stage = index.stage(STAGE)
    assert stage is not None
    assert [row["task"] for row in index.tasks(stage["id"], "all", "", "", 0, 9)] == ["a", "b"]
    assert row_of(index, "b") == by_hand(make_tree(task_id="b"))
    assert tree_of(index, "b")[0].task == make_task("b")
    assert index.counts(stage["id"])["waiting"] == 1
    index.close()


def test_several_shards_are_one_journal(tmp_path: Path) -> None:
    tree = make_tree(*[Ep("open", "walk") for _ in range(6)])
    run = new_run(tmp_path / "run")
    write_tasks(run / STAGE, [tree.task])
    with Journal(run / STAGE, fsync=False, shard_bytes=400) as journal:
        for episode in tree.episodes:
            journal.append([episode])
    assert len(list((run / STAGE).glob("journal-*"))) > 2
    index, _ = looked(run, tmp_path / "cache")
    assert row_of(index, "t0") == by_hand(tree)
    assert len(tree_of(index, "t0")[0].episodes) == 6
    index.close()


STRANGER = b'{"episodes":[{"task_id":"unknown","index":0,"stop":"success","turns":[]}]}\n'


@pytest.mark.parametrize(
    "bad", [b"{\n", b'{"episodes": [{}]}\n', b'{"episodes": 3}\n', b"\x00\xff\n", STRANGER, b"\n"]
)
def test_a_damaged_line_is_said_and_hides_nothing_else(tmp_path: Path, bad: bytes) -> None:
    run = make_run(tmp_path / "run", [make_tree(), make_tree(task_id="t1")])
    shard = run / STAGE / "journal-00000.jsonl"
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join([*lines[:4], bad, *lines[4:]]))
    index, _ = looked(run, tmp_path / "cache")
    stage = index.stage(STAGE)
    assert stage is not None
    assert "journal-00000.jsonl, line 5 is damaged" in stage["problem"]
    assert row_of(index, "t0") == by_hand(make_tree())
    assert row_of(index, "t1") == by_hand(make_tree(task_id="t1"))
    index.close()


def test_episodes_after_a_lost_one_are_named_and_those_before_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tree()])
    shard = run / STAGE / "journal-00000.jsonl"
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join([*lines[:2], lines[3]]))
    index, _ = looked(run, tmp_path / "cache")
    tree, problem = tree_of(index, "t0")
    assert len(tree.episodes) == 1
    assert "Episode 2 (shard 0, line 3) and what follows it cannot be shown" in problem
    index.close()


def test_another_format_and_a_missing_shard_are_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tree()])
    write_stage(run, [make_tree(task_id="fine")], "explore/fine")
    shard = run / STAGE / "journal-00000.jsonl"
    shard.write_bytes(
        b'{"journal": "leafe", "format": 99}\n' + shard.read_bytes().split(b"\n", 1)[1]
    )
    index, follower = looked(run, tmp_path / "cache")
    assert "format 99" in follower.stage_problems[STAGE]
    assert "explore/fine" not in follower.stage_problems
    shard.rename(shard.with_name("journal-00001.jsonl"))
    follower.update()
    assert "lacks its shard journal-00000.jsonl" in follower.stage_problems[STAGE]
    fine = index.stage("explore/fine")
    assert fine is not None
    assert index.task(fine["id"], "fine")["episodes"] == 3  # type: ignore[index]
    index.close()


def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tree()])
    index, _ = looked(run, tmp_path / "cache")
    index.close()
    index.path.write_bytes(b"this is no database" * 1000)
    index, _ = looked(run, tmp_path / "cache")
    assert row_of(index, "t0") == by_hand(make_tree())
    index.close()


def test_a_second_viewer_has_an_index_of_its_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tree()])
    first, _ = looked(run, tmp_path / "cache")
    second, _ = looked(run, tmp_path / "cache")
    assert first.path != second.path
    assert row_of(first, "t0") == row_of(second, "t0")
    second.close()
    assert not second.path.exists()
    first.close()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tree()])
    (tmp_path / "cache").write_text("a file")
    index, _ = looked(run, tmp_path / "cache")
    assert row_of(index, "t0") == by_hand(make_tree())
    index.close()


def test_the_run_folder_is_not_touched(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tree()])

    def all_files() -> dict[str, tuple[int, bytes]]:
        return {
            str(p): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"")
            for p in sorted(run.rglob("*"))
        }

    before = all_files()
    index, _ = looked(run, tmp_path / "cache")
    tree_of(index, "t0")
    index.close()
    assert all_files() == before


def test_a_run_folder_that_is_gone_is_said_and_the_index_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tree()])
    index, follower = looked(run, tmp_path / "cache")
    run.rename(tmp_path / "moved")
    follower.update()
    assert "no longer there" in follower.problem
    assert row_of(index, "t0") == by_hand(make_tree())
    (tmp_path / "moved").rename(run)
    follower.update()
    assert row_of(index, "t0") == by_hand(make_tree())
    index.close()


@settings(max_examples=8)
@given(forests)
def test_filters_and_orders(forest: Sequence[Tree]) -> None:
    with tempfile.TemporaryDirectory() as where:
        index, _ = looked(make_run(Path(where) / "run", forest), Path(where) / "cache")
        stage = index.stage(STAGE)
        assert stage is not None
        facts = {t.task.id: by_hand(t) for t in forest}
        rules = {
            "all": lambda f: True,
            "solved": lambda f: f["successes"] > 0,
            "rescued": lambda f: f["successes"] > 0 and f["depth"] > 0,
            "never": lambda f: f["successes"] == 0 and f["episodes"] > 0,
            "diverged": lambda f: f["diverged"] > 0,
            "unusable": lambda f: f["unusable"] > 0,
            "errors": lambda f: f["errors"] > 0,
            "saved": lambda f: f["saved"] > 0,
            "waiting": lambda f: f["episodes"] == 0,
        }
        assert rules.keys() == FILTERS.keys()
        for name, rule in rules.items():
            shown = [row["task"] for row in index.tasks(stage["id"], name, "", "", 0, 99)]
            assert set(shown) == {task for task, f in facts.items() if rule(f)}
            assert index.counts(stage["id"])[name] == len(shown)
        saved = [row["saved"] for row in index.tasks(stage["id"], "saved", "", "", 0, 99)]
        assert saved == sorted(saved, reverse=True)
        for sort in SORTS:
            assert len(index.tasks(stage["id"], "all", sort, "", 0, 99)) == len(forest)
        assert [row["task"] for row in index.tasks(stage["id"], "all", "place", "", 1, 1)] == [
            t.task.id for t in forest
        ][1:2]
        index.close()


def test_names_are_taken_as_they_are_written(tmp_path: Path) -> None:
    odd = [
        "100%",
        "a_b",
        "axb",
        "back\\slash",
        "quo'te",
        'quo"te',
        "<script>",
        "\ud800",
        "nul\x00l",
    ]
    run = make_run(tmp_path / "run", [make_tree(Ep("go"), task_id=name) for name in odd])
    index, _ = looked(run, tmp_path / "cache")
    stage = index.stage(STAGE)
    assert stage is not None
    for asked, expected in {
        "%": ["100%"],
        "a_b": ["a_b"],
        "\\s": ["back\\slash"],
        "'": ["quo'te"],
        "<SCRIPT": ["<script>"],
    }.items():
        assert [
            row["task"] for row in index.tasks(stage["id"], "all", "", asked, 0, 99)
        ] == expected
    for row in index.tasks(stage["id"], "all", "", "", 0, 99):
        assert len(index.tree(STAGE, row)[0].episodes) == 1
    index.close()


def test_everything_that_was_said_is_found(tmp_path: Path) -> None:
    tree = make_tree(
        Ep("take violin", stop=Stop.failure, blame=0, note="mind the gap"),
        Ep("take key", branch_of=0),
        task_id="cellar",
    )
    run = make_run(tmp_path / "run", [tree, make_tree(task_id="other")])
    write_stage(run, [make_tree(Ep("take key"), task_id="elsewhere")], "evaluate/base")
    index, _ = looked(run, tmp_path / "cache")
    stage = index.stage(STAGE)
    assert stage is not None

    def kinds(query: str) -> set[tuple[str, str | None]]:
        return {(hit.kind, hit.turn) for hit in index.search(query, stage["id"], 0, 99)[0]}

    assert kinds("gap") == {("reflect", "cellar/0.1r0")}
    assert kinds("start cellar") == {("start", "cellar/0.0")}
    assert kinds("leave house cellar") == {("task", None)}
    assert kinds("seen take violin") == {("act", "cellar/0.0")}
    assert {hit.stage for hit in index.search("key", None, 0, 99)[0]} == {STAGE, "evaluate/base"}
    assert {hit.stage for hit in index.search("key", stage["id"], 0, 99)[0]} == {STAGE}
    for turn in tree:
        text = turn.action_text if turn.kind is Kind.act else turn.note
        assert any(hit.turn == turn.id for hit in index.search(text, stage["id"], 0, 99)[0])
    hits, number = index.search("take", None, 0, 1)
    assert len(hits) == 1
    assert number > 1
    index.close()


@given(
    st.lists(
        st.fixed_dictionaries({"task_id": st.text(max_size=5), "n": st.integers()}), max_size=4
    ),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_places_of_episodes_in_a_line_are_in_bytes(
    data: list[dict[str, Any]], ascii_: bool, indent: int | None
) -> None:
    try:
        line = json.dumps({"episodes": data}, ensure_ascii=ascii_, indent=indent).encode()
    except UnicodeEncodeError:
        return
    assert (
        [json.loads(line[start : start + length]) for start, length, _ in episodes(line)]
        == [found for _, _, found in episodes(line)]
        == data
    )


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b'{"episodes": [',
        b'{"episodes": [{}',
        b'{"episodes": [{} {}]}',
        b'{"other": []}',
        b"\xff",
    ],
)
def test_what_is_no_line_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):
        list(episodes(line))


def test_settings_that_were_changed_meanwhile_are_seen(tmp_path: Path) -> None:
    from leafe.view._run import Run

    run = make_run(tmp_path / "run", [make_tree()])
    seen = Run(run)
    assert seen.fresh() is seen
    with RunFolder.open(run, RunFolder.read(run).config):
        pass
    again = seen.fresh()
    assert again is not seen
    assert again.name == "demo"
