"""summary.json: the shape that other programs rely on, and figures that agree with the trees."""

from __future__ import annotations

import json
import math

import pytest

from leafe.core import UserError
from leafe.evaluate import Evaluated, Explored, Summary, counts, coverage, pass_estimate, summarise
from tests.evaluate.envs import Chance, Spell, play
from tests.trees import Ep, make_tree


def made() -> Summary:
    explored = [
        Explored("tree", [[make_tree(task_id="t0"), make_tree(Ep("a"), task_id="t1")]], 2.5),
        Explored("independent", [[make_tree(Ep("a"))]]),
    ]
    evaluated = [
        Evaluated("base", [play(Spell, Chance(), number=12, samples=32)], 1.0, 3.0, "base"),
        Evaluated("leafe", [play(Spell, Chance(), number=12, samples=32, seed=1)]),
    ]
    return summarise(
        explored,
        evaluated,
        ks=(1, 32, 64),
        compare=[("leafe", "base"), ("leafe", "absent")],
        seeds=[0],
        versions={"leafe": "0"},
    )


def test_holds_exactly_the_keys_that_programs_read() -> None:
    out = json.loads(json.dumps(made().to_json(), allow_nan=False))
    assert set(out) == {"explore", "evaluate", "differences", "seeds", "versions", "details"}
    keys = {
        "strategy",
        "solved",
        "tasks",
        "coverage",
        "ci95",
        "policy_calls",
        "env_steps",
        "replayed_steps",
        "seconds",
    }
    assert [set(row) for row in out["explore"]] == [keys] * 2
    judged = {
        "arm",
        "temperature",
        "tasks",
        "samples",
        "lost",
        "short",
        "pass_at",
        "entropy",
        "distinct",
        "following",
        "reflection",
        "same_step",
        "seconds",
    }
    assert [set(row) for row in out["evaluate"]] == [judged] * 2
    assert [set(row) for row in out["differences"]] == [{"a", "b", "k", "value", "ci95"}] * 3
    assert list(out["evaluate"][0]["pass_at"]) == ["1", "32", "64"]
    assert set(out["evaluate"][0]["pass_at"]["1"]) == {"value", "ci95"}


def test_figures_are_those_of_the_trees() -> None:
    summary = made()
    tree = summary.explore[0]
    assert (
        tree["strategy"],
        tree["solved"],
        tree["tasks"],
        tree["coverage"],
        tree["policy_calls"],
        tree["seconds"],
    ) == ("tree", 2, 2, 1.0, 10, 2.5)
    assert tree["ci95"] == [pytest.approx(coverage([make_tree()] * 2).low, abs=1e-6), 1.0]
    trees = play(Spell, Chance(), number=12, samples=32)
    expected = pass_estimate([counts(trees)], 1)
    base = summary.evaluate[0]
    assert (base["tasks"], base["samples"]) == (12, 32)
    assert base["pass_at"]["1"]["value"] == pytest.approx(expected.value, abs=1e-6)
    assert base["pass_at"]["1"]["ci95"] == pytest.approx([expected.low, expected.high], abs=1e-6)
    assert base["pass_at"]["64"] == {"value": None, "ci95": None}  # n < k
    one = next(d for d in summary.differences if d["k"] == 1)
    assert one["value"] == pytest.approx(
        summary.evaluate[1]["pass_at"]["1"]["value"] - base["pass_at"]["1"]["value"], abs=2e-6
    )
    details = summary.details["evaluate"][0]
    assert [p["k"] for p in details["curve"]] == [1, 2, 4, 8, 16, 32]
    assert sum(details["stops"].values()) == 12 * 32
    assert details["plain"]["env_steps"] > details["computed"]["env_steps"] > 0


def test_pass_at_k_never_falls_with_k() -> None:
    values = [p["value"] for p in made().details["evaluate"][0]["curve"]]
    assert values == sorted(values)


def test_several_runs_are_one_row() -> None:
    runs = [play(Spell, Chance(), number=6, samples=16, seed=s) for s in range(3)]
    summary = summarise(
        [], [Evaluated("a", runs), Evaluated("b", runs[::-1])], ks=(1,), compare=[("a", "b")]
    )
    assert summary.evaluate[0]["tasks"] == 18
    means = [pass_estimate([counts(r)], 1).value for r in runs]
    assert summary.evaluate[0]["pass_at"]["1"]["value"] == pytest.approx(sum(means) / 3, abs=1e-6)
    assert math.isclose(summary.differences[0]["value"], 0.0, abs_tol=1e-9)


def test_what_was_probed_stands_beside_pass_at_k_as_the_mean_of_the_runs() -> None:
    runs = [play(Spell, Chance(), number=3, samples=8, seed=s) for s in range(2)]
    probes = [
        {
            "following": 0.8,
            "unaided": None,
            "kind": "swapped",
            "pairs": 10,
            "reflection": 1.0,
        },
        {
            "following": 0.6,
            "unaided": None,
            "kind": "own",
            "pairs": 20,
            "reflection": None,
        },
    ]
    out = json.loads(
        json.dumps(
            summarise([], [Evaluated("a", runs, probes=probes)], ks=(1,)).to_json(), allow_nan=False
        )
    )
    row, more = out["evaluate"][0], out["details"]["evaluate"][0]
    assert (row["following"], row["reflection"], row["same_step"]) == (
        pytest.approx(0.7),
        1.0,
        None,
    )
    assert row["entropy"] == more["spread"]["entropy"]
    assert row["distinct"] == more["spread"]["distinct"]
    probed = more["probe"]
    assert (probed["pairs"], probed["kind"], probed["unaided"]) == (30, "swapped, own", None)


def test_every_row_stands_against_one_over_the_runs_that_both_have() -> None:
    runs = [play(Spell, Chance(), number=6, samples=8, seed=s) for s in range(3)]
    rows = [
        Evaluated("a", runs, labels=["x", "y", "z"]),
        Evaluated("b", runs[:2], labels=["x", "y"]),
        Evaluated("elsewhere", [play(Spell, Chance(), number=2, samples=8)], labels=["other"]),
    ]
    against = json.loads(
        json.dumps(summarise([], rows, ks=(1, 8), against="a").to_json(), allow_nan=False)
    )["details"]["against"]
    assert against["reference"] == "a"
    assert [(r["row"], r["k"], r["runs"], r["value"], r["claim"]) for r in against["rows"]] == [
        ("b", k, 2, 0.0, "not decided") for k in (1, 8)
    ]
    with pytest.raises(UserError, match="no row 'c'"):
        summarise([], rows, against="c")


def test_refuses_two_rows_of_one_name_and_pairs_on_other_tasks() -> None:
    trees = play(number=2)
    with pytest.raises(UserError, match="share a name: a"):
        summarise([], [Evaluated("a", [trees]), Evaluated("a", [trees])])
    with pytest.raises(UserError, match="different tasks in the same run"):
        summarise([], [Evaluated("a", [trees]), Evaluated("b", [trees[:1]])], compare=[("a", "b")])


def test_an_empty_run_is_a_summary_too() -> None:
    details: dict[str, list[object]] = {"explore": [], "evaluate": [], "collapse": []}
    assert summarise().to_json() == {
        "explore": [],
        "evaluate": [],
        "differences": [],
        "seeds": [],
        "versions": {},
        "details": details,
    }
