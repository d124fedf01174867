"""A table as people and programs get it: golden markdown, LaTeX that a compiler would take, CSV
that comes back, and what is missing, with its command."""

from __future__ import annotations

import csv
import io
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from leafe.core import UserError
from leafe.pipeline._run import _FREE, _GROWING, config_of
from leafe.recipes import load_recipe
from leafe.runs import RunFolder
from studies.paper import (
    Block,
    Cell,
    Document,
    all_claims,
    build,
    csv_text,
    gather,
    latex,
    markdown,
    show,
    write,
)
from studies.paper.document import RECORD
from tests.studies.paper.folders import make, recipe

SOLVED = {
    "evaluate/base": [0] * 12,
    "evaluate/rehearsal": [0, 64] * 6,
    "evaluate/leafe": [64] * 12,
    "evaluate/leafe+": [64] * 12,
}
GOLDEN = Path(__file__).with_name("golden.md").read_text("utf-8")


def whole(tmp_path: Path) -> Path:
    twice = {stage: outcomes * 2 for stage, outcomes in SOLVED.items()}
    return make(
        tmp_path / "one",
        recipe(tasks__train=24, tasks__test=24),
        twice | {"explore/tree": [1] * 24, "explore/independent": [None] * 24},
    )


def test_golden_markdown(tmp_path: Path) -> None:
    """By hand, of the claim at Pass@128: 12 tasks differ by 1, 12 by 0. With one more at -1 the
    mean is 0.44, its standard error
    0.1166, and t with 24 degrees 2.064: from 0.199. With one more at 1: 0.52, 0.102, to 0.730.
    Without: [0.284, 0.716]."""
    text = markdown(build(gather([whole(tmp_path)]), 4))
    assert text.startswith(GOLDEN)


def test_a_table_of_several_runs_says_how_many(tmp_path: Path) -> None:
    seeds = {f"evaluate/seed{s}.{row}": [s] * 12 for s in (0, 1) for row in ("rehearsal", "leafe")}
    del seeds["evaluate/seed1.rehearsal"]
    text = markdown(build(gather([make(tmp_path / "one", recipe(seeds=(0, 1)), seeds)]), 4))
    assert "(24, 2)" in text
    assert "(12, 1 of 2)" in text
    assert "L\\_reh only lacks 1 of 2 runs in gates hard (embedded, seed 1)" in text


def tokens(tex: str) -> list[str]:
    return re.findall(r"\\[a-zA-Z]+|\\.|[{}&$%#_^~\n]|[^\\{}&$%#_^~\n]+", tex)


def check_tex(tex: str) -> None:
    """What TeX would stop at: unbalanced braces, environments, or mathematics; an active character
    on its own; a row with more cells than columns."""
    depth = 0
    inside = False
    for token in tokens(
        "".join(line for line in tex.splitlines(keepends=True) if not line.startswith("%"))
    ):
        depth += (token == "{") - (token == "}")
        inside ^= token == "$"
        assert depth >= 0
        assert token not in ("#", "_", "^", "~", "%")
        assert token.isascii(), token
    assert depth == 0
    assert not inside
    open_: list[str] = []
    for what, name in re.findall(r"\\(begin|end)\{(\w+)\}", tex):
        if what == "begin":
            open_.append(name)
        else:
            assert open_.pop() == name
    assert not open_
    for columns, body in re.findall(
        r"\\begin\{tabular\}\{([lr]+)\}\n(.*?)\\end\{tabular\}", tex, re.DOTALL
    ):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert rows
        assert all(len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1 for row in rows)


def test_latex_of_every_table(tmp_path: Path) -> None:
    evidence = gather([whole(tmp_path)])
    for number in (1, 2, 3, 4, 6):
        check_tex(latex(build(evidence, number)))


nasty = st.text(alphabet=st.sampled_from("ab \\{}$&%#_^~[]<>|\"'*−–×†=\n"), max_size=12)


@given(st.lists(st.tuples(nasty, nasty, nasty), min_size=1, max_size=3), nasty)
def test_no_text_breaks_a_format(rows: list[tuple[str, str, str]], title: str) -> None:
    document = Document(
        "x",
        title,
        (Block(title, ("a", "b"), tuple((Cell(a), Cell(b, c, best=True)) for a, b, c in rows)),),
        (title,),
    )
    check_tex(latex(document))
    lines = [line for line in markdown(document).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows)
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3 for line in lines)


def test_csv_comes_back(tmp_path: Path) -> None:
    text = csv_text(build(gather([whole(tmp_path)]), 4))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == RECORD
    assert {r["kind"] for r in rows} == {"cell", "budget", "comparison", "claim", "power"}
    (cell,) = [
        r for r in rows if (r["kind"], r["row"], r["measure"]) == ("cell", "rehearsal", "Pass@128")
    ]
    assert (cell["value"], cell["tasks"], cell["runs"], cell["samples"], cell["k"]) == (
        "0.5",
        "24",
        "1",
        "128",
        "128",
    )
    assert {r["row"]: r["verdict"] for r in rows if r["kind"] == "claim"} == {
        "4a": "holds",
        "4b": "does not hold",
    }


def test_files_and_the_terminal(tmp_path: Path) -> None:
    document = build(gather([whole(tmp_path)]), 3)
    console = Console(width=250, record=True, file=io.StringIO())
    show(document, console)
    said = console.export_text()
    assert "100.0" in said
    assert "IR has not been run in gates hard" in said
    paths = write(document, tmp_path / "new/t.md", tmp_path / "t.csv", tmp_path / "t.tex")
    assert all(path.stat().st_size for path in paths)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write(document, tmp_path / "file/t.md")


def test_what_is_missing_is_missing(tmp_path: Path) -> None:
    """No cell of an arm that was not run holds a figure, and each such arm has a note."""
    document = build(gather([whole(tmp_path)]), 1)
    rows = {row[0].text: row[1:] for row in document.blocks[0].rows}
    for name in ("EarlyExp", "GRPO", "ACE", "RFT"):
        assert {c.text for c in rows[name]} == {"not run"}
        assert any(
            note.startswith(f"{name} has not been run in gates hard") for note in document.notes
        )
    assert not any(r["row"] in ("grpo", "ace") for r in document.records if r["kind"] == "cell")


def offered(notes: tuple[str, ...]) -> list[list[str]]:
    return [
        shlex.split(command)
        for note in notes
        for command in re.findall(r"`(leafe run [^`]*)`", note)
    ]


def accepted(command: list[str]) -> Path:
    """Open the run as the command would; the folder."""
    runs, name = (command[command.index(option) + 1] for option in ("--runs", "--name"))
    overrides = command[3 : command.index("--runs")]
    made = load_recipe(command[2], overrides)
    folder = Path(runs) / name
    RunFolder.open(folder, config_of(made), growing=_GROWING, free=_FREE).close()
    return folder


def test_the_commands_that_are_offered_work(tmp_path: Path) -> None:
    """An arm that is not in the recipe, one that is but was not run, a strategy, an unfinished
    stage, another seed."""
    arms = {"leafe+": {"preset": "leafe+"}}
    few = make(
        tmp_path / "a run",
        recipe(arms=arms, strategies=("tree",)),
        SOLVED | {"explore/tree": [1] * 12},
        unfinished={"evaluate/leafe+": 5},
    )
    for number, changed in ((1, "rehearsal"), (4, "leafe"), (3, "refine")):
        notes = build(gather([few]), number).notes
        commands = offered(notes)
        assert commands
        folders = {accepted(command) for command in commands}
        assert few in folders
        config = RunFolder.read(few).config
        assert changed in config["arms"] or changed in config["strategies"], changed
    assert tmp_path / "a run-seed1" in folders
    assert RunFolder.read(tmp_path / "a run-seed1").config["seeds"] == [1]


def test_arms_that_this_leafe_cannot_make_are_said_to_be_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from studies.paper import definitions

    monkeypatch.setitem(definitions.ARMS, "grpo", {"preset": "absent"})  # type: ignore[arg-type]
    notes = build(gather([whole(tmp_path)]), 1).notes
    assert (
        "GRPO has not been run in gates hard: no command yet: this leafe has no preset 'absent'"
        in notes
    )


def test_a_controls_arm_is_offered_as_a_run_of_its_own(tmp_path: Path) -> None:
    controls = {
        "random": {
            "options": {"setting": "random"},
            "strategies": ["tree"],
            "arms": ["leafe"],
            "test": 5,
        }
    }
    made = recipe(controls=controls)
    stages = SOLVED | {"evaluate/random.base": [0] * 5, "evaluate/random.leafe": [1] * 5}
    document = build(gather([make(tmp_path / "one", made, stages)]), 4)
    (command,) = [
        c
        for c in offered(document.notes)
        if "one-random" in c and "env.options.setting=random" in c
    ][:1]
    assert RunFolder.read(accepted(command)).config["tasks"]["test"] == 5
    assert any("is a control" in note for note in document.notes)
    assert all(
        "random" not in cell.text for row in document.blocks[2].rows for cell in row
    )  # no claim speaks of it


def test_unfinished_rows_are_marked_and_not_ranked(tmp_path: Path) -> None:
    folder = make(
        tmp_path / "one", recipe(), SOLVED, unfinished={"evaluate/leafe": 5, "evaluate/leafe+": 0}
    )
    document = build(gather([folder]), 4)
    rows = {row[0].text: row[1] for row in document.blocks[0].rows}
    assert rows["LEAFE"].text == "50.0†"
    assert rows["LEAFE"].more.endswith("(5, 1)")
    assert not rows["LEAFE"].best
    assert rows["LEAFE+"].text == "begun†"
    assert rows["L_reh only"].best
    assert any(
        note.startswith(
            "† LEAFE is unfinished in gates hard (embedded, seed 0): 5 of 12 of its tasks are there"
        )
        for note in document.notes
    )
    assert {r["verdict"] for r in document.records if r["kind"] == "claim"} == {"not decided"}


@pytest.mark.parametrize(("lost", "there"), [("the last line", "23 of 24"), ("all", "none")])
def test_a_finished_row_whose_journal_was_lost_is_unfinished_and_says_so(
    tmp_path: Path, lost: str, there: str
) -> None:
    folder = whole(tmp_path)
    (journal,) = (folder / "evaluate/leafe").glob("journal-*")
    if lost == "all":
        journal.unlink()
    else:
        journal.write_bytes(journal.read_bytes()[:-20])
    document = build(gather([folder]), 4)
    (note,) = [note for note in document.notes if note.startswith("† LEAFE is unfinished")]
    assert f"{there} of its tasks are there" in note
    assert "marked as finished all the same: restore the journal in" in note
    assert {r["verdict"] for r in document.records if r["kind"] == "claim"} == {"not decided"}


def test_a_training_with_nothing_to_learn_from_is_no_figure(tmp_path: Path) -> None:
    stages = {row: solved for row, solved in SOLVED.items() if row != "evaluate/leafe"}
    made = make(
        tmp_path / "one",
        recipe(),
        stages,
        markers={"evaluate/leafe": {"empty": "the trees hold nothing", "stays": "base"}},
    )
    document = build(gather([made]), 4)
    assert [
        c.text for row in document.blocks[0].rows if row[0].text == "LEAFE" for c in row[1:]
    ] == ["nothing to learn"] * 2
    assert any(
        "LEAFE has no figure in gates hard (embedded, seed 0): the trees hold nothing" in note
        for note in document.notes
    )


def test_seeds_that_one_base_lacks_are_said(tmp_path: Path) -> None:
    seeds = {f"evaluate/seed{s}.{row}": [s] * 12 for s in (0, 1) for row in ("rehearsal", "leafe")}
    both = make(tmp_path / "both", recipe(seeds=(0, 1)), seeds)
    one = make(tmp_path / "one", recipe(policy__model="other"), SOLVED)
    notes = build(gather([both, one]), 4).notes
    (note,) = [note for note in notes if "lacks seeds 1 of the base policy other" in note]
    (command,) = offered((note,))
    assert RunFolder.read(accepted(command)).config["seeds"] == [1]


def test_few_samples_give_a_smaller_k_and_say_so(tmp_path: Path) -> None:
    made = recipe(evaluate={"samples": 6, "k": [1, 4]})
    document = build(
        gather(
            [
                make(
                    tmp_path / "one",
                    made,
                    {row: [min(6, c) for c in solved] for row, solved in SOLVED.items()},
                )
            ]
        ),
        4,
    )
    assert document.blocks[0].head == ("method", "gates hard Pass@1", "gates hard Pass@4")
    assert any("too few samples a task for Pass@128" in note for note in document.notes)


def test_nothing_of_a_table_is_one_sentence(tmp_path: Path) -> None:
    folder = make(tmp_path / "one", recipe(), {"explore/tree": [1] * 12})
    with pytest.raises(UserError, match=r"holds no row of table 1 .*leafe run"):
        build(gather([folder]), 1)
    with pytest.raises(UserError, match="in an environment that it was not trained in"):
        build(gather([folder]), 5)
    with pytest.raises(UserError, match="No run folder was given for table 4"):
        build(gather([]), 4)


def test_all_claims_by_name(tmp_path: Path) -> None:
    document = all_claims([whole(tmp_path)])
    found = {row[0].text: row[2].text for row in document.blocks[0].rows}
    assert list(found)[:4] == ["1a", "1b", "1c", "1d"]
    assert {"2a", "3a", "3b", "4a", "4b", "5a", "5b", "6a"} <= set(found)
    assert set(found.values()) <= {"holds", "does not hold", "not decided"}
    assert (found["3a"], found["4a"], found["4b"], found["5a"]) == (
        "holds",
        "holds",
        "does not hold",
        "not decided",
    )


def test_a_row_that_cost_more_is_said_to(tmp_path: Path) -> None:
    arms = {
        "rehearsal": {"preset": "rehearsal"},
        "leafe": {"preset": "paper", "start": "rehearsal", "explorer": "rehearsal"},
    }
    stages = {
        "evaluate/rehearsal": [1] * 12,
        "evaluate/leafe": [2] * 12,
        "explore/rehearsal.tree": [1] * 12,
        "explore/tree": [1] * 12,
    }
    made = recipe(arms=arms, strategies=("tree",))
    evidence = gather([make(tmp_path / "one", made, stages)])
    assert not any("equal budget" in note for note in build(evidence, 3).notes)
    document = build(evidence, 4)
    # both trainings learn from trees, each of which is one exploration of 90 calls where 8 x 12 are
    # allowed
    (note,) = [note for note in document.notes if "equal budget" in note]
    assert note.startswith(
        "LEAFE in gates hard was made with 180 policy calls in 2 phases, where one "
        "exploration is allowed 96"
    )


@given(st.integers(1, 9), st.integers(40, 300))
def test_no_figure_is_cut_off_on_a_terminal(columns: int, width: int) -> None:
    """What does not fit stands below, with its row's name."""
    rows = tuple(
        (
            Cell(f"row {r}"),
            *(Cell(f"value {r}.{c}", "[10.0, 20.0] (300, 9)") for c in range(columns)),
        )
        for r in range(2)
    )
    document = Document(
        "x",
        "t",
        (
            Block(
                "b", ("method", *(f"an environment with a name {c}" for c in range(columns))), rows
            ),
        ),
    )
    console = Console(width=width, record=True, file=io.StringIO())
    show(document, console)
    said = console.export_text()
    assert "…" not in said
    assert all(said.count(f"value {r}.{c}") == 1 for r in range(2) for c in range(columns))
