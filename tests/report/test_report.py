"""The page is self-contained and escapes what models write; tables and drawings show what the
summary holds."""

from __future__ import annotations

import csv
import io
import itertools
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from leafe.core import Stop, Tree
from leafe.evaluate import Evaluated, Explored, summarise
from leafe.report import (
    Table,
    against_csv,
    against_markdown,
    against_table,
    alarms,
    draw_tree,
    findings,
    pick_tree,
    print_tables,
    write_report,
)
from leafe.report._charts import Series, line_chart, look
from leafe.report._format import difference, interval, number, percent
from leafe.report._tree import OUTCOMES
from tests.evaluate.envs import play
from tests.trees import Ep, make_tree, trees

HOSTILE = (
    '<script>alert("x")</script><img src=http://evil.example/x onerror=alert(1)> & {{ 7*7 }} ]]>'
)


@cache
def hostile_tree() -> Tree:
    return make_tree(
        Ep(HOSTILE, "!" + HOSTILE, stop=Stop.failure, blame=0, note=HOSTILE),
        Ep("use " + HOSTILE, branch_of=0),
        task_id="t<b>0</b>",
    )


@cache
def summary() -> dict[str, Any]:
    explored = [
        Explored("tree", [[hostile_tree(), make_tree(task_id="t1")]], 1.0),
        Explored("<i>refine</i>", [[make_tree(Ep("a", stop=Stop.budget))]], 1.0),
    ]
    evaluated = [
        Evaluated("base", [play(number=8)], 1.0, 2.0, "base"),
        Evaluated("<b>arm</b>", [play(number=8, seed=5)], 0.7),
        Evaluated("top", [play(number=8, word="a")], 1.0, 0.0, "ceiling"),
    ]
    pairs = [("<b>arm</b>", "base"), ("top", "base")]
    return summarise(
        explored, evaluated, ks=(1, 8, 64, 128), compare=pairs, seeds=[3], versions={"leafe": "0.1"}
    ).to_json()


class Elements(HTMLParser):
    """All start tags with their attributes, and the text outside style and script."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.inside:
            self.text.append(data)


def page(tmp_path: Path, **more: Any) -> tuple[str, Elements]:
    given_: dict[str, Any] = {
        "title": f"run {HOSTILE}",
        "question": HOSTILE,
        "trees": [hostile_tree()],
        "config": HOSTILE,
        "notes": [HOSTILE],
        "command": HOSTILE,
        "datasets": {
            "<b>arm</b>": {"rehearsal": 12, "tokens": {"target": 99}},
            "rft": {"rehearsal": 4},
        },
    }
    out = write_report(summary(), tmp_path / "deep" / "report.html", **(given_ | more))
    text = out.read_text(encoding="utf-8")
    parser = Elements()
    parser.feed(text)
    return text, parser


def test_nothing_that_a_model_wrote_becomes_markup(tmp_path: Path) -> None:
    text, elements = page(tmp_path)
    tags = {tag for tag, _ in elements.tags}
    assert not tags & {"script", "img", "iframe", "object", "b", "i"}
    assert not [name for _, attrs in elements.tags for name in attrs if name.startswith("on")]
    assert "49" not in re.findall(r"&amp; (\S+) ]]", text)
    shown = "".join(elements.text)
    assert (
        shown.count(HOSTILE) >= 7
    )  # title, question, note, command, config, and in the tree's words


def test_nothing_is_fetched(tmp_path: Path) -> None:
    _, elements = page(tmp_path)
    assert not [
        attrs for _, attrs in elements.tags if {"src", "srcset", "data", "action"} & set(attrs)
    ]
    assert all(attrs["href"].startswith("#") for _, attrs in elements.tags if attrs.get("href"))
    policy = next(
        attrs["content"] for tag, attrs in elements.tags if tag == "meta" and "http-equiv" in attrs
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_every_drawing_is_well_formed(tmp_path: Path) -> None:
    text, _ = page(tmp_path)
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) >= 3 + 1 + 8
    for drawing in drawings:
        ElementTree.fromstring(drawing)


def test_shows_the_figures(tmp_path: Path) -> None:
    _, elements = page(tmp_path)
    shown = " ".join("".join(elements.text).split())
    for row in summary()["evaluate"]:
        for point in row["pass_at"].values():
            assert percent(point["value"]) in shown
            assert interval(point["ci95"]) in shown
    for row in summary()["differences"]:
        assert difference(row["value"]) in shown
    for words in (
        "Stage 1",
        "Stage 2",
        "tokens: target",
        "Differences on the same tasks",
        "One exploration tree",
        "How episodes ended",
        "invalid",
        "Seeds: 3",
    ):
        assert words in shown
    for line in findings(summary()):
        assert line in shown


def test_a_half_finished_run_has_a_report_too(tmp_path: Path) -> None:
    whole = summary()
    early = summarise([Explored("tree", [[make_tree(Ep("a", stop=Stop.failure))]])]).to_json()
    for part in (
        early,
        whole | {"explore": [], "details": whole["details"] | {"explore": []}},
        summarise().to_json(),
    ):
        text = write_report(part, tmp_path / "report.html", title="half").read_text(
            encoding="utf-8"
        )
        assert ("Stage 1" in text) == bool(part["explore"])
        assert ("Evaluation" in text) == bool(part["evaluate"])
        assert "One exploration tree" not in text


def test_findings_name_the_leaders_among_the_arms_only() -> None:
    lines = findings(summary())
    assert lines[0].startswith("Exploration, tasks solved at least once: tree 100.0 %")
    best = max(summary()["evaluate"][:2], key=lambda row: row["pass_at"]["1"]["value"])["arm"]
    assert any(line.startswith(f"Highest Pass@1 of the arms: {best}, ") for line in lines)
    assert not any("of the arms: top" in line for line in lines)
    assert any(line.startswith("Of 8 paired differences, ") for line in lines)


@pytest.mark.parametrize("width", [80, 140])
def test_terminal_tables_show_the_figures_whole(width: int) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_tables(summary(), console)
    shown = console.export_text()
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
    for row in summary()["evaluate"]:
        assert percent(row["pass_at"]["8"]["value"]) in shown
    assert "2/2" in shown
    assert "*" in shown
    only = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_tables(summary(), only, ["explore"])
    assert "Pass@" not in only.export_text()


def test_figures_as_text() -> None:
    assert (percent(0.12345), percent(None), number(1234.56, 1), number(None)) == (
        "12.3",
        "–",
        "1,234.6",
        "–",
    )
    assert (difference(0.1), difference(-0.1), difference(-0.0001)) == ("+10.0", "−10.0", "0.0")
    assert (interval([-0.01, 0.2], signed=True), interval([0.1, 0.2]), interval(None)) == (
        "[−1.0, +20.0]",
        "[10.0, 20.0]",
        "–",
    )


def rescue(task_id: str, branches: int) -> Tree:
    """Fails, is rolled back `branches` times, wins with the last."""
    failing = [
        Ep("a", "b", stop=Stop.failure, branch_of=i - 1 if i else None, blame=0, note="c")
        for i in range(branches)
    ]
    return make_tree(*failing, Ep("c", branch_of=branches - 1), task_id=task_id)


def test_the_tree_is_picked_by_the_rule() -> None:
    at_once = make_tree(
        Ep("a"),
        Ep("b", stop=Stop.failure, blame=0, note="x"),
        *[Ep("c", "d", stop=Stop.failure, branch_of=1)] * 4,
        task_id="a",
    )
    never = make_tree(
        Ep("b", stop=Stop.failure, blame=0, note="x"),
        *[Ep("c", stop=Stop.failure, branch_of=0)] * 5,
        task_id="b",
    )
    crowd = [rescue("z", 3), rescue("y", 3), rescue("x", 2), rescue("w", 9), at_once, never]
    picked = pick_tree(crowd)
    assert picked is not None
    assert picked.task.id == "y"  # three branches, before z; w has more than the limit
    fallback = pick_tree([at_once, never])
    assert fallback is not None
    assert fallback.task.id == "b"
    assert pick_tree([make_tree(Ep("a"))]) is None
    assert pick_tree([]) is None


@given(trees(max_episodes=8))
def test_any_tree_can_be_drawn_whole(tree: Tree) -> None:
    drawing = ElementTree.fromstring(str(draw_tree(tree)))
    groups = [g.get("class", "").split() for g in drawing.iter("g")]
    acts = [t for e in tree.episodes for t in e.acts]
    assert len(groups) == len(acts)
    assert sum("invalid" in g for g in groups) == sum(not t.valid for t in acts)
    assert sum("revised" in g for g in groups) == sum(
        e.experience is not None for e in tree.episodes
    )
    assert sum(p.get("class") == "rollback" for p in drawing.iter("path")) == sum(
        e.experience is not None for e in tree.episodes
    )
    width, height = map(float, drawing.get("viewBox", "").split()[2:])
    for circle in drawing.iter("circle"):
        assert 0 < float(circle.get("cx", "")) < width
        assert 0 < float(circle.get("cy", "")) < height
    ends = [t.text for t in drawing.iter("text") if t.get("class") == "outcome"]
    assert ends == [str(e.stop).replace("_", " ") for e in tree.episodes]


def test_every_stop_has_a_mark_of_its_own_colour_or_shape() -> None:
    assert set(OUTCOMES) == set(Stop)
    shown = [
        OUTCOMES[s]
        for s in (
            Stop.success,
            Stop.failure,
            Stop.horizon,
            Stop.invalid_limit,
            Stop.context_full,
            Stop.budget,
            Stop.diverged,
        )
    ]
    assert len(set(shown)) == len(shown)
    assert len({shape for _, shape in shown[:4]}) == 4  # told apart without colour


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(1, 2000), st.floats(0, 1)),
            min_size=1,
            max_size=8,
            unique_by=lambda p: p[0],
        ).map(sorted),
        min_size=1,
        max_size=9,
    ),
    st.booleans(),
)
def test_a_chart_keeps_every_point_and_label_inside(
    lines: list[list[tuple[int, float]]], log2: bool
) -> None:
    series = [
        Series(f"s{i}", [x for x, _ in points], [y for _, y in points], look(i))
        for i, points in enumerate(lines)
    ]
    drawing = ElementTree.fromstring(
        str(line_chart(series, title="t", x_label="x", y_label="y", log2=log2))
    )
    width, height = map(float, drawing.get("viewBox", "").split()[2:])
    for line in drawing.iter("polyline"):
        for point in line.get("points", "").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
    places = sorted(
        float(t.get("y", "")) for t in drawing.iter("text") if t.get("class") == "series"
    )
    assert len(places) == len(series)
    assert all(b - a > 12 for a, b in itertools.pairwise(places))  # no name on another
    assert places[0] > 0
    assert places[-1] < height


def test_a_chart_without_points_is_nothing() -> None:
    assert str(line_chart([], title="t", x_label="x", y_label="y")) == ""


@cache
def full() -> dict[str, Any]:
    """A summary with all that may stand beside Pass@k: probes, alarms, rounds, validation, and
    every row against one."""
    well = {
        "following": 0.8,
        "unaided": 0.1,
        "kind": "swapped",
        "pairs": 9,
        "reflection": 1.0,
        "reflections": 7,
        "same_step": 0.9,
        "reflection_logprob": -0.5,
    }
    ill = well | {"following": 0.2, "same_step": 0.3, "env": {"heeds": 0.1}}
    runs = [play(number=8, seed=s) for s in range(3)]
    rows = [
        Evaluated("base", runs, 1.0, 2.0, "base", probes=[well | {"env": {"heeds": 0.7}}] * 3),
        Evaluated(HOSTILE, [play(number=8, seed=s + 10) for s in range(3)], probes=[ill] * 3),
        Evaluated("hot", runs, 1.3, role="control"),
    ]
    out = summarise([], rows, ks=(1, 8, 64), against="base").to_json()
    one = {
        "arm": HOSTILE,
        "round": 1,
        "tasks": 10,
        "solved": 3,
        "coverage": 0.3,
        "samples": 41.5,
        "valid": {"1": 0.125},
        "test": {"1": 0.25, "64": None},
        "entropy": 0.5,
        "distinct": 0.25,
        "following": 0.8,
        "reflection": 1.0,
        "same_step": 0.9,
        "chosen": 2,
        "stopped": 0,
        "runs": 3,
    }
    two = one | {
        "round": 2,
        "valid": {},
        "test": {},
        "samples": None,
        "coverage": None,
        "following": None,
        "chosen": 0,
        "stopped": 1,
    }
    tried = {
        "arm": "a",
        "seed": 0,
        "chosen": True,
        "attempt": "a.try1",
        "what": f"a ({HOSTILE} = 1)",
        "temperature": 1.0,
        "tasks": 4,
    }
    tried["pass_at"] = {"1": {"value": 0.375, "ci95": [0.1, 0.6]}}
    left = {
        "arm": "a",
        "seed": 0,
        "chosen": False,
        "attempt": "a.try2",
        "what": "a (rate = 2)",
        "temperature": None,
        "empty": "nothing to learn from",
    }
    out["details"] |= {"rounds": [one, two], "validation": [tried, left]}
    return out


def test_alarms_say_the_rule_with_the_figures() -> None:
    said = alarms(full())
    assert len(said) == 2
    assert (
        "it has unlearned to follow an experience: it gives the action that one asks for a "
        "probability of 20.0 %, under three quarters of"
    ) in said[0]
    assert "the base policy's 80.0 %." in said[0]
    assert "blame the step" in said[1]
    every = [
        {"arm": "a", "figure": d, "value": 0.1, "base": 0.9, "share": 0.5}
        for d in ("entropy", "distinct", "reflection")
    ]
    found = alarms({"details": {"collapse": every}})
    assert all("under half of the base policy's" in line for line in found)
    assert "0.100 nats" in found[0]


def test_the_page_shows_all_that_stands_beside_pass_at_k(tmp_path: Path) -> None:
    out = write_report(full(), tmp_path / "report.html", title="t")
    text = out.read_text(encoding="utf-8")
    assert "<script" not in text
    parser = Elements()
    parser.feed(text)
    shown = " ".join(" ".join(parser.text).split())
    for words in (
        "Signs of collapse",
        "Can the policies still learn from experience?",
        "Rounds",
        "chosen in 2 of 3",
        "not reached in 1 of 3",
    ):
        assert words in shown
    for words in (
        "Settings tried on validation",
        "nothing to learn from",
        "37.5",
        "Every row against base",
        "12.5",
    ):
        assert words in shown
    bare = write_report(summary(), tmp_path / "bare.html", title="t").read_text(encoding="utf-8")
    for words in (
        "Signs of collapse",
        "still learn",
        "<h3>Rounds",
        "Settings tried",
        "Every row against",
    ):
        assert words not in bare


@pytest.mark.parametrize("width", [80, 140])
def test_terminal_tables_show_what_stands_beside_pass_at_k(width: int) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_tables(full(), console)
    console.print(against_table(full()))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= width
    for words in (
        "follow",
        "reflect",
        "entropy",
        "distinct",
        "80.0",
        "90.0",
        "Rounds",
        "chosen 2/3",
        "Against base",
    ):
        assert words in shown
    assert "! " + HOSTILE[:8] in shown


def test_the_comparison_as_markdown_and_csv() -> None:
    lines = against_markdown(full()).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 2, "head, rule, the reference and the arm; a control makes no claim"
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    rows = list(csv.DictReader(io.StringIO(against_csv(full()))))
    assert [(r["row"], r["k"]) for r in rows] == [
        ("base", "1"),
        ("base", "64"),
        (HOSTILE, "1"),
        (HOSTILE, "64"),
    ]
    arm = next(r for r in rows if r["row"] == HOSTILE and r["k"] == "1")
    found = full()["details"]["against"]["rows"][0]
    assert [
        float(arm[name]) for name in ("difference", "difference_low", "difference_high", "p")
    ] == [found[n] for n in ("value", "low", "high", "p")]
    assert arm["claim"] == found["claim"] == "not decided" not in table[3]
    claimed = {
        **full(),
        "details": {
            **full()["details"],
            "against": {**full()["details"]["against"], "rows": [found | {"claim": "above"}]},
        },
    }
    assert "] above |" in against_markdown(claimed).splitlines()[3]
    assert rows[0]["difference"] == ""


def test_a_table_as_markdown_csv_and_on_the_terminal() -> None:
    table = Table("T [b]", ("row", "n"), [("a|b\nc", ("1.5", "[1, 2]")), ("[red]", None)])
    assert table.markdown() == (
        "| row | n |\n| --- | --- |\n| a\\|b c | 1.5 [1, 2] |\n| [red] |  |\n"
    )
    plain = Table("", ("row", "n"), [("a,b", 0.1), ("c", None)]).csv()
    assert list(csv.reader(io.StringIO(plain))) == [["row", "n"], ["a,b", "0.1"], ["c", ""]]
    console = Console(width=40, record=True, file=io.StringIO())
    console.print(table)
    shown = console.export_text()
    assert all(text in shown for text in ("T [b]", "[red]", "a|b", "[1, 2]"))
