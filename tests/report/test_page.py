"""The page as a reader gets it: its structure, its rescues by rule, its bounds against what models
write, and runs side by side."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import Episode, Kind, Stop, Tree, Turn, visible
from leafe.evaluate import Evaluated, Explored, summarise
from leafe.report import (
    clip,
    duration,
    pick_rescues,
    rescue_of,
    side_by_side,
    side_tables,
    write_report,
)
from leafe.report._bars import Bar, Segment, bar_chart
from leafe.report._charts import look
from tests.evaluate.envs import play
from tests.trees import Ep, make_tree, trees

VOID = {"meta", "br", "link", "img", "input", "col"}
STAGE = {
    "kind": "explore",
    "row": "tree",
    "runs": 1,
    "seconds": 75.0,
    "trained_tokens": 0,
    "policy_calls": 10,
    "env_steps": 9,
    "prompt_tokens": 100,
    "cached_tokens": 80,
    "generated_tokens": 30,
    "waits": {"engine": 3.0, "total": 4.0},
    "failures": {"environments that failed": 2},
}


class Outline(HTMLParser):
    """What structure there is: headings, ids, links, tables with their captions and heads, drawings
    with their names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.levels: list[int] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tables: list[set[str]] = []
        self.drawings: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.cells: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given_ = dict(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if "id" in given_:
            self.ids.append(str(given_["id"]))
        if tag == "a":
            self.links.append(str(given_.get("href")))
        if tag == "table":
            self.tables.append(set())
        elif "table" in self.open and self.tables:
            self.tables[-1].add(tag)
        if tag == "svg":
            self.drawings.append(given_)
        if tag in ("th", "td"):
            self.cells.append((tag, given_))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag, f"</{tag}> closes something else"


def rescue(task_id: str, step: int, length: int = 6) -> Tree:
    """Fails after `length` turns, goes back to `step`, wins."""
    return make_tree(
        Ep(
            *[f"a{i}" for i in range(length)], stop=Stop.failure, blame=step, note=f"do b at {step}"
        ),
        Ep("b", branch_of=0),
        task_id=task_id,
    )


@cache
def summary() -> dict[str, Any]:
    explored = [
        Explored("tree", [[rescue(f"t{n}", n % 5) for n in range(9)]], 1.0),
        Explored("independent", [[make_tree(Ep("a", stop=Stop.budget))]]),
    ]
    rows = [
        Evaluated("base", [play(number=8)], role="base"),
        Evaluated("arm", [play(number=8, seed=5)]),
    ]
    rows.append(Evaluated("hot", [play(number=8)], 1.3, role="control"))
    out = summarise(
        explored, rows, ks=(1, 8), compare=[("arm", "base")], seeds=[3], versions={"leafe": "0.1"}
    ).to_json()
    tried = {
        "row": "tries",
        "policy": "base",
        "method": "reflexion",
        "attempts": 2,
        "pass_1": 0.5,
        "policy_calls": 7.0,
    }
    started = {
        "run": "",
        "time": "2026-01-01",
        "commit": "abc (changed)",
        "machine": "Linux",
        "cpus": 2,
        "changed": "",
    }
    arms = [
        {"arm": "arm", "what": "LEAFE", "learns": "tree", "start": "base", "settings": "steps = 2"}
    ]
    unknown = STAGE | {"kind": "no kind that we know", "waits": {}, "failures": {}}
    out["details"] |= {
        "stages": [STAGE, unknown],
        "tries": [tried],
        "starts": [started],
        "arms": arms,
    }
    return out


def page(tmp_path: Path, **more: Any) -> str:
    given_: dict[str, Any] = {
        "title": "t",
        "question": "Why?",
        "trees": [rescue(f"t{n}", n % 5) for n in range(9)],
        "config": "a = 1",
        "notes": ["one"] * 7,
    }
    return write_report(
        summary(),
        tmp_path / "report.html",
        **(given_ | {"datasets": {"arm": {"rehearsal": "3"}}} | more),
    ).read_text(encoding="utf-8")


def test_the_structure_is_sound(tmp_path: Path) -> None:
    outline = Outline(page(tmp_path))
    assert not outline.open
    assert outline.levels[0] == 1
    assert outline.levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(outline.levels, outline.levels[1:], strict=False)), (
        "no level of headings is left out"
    )
    assert len(set(outline.ids)) == len(outline.ids)
    assert {link.removeprefix("#") for link in outline.links} <= set(outline.ids)
    assert len(outline.links) >= 9
    assert all({"caption", "thead", "tbody"} <= found for found in outline.tables)
    assert all("scope" in attrs for tag, attrs in outline.cells if tag == "th")
    assert all(
        attrs.get("aria-hidden") == "true"
        or (attrs.get("role") == "img" and attrs.get("aria-label"))
        for attrs in outline.drawings
    )


def test_every_part_is_there(tmp_path: Path) -> None:
    text = page(tmp_path)
    for words in (
        "The arms",
        "LEAFE",
        "Three rescues",
        "Picked by rule",
        "Failures by kind",
        "environments that failed",
        "Where time and tokens went",
        "1 min 15 s",
    ):
        assert words in text
    for words in (
        "no kind that we know: tree",
        "Several attempts at a test task",
        "abc (changed)",
        "The exact settings",
        "7 notes",
        "What Stage 1 waited for",
    ):
        assert words in text
    bare = write_report(summarise().to_json(), tmp_path / "bare.html", title="t").read_text()
    assert "Failures" not in bare
    assert "rescue" not in Outline(bare).ids


def renamed(tree: Tree, task_id: str) -> Tree:
    """The same tree as another task's."""
    data = json.loads(
        json.dumps([e.to_json() for e in tree.episodes]).replace(f'"{tree.task.id}', f'"{task_id}')
    )
    return Tree(replace(tree.task, id=task_id), map(Episode.from_json, data))


@settings(max_examples=40)
@given(st.lists(trees(max_episodes=5), max_size=6))
def test_rescues_are_the_quartiles(grown: list[Tree]) -> None:
    crowd = [renamed(tree, f"t{n}") for n, tree in enumerate(grown)]
    picked, number = pick_rescues(crowd)
    ranked = []
    for tree in crowd:
        wins = [e for e in tree.episodes if e.stop is Stop.success]
        if wins and all(e.depth > 0 for e in wins):
            ranked.append(
                (len([t for t in tree.trajectory(wins[0]) if t not in wins[0].turns]), tree.task.id)
            )
    ranked.sort()
    assert number == len(ranked)
    assert len(picked) == min(3, number)
    assert [r.saved for r in picked] == sorted(r.saved for r in picked)
    assert {(r.saved, r.tree.task.id) for r in picked} <= set(ranked)
    for r in picked:
        assert r.chain[0].depth == 0
        assert r.chain[-1] is r.winner
        assert all(
            after.depth == before.depth + 1
            for before, after in zip(r.chain, r.chain[1:], strict=False)
        )


def test_which_three_of_nine() -> None:
    crowd = [rescue(f"t{n}", step) for n, step in enumerate([5, 4, 3, 2, 1, 0, 0, 1, 2])]
    picked, number = pick_rescues(crowd)
    assert number == 9
    # in order of turns saved: 0 0 1 1 2 2 3 4 5, of which the third, fifth and seventh
    assert [(r.saved, r.tree.task.id) for r in picked] == [(1, "t4"), (2, "t3"), (3, "t2")]
    assert rescue_of(make_tree(Ep("a"))) is None


def test_an_aside_is_no_action(tmp_path: Path) -> None:
    tree = rescue("t0", 1)
    first = tree.episodes[0]
    last = first.acts[-1].id
    said = Turn(
        id="t0/0.6a0",
        parent=last,
        task_id="t0",
        step=6,
        kind=Kind.aside,
        action_text="a LESSON of some kind",
        action="lesson",
    )
    changed = Tree(tree.task)
    changed.add(replace(first, turns=(*first.turns, said)))
    changed.add(tree.episodes[1])
    text = page(tmp_path, trees=[changed])
    assert re.search(r"<em>Aside after 6 steps:</em> <span class=\"said\">a LESSON", text)
    assert not re.search(r"Step 6: <span class=\"said\">a LESSON", text)


HOSTILE = (
    "\x1b[31mred\x1b]0;title\x07 \u202eright\u2066left \ud800 \x00 <script>alert(1)</script> "
    + "x" * (1 << 20)
)


def test_what_models_write_is_text_and_has_an_end(tmp_path: Path) -> None:
    bad = make_tree(
        Ep(HOSTILE, HOSTILE, stop=Stop.failure, blame=1, note=HOSTILE),
        Ep(HOSTILE, branch_of=0),
        task_id="t\x1b[2J",
    )
    text = page(
        tmp_path,
        trees=[bad],
        config=HOSTILE,
        notes=[HOSTILE] * 500,
        question=HOSTILE,
        title="\u202et",
    )
    assert len(text.encode()) < 3 << 20
    assert not set(text) & {"\x1b", "\x07", "\x00", "\u202e", "\u2066", "\ud800"}
    assert "⟨U+202E⟩" in text
    assert "␛[31mred" in text
    assert "<script" not in text
    assert "more characters left out]" in text
    assert "440 more notes were left out." in text


@pytest.mark.parametrize("script", ["العربية", "日本語", "हिन्दी", "עברית", "🙂é"])
def test_letters_of_any_script_stay(script: str, tmp_path: Path) -> None:
    assert visible(script) == script
    assert script in page(tmp_path, question=script)


@given(st.text(), st.integers(0, 50))
def test_clipped_text_says_how_much_is_missing(text: str, limit: int) -> None:
    cut = clip(text, limit)
    assert cut.startswith(text[:limit])
    if len(text) > limit:
        missing = int(
            re.findall(r"\[([\d,]+) more characters left out\]$", cut)[0].replace(",", "")
        )
        assert limit + missing == len(text)
    else:
        assert cut == text


@given(st.text(alphabet=st.characters(codec=None)))
def test_clean_text_can_be_written_and_steers_nothing(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert not [c for c in shown if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0]
    assert visible(shown) == shown


def test_looks_come_back_after_sixty_four() -> None:
    assert len({look(n) for n in range(64)}) == 64


@given(st.lists(st.lists(st.floats(0, 1e6), min_size=1, max_size=5), max_size=8), st.booleans())
def test_bars_stay_on_the_page(rows: list[list[float]], shares: bool) -> None:
    bars = [
        Bar(f"row {n}", [Segment("part", value, "#000") for value in row], "1")
        for n, row in enumerate(rows)
    ]
    drawing = str(bar_chart(bars, title="t", shares=shares))
    assert (drawing == "") == (not any(value > 0 for row in rows for value in row))
    for x, width in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawing):
        assert float(x) + float(width) <= 860


def test_durations() -> None:
    assert [duration(s) for s in (0.25, 41, 200, 7500, None)] == [
        "0.2 s",
        "41 s",
        "3 min 20 s",
        "2 h 5 min",
        "–",
    ]


@cache
def side() -> dict[str, Any]:
    rows = [
        Evaluated("a: base", [play(number=8)], role="base"),
        Evaluated("b: base", [play(number=8, seed=3)], role="base"),
    ]
    rows.append(Evaluated("b: arm", [play(number=8)]))
    explored = [
        Explored("a: tree", [[rescue("t", 1)]]),
        Explored("b: tree", [[make_tree(Ep("x", stop=Stop.failure))]]),
    ]
    out = summarise(explored, rows, ks=(1, 8), compare=[("b: base", "a: base")]).to_json()
    mine = {
        f"{run}: {row}": {"run": run, "row": row} for run in "ab" for row in ("base", "arm", "tree")
    }
    runs = [{"name": run, "path": run, "about": ""} for run in "ab"]
    out["details"]["compare"] = {
        "runs": runs,
        "rows": mine,
        "other_tasks": [],
        "settings": [{"key": "explore.max_depth", "values": ["6", None]}],
    }
    return out


def test_side_by_side(tmp_path: Path) -> None:
    found = side_by_side(side())
    assert [row for row, _ in found["explore"]] == ["tree"]
    cells = {(row, k): cells for row, k, cells in found["evaluate"]}
    assert set(cells) == {("base", "1"), ("base", "8"), ("arm", "1"), ("arm", "8")}
    assert cells["arm", "1"][0] is None
    assert cells["base", "1"][0][1] is None
    assert cells["base", "1"][1][1]["value"] == side()["differences"][0]["value"]
    assert len(side_tables(side())) == 3
    assert side_by_side(summary()) == {}
    text = write_report(side(), tmp_path / "report.html", title="a | b").read_text()
    assert "Settings in which they differ" in text
    assert "Highest" not in text, "of runs that had other tasks nobody leads"
    Outline(text)
