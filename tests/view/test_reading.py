"""While journals are being read: what the markers know stands there at once, and what is not read
yet is called that and never 'not begun'."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from leafe.core import Tree
from leafe.view import make_app
from leafe.view._follow import Follower
from leafe.view._pages import Pages
from leafe.view._server import _PAGES
from tests.trees import Ep, make_tree
from tests.view.folders import STAGE, new_run, write_stage

DONE = {
    "tasks": 3,
    "solved": 2,
    "rescued": 1,
    "stops": {"success": 2, "failure": 5, "env_error": 1},
    "unusable_reflections": 4,
}


def forest() -> list[Tree]:
    return [make_tree(Ep("a", "b"), task_id=f"t{n}") for n in range(3)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished exploration, and one of another strategy that goes on."""
    path = new_run(tmp_path / "run", 'strategies=["tree","independent"]')
    write_stage(path, forest(), done=DONE)
    write_stage(path, forest(), "explore/independent")
    return path


@pytest.fixture
def pages(run: Path, tmp_path: Path) -> Iterator[Pages]:
    return make_app(run, tmp_path / "cache", follow=False)[_PAGES]


def line(html: str, stage: str) -> str:
    """A stage's row of the overview, as words."""
    row = next(part for part in html.split("<tr>") if f">{stage}</a>" in part)
    return " ".join(re.sub("<[^>]*>", " ", row).split())


def test_before_anything_is_read_the_markers_figures_stand_there(pages: Pages) -> None:
    html = pages.overview()
    done = line(html, STAGE)
    assert "finished being read" in done
    assert done.partition("being read ")[2].startswith("3 2 66.7 % 1 8")
    going = line(html, "explore/independent")
    assert "being read" in going
    assert "%" not in going
    assert "so far" in going
    assert "Not begun" not in html or STAGE not in html.partition("Not begun")[2]


def test_a_stage_that_is_read_says_what_the_trees_say(pages: Pages) -> None:
    pages.follower.update()
    html = pages.overview()
    assert "being read" not in html
    assert "so far" not in html
    assert "not read yet" not in pages.tasks(STAGE, {})


def test_in_the_midst_of_reading_nothing_is_called_not_begun(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tasks are read, and no episode yet."""
    monkeypatch.setattr(Follower, "_read_shard", lambda *_: (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):
        pages.follower.update()
    for stage in (STAGE, "explore/independent"):
        html = pages.tasks(stage, {})
        assert "still being read" in html
        assert "not begun" not in html
        assert "not read yet" in html
        html = pages.tree(stage, {"task": "t0"})
        assert "not begun" not in html
        assert "not read yet" in html
    assert "0.0 %" not in pages.overview()
    assert "being read" in line(pages.overview(), STAGE)


def test_a_marker_of_0_1_0_that_knows_less_says_no_more_than_it_knows(
    run: Path, tmp_path: Path
) -> None:
    marker = run / STAGE / "done.json"
    marker.write_text(json.dumps({"stops": {"success": 2}}))
    pages = make_app(run, tmp_path / "cache", follow=False)[_PAGES]
    done = line(pages.overview(), STAGE)
    assert "finished being read" in done
    assert "%" not in done
    assert " 2 " in done
    for text in ("", "[]", '{"stops": 3, "solved": "x", "tasks": null}'):
        marker.write_text(text)
        assert "being read" in line(pages.overview(), STAGE)


def test_the_pulse_says_it_too(run: Path, tmp_path: Path) -> None:
    async def main() -> tuple[dict[str, Any], dict[str, Any]]:
        app = make_app(run, tmp_path / "cache", follow=False)
        async with TestClient(TestServer(app)) as client:
            first = await (await client.get("/pulse")).json()
            await asyncio.to_thread(app[_PAGES].follower.update)
            return first, await (await client.get("/pulse")).json()

    first, then = asyncio.run(main())
    assert {name: (s["state"], s["reading"]) for name, s in first["stages"].items()} == {
        STAGE: ("finished", True),
        "explore/independent": ("running", True),
    }
    assert not any(s["reading"] for s in then["stages"].values())
    assert all(s["read"] == s["of"] > 0 for s in then["stages"].values())


def test_a_stage_whose_journal_cannot_be_read_is_not_read_for_ever(
    run: Path, tmp_path: Path
) -> None:
    (run / STAGE / "journal-00000.jsonl").rename(run / STAGE / "journal-00001.jsonl")
    pages = make_app(run, tmp_path / "cache", follow=False)[_PAGES]
    pages.follower.update()
    assert "being read" not in line(pages.overview(), STAGE)


def test_a_run_that_grows_is_not_being_read(run: Path, tmp_path: Path) -> None:
    pages = make_app(run, tmp_path / "cache", follow=False)[_PAGES]
    pages.follower.update()
    with (run / "explore/independent/journal-00000.jsonl").open("a") as journal:
        journal.write('{"episodes": [')
    pages.follower.update()
    assert "being read" not in pages.overview()
