"""What of a run is exported is what its training would see; the card's numbers are those of the
files; the hub is asked by its own client."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from leafe.core import ForeignFailure, Stop, Task, Tree, UserError
from leafe.data import Source, episodes_of, export, first_differences, push, samples_of
from leafe.distill import Dataset, build, preset
from leafe.pipeline import config_of, plan
from leafe.prompts import Prompts, load_prompt_set
from leafe.recipes import Recipe, parse_recipe
from leafe.runs import Journal, RunFolder, write_tasks
from tests.data.importing.logs import ABOUT
from tests.trees import Ep, make_tree

pytest.importorskip("datasets")
NAMES = ["t0", "t1", "t2", "t3"]


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "mine",
        "about": "Does it | `work`?",
        "env": {"name": "gates", "options": {"setting": "easy"}},
        "policy": {"model": "embedded"},
        "arms": {
            "a": {"preset": "leafe+", "distill": {"valid_fraction": 0.3, "eval_steps": 1}},
            "b": {"preset": "paper"},
        },
        "evaluate": {"samples": 1, "k": [1]},
    }
    return parse_recipe(values | changes)


def run_of(folder: Path, recipe: Recipe) -> RunFolder:
    """A run whose explorations have the default tree for each task."""
    with RunFolder.open(
        folder, config_of(recipe), seeds={str(n): s for n, s in enumerate(recipe.seeds)}
    ) as run:
        for stage in plan(recipe):
            if stage.kind == "explore" and not stage.needs:
                trees = [make_tree(task_id=name) for name in NAMES]
                write_tasks(run.stage(stage.name), [tree.task for tree in trees])
                with Journal(run.stage(stage.name)) as journal:
                    for tree in trees:
                        journal.append(tree.episodes)
                run.finish(stage.name, {"stops": {}})
    return RunFolder.read(folder)


def test_an_arms_samples_are_those_of_its_training(tmp_path: Path) -> None:
    mine = recipe()
    run = run_of(tmp_path / "run", mine)
    prompts = Prompts(load_prompt_set(mine.prompts))
    trees = {name: make_tree(task_id=name) for name in NAMES}
    config = mine.arms["a"].config()
    whole = build(trees, prompts, config, 0)
    learn, valid = whole.split(config.valid_fraction, 0)
    found = samples_of(run, "a")
    assert (found.data, found.valid) == (learn, valid)
    assert samples_of(run, stage="distill/a").data == learn
    assert samples_of(run, "b").data == build(trees, prompts, mine.arms["b"].config(), 0)
    assert samples_of(run, stage="explore/tree", name="rft").data == build(
        trees, prompts, preset("rft"), 0
    )
    pairs = samples_of(run, "a", pairs=True).data
    assert {(s.turn_id, s.rejected and s.rejected.content) for s in pairs.samples} == {
        (b.revised.id, b.original.action_text)
        for tree in trees.values()
        for b in tree.branches()
        if b.improved
    }


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "an arm (a, b), or --stage"),
        ({"arm": "a", "stage": "explore/tree"}, "an arm (a, b), or --stage"),
        ({"arm": "c"}, "has no arm 'c': its arms are a, b"),
        ({"stage": "explore/bush"}, "it has explore/tree, distill/a, distill/b"),
        ({"stage": "distill/a", "name": "rft"}, "trained by its own settings"),
        ({"stage": "explore/tree", "name": "rtf"}, "no distillation preset 'rtf'"),
    ],
)
def test_what_is_not_there(arguments: dict[str, str], why: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", recipe())
    with pytest.raises(UserError) as raised:
        samples_of(run, **arguments)
    assert why in str(raised.value)


def test_a_run_that_has_not_explored_and_one_of_several_seeds(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "empty", config_of(recipe())):
        pass
    with pytest.raises(UserError, match="has not been explored"):
        samples_of(RunFolder.read(tmp_path / "empty"), "a")
    run = run_of(tmp_path / "run", recipe(seeds=[3, 4]))
    with pytest.raises(UserError, match=r"several seeds.*--stage distill/seed3\.a"):
        samples_of(run, "a")
    assert samples_of(run, stage="distill/seed4.a").about["seed"] == 4
    rounds = run_of(tmp_path / "rounds", recipe(rounds=2))
    with pytest.raises(UserError, match=r"not chosen yet.*distill/a\.round1"):
        samples_of(rounds, "a")


def test_success_over_failure_where_they_part() -> None:
    tree = make_tree(
        Ep("go", "take", "open", stop=Stop.failure),
        Ep("go", "open"),
        Ep("go", "open", stop=Stop.failure),
        Ep("!fly", "open"),
        Ep("take"),
    )
    prompts = Prompts(load_prompt_set("plain"))
    data = first_differences({"t0": tree}, prompts)
    found = {
        (
            s.messages[-1].content.splitlines()[-1],
            s.answer.content,
            s.rejected and s.rejected.content,
        )
        for s in data.samples
    }
    assert found == {("seen go", "open", "take"), ("start t0", "take", "go")}
    assert sum(data.skipped.values()) == 2  # the environment refused !fly
    assert data.duplicates == {"counterfactual": 1}
    assert not first_differences({"t0": Tree(Task("t0", "toy", "train", ""))}, prompts).samples


def test_a_pair_of_whole_answers_with_two_actions() -> None:
    tree = make_tree(Ep("go", "take", "open", stop=Stop.failure), Ep("go", "open"))
    prompts = Prompts(load_prompt_set("plain"))

    def pairs(**of_the_win: str) -> Dataset:
        turn = replace(tree.episodes[1].acts[1], **of_the_win)  # type: ignore[arg-type]
        return first_differences(
            {
                "t0": Tree(
                    tree.task,
                    [
                        tree.episodes[0],
                        replace(tree.episodes[1], turns=(tree.episodes[1].acts[0], turn)),
                    ],
                )
            },
            prompts,
        )

    assert len(pairs().samples) == 1
    assert (pairs(finish="length").samples, pairs(finish="length").skipped) == (
        (),
        {"pair: an answer was cut at its limit of tokens": 1},
    )
    same = pairs(action_text="Thought: it is.\nAction: take", action=" take ")
    assert (same.samples, same.skipped) == ((), {"pair: the answers differ, the actions do not": 1})


def test_the_card_has_the_numbers_and_where_it_comes_from(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    run = run_of(tmp_path / "run", recipe())
    source = samples_of(run, "a")
    done = export(source, "axolotl", tmp_path / "out")
    text = (done.folder / "README.md").read_text("utf-8")
    card = hub.DatasetCard.load(done.folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert {c["config_name"] for c in card.data.to_dict()["configs"]} == {
        "rehearsal",
        "counterfactual",
        "reflection",
    }
    assert yaml.safe_load(text.split("---")[1])["tags"] == ["leafe", "agents", "axolotl"]
    for name, number in done.files.items():
        assert f"| `{name}` | {number} |" in text
    for words in (
        "run `run`",
        "recipe `mine`",
        "seed 0",
        "environment `gates` (setting = easy), 4 tasks",
        "model `embedded`",
        "`explore/tree`",
        "the arm a",
    ):
        assert words in text, words
    assert "Does it \\| 'work'?" in text
    counts = source.data.counts["rehearsal"]
    assert (
        f"| rehearsal | {counts['samples']} | {counts['tasks']} | {counts['duplicates']} |" in text
    )
    unknown = Source({**ABOUT, "env": "my.env:Env"}, source.data)
    export(unknown, "trl", tmp_path / "other")
    assert "license: unknown" in (tmp_path / "other" / "README.md").read_text("utf-8")


def test_whole_episodes(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", recipe())
    done = export(episodes_of(run), "chat", tmp_path / "out")
    rows = [
        json.loads(line)
        for line in (done.folder / "episodes.jsonl").read_text("utf-8").splitlines()
    ]
    assert len(rows) == done.files["episodes.jsonl"] == 3 * len(NAMES)
    assert [row["success"] for row in rows[:3]] == [False, False, True]
    said = [m["action"] for m in rows[2]["messages"] if m["role"] == "assistant"]
    assert said == ["go left", "take key", "open door", "walk out"]
    assert [m.get("experience") for m in rows[2]["messages"] if m["role"] == "assistant"] == [
        None,
        "take key",
        "open door",
        None,
    ]
    with pytest.raises(UserError, match="has samples and no episodes"):
        episodes_of(run, "distill/a")


class Hub:
    """Stands for `huggingface_hub.HfApi`."""

    calls: list[tuple[str, dict[str, Any]]]
    error: Exception | None = None

    def create_repo(self, repo: str, **about: Any) -> str:
        if Hub.error:
            raise Hub.error
        Hub.calls.append((repo, about))
        return f"https://hub/datasets/{repo}"

    def upload_folder(self, **about: Any) -> None:
        Hub.calls.append(("upload", about))


def test_pushing_asks_the_hubs_own_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    errors = pytest.importorskip("huggingface_hub.errors")
    monkeypatch.setattr(hub, "HfApi", Hub)
    with pytest.raises(UserError, match="is no export"):
        push(tmp_path, "me/data")
    (tmp_path / "README.md").write_text("# data")
    for public in (False, True):
        Hub.calls, Hub.error = [], None
        assert push(tmp_path, "me/data", public=public) == "https://hub/datasets/me/data"
        assert Hub.calls[0] == (
            "me/data",
            {"repo_type": "dataset", "private": not public, "exist_ok": True},
        )
        assert Hub.calls[1][1]["folder_path"] == str(tmp_path)
    for error, kind, why in (
        (errors.LocalTokenNotFoundError(), UserError, "hf auth login"),
        (errors.HFValidationError("bad"), UserError, "USER/NAME"),
        (ConnectionError("no route"), ForeignFailure, "cannot be reached"),
    ):
        Hub.calls, Hub.error = [], error
        with pytest.raises(kind, match=why):
            push(tmp_path, "me/data")
        assert not Hub.calls
