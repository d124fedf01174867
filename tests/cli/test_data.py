"""leafe export and leafe import, as a user gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from leafe.cli import app
from leafe.core import Tree, UserError
from leafe.pipeline import config_of, recipe_of
from leafe.recipes import load_recipe
from leafe.runs import RunFolder, load_trees
from tests.data.importing.logs import bare, chat_lines, played, tasks, write_lines

SMALL = str(Path(__file__).parents[1] / "pipeline" / "small.toml")

REFINE = ("--set", 'strategies=["refine"]', "--set", "arms={}", "--set", "evaluate.compare=[]")


def leafe(*arguments: object) -> str:
    """What it prints; raises what it raises."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception is not None:
        raise done.exception
    return done.output


@pytest.fixture(scope="module")
def trees() -> dict[str, Tree]:
    return played(8, 2)


@pytest.fixture(scope="module")
def log(trees: dict[str, Tree], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    rows: list[Any] = [bare(row) for row in chat_lines(trees, folder / "out")]
    rows[3] = {"messages": "broken"}
    return write_lines(folder / "log.jsonl", rows)


def test_a_recipes_run_goes_on_with_the_import(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "known"
    said = leafe("import", log, "--format", "chat", "--recipe", SMALL, "--out", out)
    assert "log.jsonl, line 4: it has no list of messages" in said
    assert "left out: 1 x no messages" in said
    assert f"leafe run {SMALL} --name known" in said.replace("\n", " ")
    recipe = load_recipe(SMALL)
    with RunFolder.open(out, config_of(recipe)) as run:  # as `leafe run` does
        assert run.done("explore/tree") is None
    known = load_trees(out / "explore" / "tree")
    assert list(known) == [task.id for task in tasks(8)]
    facts = json.loads((out / "explore" / "tree" / "import.json").read_text("utf-8"))
    assert (
        facts["episodes"]
        == sum(len(tree.episodes) for tree in known.values())
        == sum(facts["stops"].values())
    )
    assert facts["left_out"]["no messages"] == 1
    assert facts["episodes"] + sum(facts["left_out"].values()) == len(
        log.read_text("utf-8").splitlines()
    )
    with pytest.raises(UserError, match="is there already"):
        leafe("import", log, "--format", "chat", "--out", out)


@pytest.mark.parametrize(
    "where", [(), ("--env", "gates", "--option", "setting=easy", "--prompts", "gates")]
)
def test_an_import_can_be_exported(where: tuple[str, ...], log: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    out = tmp_path / "logged"
    leafe("import", log, "--format", "chat", "--out", out, *where)
    run = RunFolder.read(out)
    assert recipe_of(run).env.name == ("gates" if where else "imported")
    assert (run.done("explore/tree") or {})["imported"]["verified"] == bool(where)
    said = leafe(
        "export",
        out,
        "--stage",
        "explore/tree",
        "--preset",
        "rft",
        "--to",
        "axolotl",
        "--out",
        tmp_path / "axolotl",
    )
    assert "rehearsal.jsonl" in said
    assert "imported from `log.jsonl`" in (tmp_path / "axolotl" / "README.md").read_text("utf-8")
    won = sum(tree.solved for tree in load_trees(out / "explore" / "tree").values())
    assert won
    row = json.loads((tmp_path / "axolotl" / "rehearsal.jsonl").read_text("utf-8").splitlines()[0])
    assert row["messages"][-1]["train"] is True
    again = leafe("export", out, "--to", "chat", "--out", tmp_path / "chat")
    assert (
        "episodes.jsonl: "
        f"{len((tmp_path / 'chat' / 'episodes.jsonl').read_text('utf-8').splitlines())} "
        "rows"
    ) in again.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("import", "LOG", "--format", "csv", "--out", "OUT"), "There is no format 'csv'"),
        (
            ("import", "absent.jsonl", "--format", "chat", "--out", "OUT"),
            "absent.jsonl is not there",
        ),
        (("import", "LOG", "--format", "inspect", "--out", "OUT"), "is no Inspect log"),
        (
            ("import", "LOG", "--format", "verifiers", "--out", "OUT"),
            "holds no episode in the format 'verifiers'",
        ),
        (
            (
                "import",
                "LOG",
                "--format",
                "chat",
                "--out",
                "OUT",
                "--recipe",
                SMALL,
                "--env",
                "gates",
            ),
            "give --recipe or --env",
        ),
        (
            ("import", "LOG", "--format", "chat", "--out", "OUT", "--option", "a=1"),
            "give --env too",
        ),
        (
            ("import", "LOG", "--format", "chat", "--out", "OUT", "--set", "a=1"),
            "give --recipe too",
        ),
        (
            ("import", "LOG", "--format", "chat", "--out", "OUT", "--env", "mars"),
            "There is no environment 'mars'",
        ),
        (
            ("import", "LOG", "--format", "chat", "--out", "OUT", "--env", "gates"),
            "No episode of",
        ),  # the tasks of another setting
        (
            ("import", "LOG", "--format", "chat", "--out", "OUT", "--recipe", SMALL, *REFINE),
            "does not explore by tree",
        ),
        (("export", "absent", "a", "--out", "OUT"), "is not a run folder"),
        (("export", "absent", "a", "--to", "csv", "--out", "OUT"), "There is no export to 'csv'"),
        (("export", "absent", "a"), "--out"),
        (("export", "absent", "a", "--to", "chat", "--out", "OUT"), "give --stage explore/..."),
        (("export", "absent", "a", "--public", "--out", "OUT"), "give --push"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], why: str, log: Path, tmp_path: Path) -> None:
    names = {"LOG": log, "OUT": tmp_path / "out"}
    with pytest.raises(UserError) as raised:
        leafe(*(names.get(word, word) for word in arguments))
    assert why in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
