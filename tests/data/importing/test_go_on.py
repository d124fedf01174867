"""Known episodes that are gone on with: a reflection on one of them is no episode, and everything
that draws, counts, tells and exports them holds."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leafe.cli import app
from leafe.core import FAILED_BY_ENV, Kind, Tree, UserError
from leafe.evaluate import measure, spent
from leafe.explore import ExploreConfig
from leafe.report import draw_tree, pick_rescues, pick_tree
from leafe.report._rescues import in_words, rescue_facts
from leafe.report._tree import rescued
from leafe.runs import load_trees
from leafe.view import make_app
from leafe.view._drawing import lanes
from leafe.view._server import _PAGES
from tests.data.importing.logs import bare, chat_lines, grown, played, tasks, write_lines
from tests.view.folders import STAGE, make_run

SMALL = str(Path(__file__).parents[2] / "pipeline" / "small.toml")


@pytest.fixture(scope="module")
def known() -> dict[str, Tree]:
    """One failed episode of each task that has one, as an import leaves it: without a
    reflection."""
    first = {task: tree.episodes[0] for task, tree in played(12, 1).items()}
    chosen = {task.id: task for task in tasks(12)}
    return {
        name: Tree(chosen[name], [episode])
        for name, episode in first.items()
        if episode.stop in FAILED_BY_ENV
    }


@pytest.fixture(scope="module")
def trees(known: dict[str, Tree]) -> dict[str, Tree]:
    assert len(known) > 2
    found = grown(
        [tree.task for tree in known.values()], ExploreConfig(limits={"policy_calls": 60.0}), known
    )
    assert all(sum(e.looks_back for e in tree.episodes) == 1 for tree in found.values())
    assert any(tree.solved for tree in found.values())
    return found


def test_a_reflection_on_a_known_episode_is_no_episode(trees: dict[str, Tree]) -> None:
    for tree in trees.values():
        record = next(e for e in tree.episodes if e.looks_back)
        known = tree.episodes[0]
        assert [tree.rollout_of(t.id) for t in record.turns] == [known] * len(record.turns)
        assert tree.turns_of(known) == [*known.turns, *record.turns]
        assert record not in tree.rollouts
        assert tree.rollouts == [e for e in tree.episodes if e.acts or not e.turns]
    every = list(trees.values())
    assert (
        measure(every).samples
        == sum(measure(every).stops.values())
        == sum(len(tree.rollouts) for tree in every)
    )
    assert spent(every).episodes == sum(len(tree.rollouts) for tree in every)
    assert spent(every).policy_calls == sum(len(tree) for tree in every)


def test_an_episode_of_its_own_is_one_whatever_it_holds(trees: dict[str, Tree]) -> None:
    for tree in played(6, 3, "tree").values():
        assert tree.rollouts == tree.episodes
        assert all(tree.turns_of(e) == list(e.turns) for e in tree.episodes)


def test_every_tree_is_drawn_and_told(trees: dict[str, Tree]) -> None:
    for tree in trees.values():
        assert draw_tree(tree).count('class="outcome"') == len(tree.rollouts)
        words = in_words(tree, tree.rollouts)
        assert any(turn["what"] == "Reflection" for turn in words[0]["turns"])
        assert [row.episode for row in lanes(tree)]
        assert {row.episode.index for row in lanes(tree)} == {e.index for e in tree.rollouts}
    assert pick_tree(trees.values()) is not None
    rescues, number = pick_rescues(trees.values())
    assert number == sum(rescued(tree) for tree in trees.values()) > 0
    for rescue in rescues:
        assert rescue.chain[0] is rescue.tree.episodes[0]
        told = rescue_facts(rescue)
        assert told["rollbacks"][0]["turns"] == len(rescue.chain[0].acts)


def test_the_viewer_shows_the_reflection_on_the_known_episode(
    trees: dict[str, Tree], tmp_path: Path
) -> None:
    async def main() -> None:
        pages = make_app(
            make_run(tmp_path / "run", trees.values()), tmp_path / "cache", follow=False
        )[_PAGES]
        pages.follower.look()
        for tree in trees.values():
            reflection = next(t for t in tree if t.kind is Kind.reflect)
            for turn in tree:
                pages.tree(STAGE, {"task": tree.task.id, "turn": turn.id})
            html = pages.tree(STAGE, {"task": tree.task.id, "turn": reflection.id})
            assert f"{len(tree.rollouts)} of {len(tree.rollouts)} episodes" in html
            row = pages.index.task(pages.index.stage(STAGE)["id"], tree.task.id)  # type: ignore[index]
            assert row is not None
            assert (row["episodes"], row["samples"]) == (len(tree.rollouts), len(tree.rollouts))

    asyncio.run(main())


def leafe(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception is not None:
        raise done.exception
    return " ".join(done.output.split())


@pytest.mark.slow
def test_from_an_import_to_a_report_and_an_export(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    log = write_lines(
        tmp_path / "log.jsonl", [bare(row) for row in chat_lines(played(3, 1), tmp_path / "out")]
    )
    run, less = (
        tmp_path / "run",
        [
            "tasks.train=3",
            "tasks.test=1",
            "explore.limits.policy_calls=24",
            "evaluate.samples=2",
            "evaluate.k=[1]",
        ],
    )
    sets = [word for change in less for word in ("--set", change)]
    said = leafe("import", log, "--format", "chat", "--recipe", SMALL, *sets, "--out", run)
    assert "Continue with: leafe run" in said
    leafe("run", SMALL, *less, "--name", "run", "--runs", tmp_path)
    trees = load_trees(run / STAGE)
    assert any(e.looks_back for tree in trees.values() for e in tree.episodes)
    leafe("report", run)
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    marker = json.loads((run / STAGE / "done.json").read_text("utf-8"))
    assert sum(marker["stops"].values()) == sum(len(tree.rollouts) for tree in trees.values())
    assert (
        summary["explore"][0]["solved"]
        == marker["solved"]
        == sum(tree.solved for tree in trees.values())
    )
    assert marker["spent"]["episodes"] == sum(len(tree.rollouts) for tree in trees.values())
    leafe("export", run, "leafe+", "--to", "axolotl", "--out", tmp_path / "axolotl")
    leafe("export", run, "--stage", STAGE, "--to", "chat", "--out", tmp_path / "chat")
    assert leafe(
        "import",
        tmp_path / "chat" / "episodes.jsonl",
        "--format",
        "chat",
        "--out",
        tmp_path / "again",
    )

    async def view() -> None:
        pages = make_app(run, tmp_path / "cache", follow=False)[_PAGES]
        pages.follower.look()
        pages.overview()
        for tree in trees.values():
            pages.tree(STAGE, {"task": tree.task.id})

    asyncio.run(view())


def test_where_every_episode_diverged_it_says_what_differed_and_not_go_on(tmp_path: Path) -> None:
    rows_ = [bare(row) for row in chat_lines(played(3, 1), tmp_path / "out")]
    for row in rows_:
        for message in row["messages"]:
            if message["role"] == "user":
                message["content"] = "You stand in another house."
    log = write_lines(tmp_path / "log.jsonl", rows_)
    for where in (
        ("--recipe", SMALL),
        ("--env", "gates", "--option", "setting=easy", "--prompts", "gates"),
    ):
        said = leafe("import", log, "--format", "chat", *where, "--out", tmp_path / where[0])
        assert "Continue with" not in said
        assert "Their samples" not in said
        assert "There is nothing to continue from" in said
        assert (
            "which is not in the log's first message"
            in said.partition("There is nothing to continue from")[2]
        )
    with pytest.raises(UserError):
        leafe("import", log, "--format", "chat", "--env", "gates", "--out", tmp_path / "other")
