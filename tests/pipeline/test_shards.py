"""An exploration in pieces, merged, is the exploration as a whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from leafe.core import UserError
from leafe.pipeline import Shard, merge, recipe_of, run_recipe
from leafe.recipes import Recipe, load_recipe
from leafe.runs import RunFolder, read_tasks
from tests.pipeline.test_run import trees_of

SMALL = str(Path(__file__).with_name("small.toml"))


def small(*more: str) -> Recipe:
    return load_recipe(
        SMALL, ("tasks.train=5", "tasks.test=1", "explore.limits.policy_calls=15", *more)
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_recipe(small(), folder / "whole", only="explore")
    for index in range(2):
        run_recipe(
            small(), folder / Shard(index, 2).name("part"), only="explore", shard=Shard(index, 2)
        )
    return folder


def pieces(runs: Path) -> list[Path]:
    return [runs / Shard(index, 2).name("part") for index in range(2)]


def test_merged_shards_are_the_whole(runs: Path, tmp_path: Path) -> None:
    recipe, merged = merge([*reversed(pieces(runs))], tmp_path / "part", recipe_of)
    assert merged == 1
    assert recipe == small()
    stage = "explore/tree"
    assert read_tasks(tmp_path / "part" / stage) == read_tasks(runs / "whole" / stage)
    assert trees_of(tmp_path / "part", stage) == trees_of(runs / "whole", stage)
    done, whole = (
        RunFolder.read(tmp_path / "part").done(stage),
        RunFolder.read(runs / "whole").done(stage),
    )
    assert done is not None
    assert whole is not None
    assert done["stops"] == whole["stops"]
    assert done["spent"]["policy_calls"] == whole["spent"]["policy_calls"]
    assert merge(pieces(runs), tmp_path / "part", recipe_of)[1] == 0, "a second merge does nothing"
    run_recipe(small(), tmp_path / "part")
    assert RunFolder.read(tmp_path / "part").done("evaluate/leafe+") is not None


def test_a_merge_that_was_cut_off_is_done_again(runs: Path, tmp_path: Path) -> None:
    merge(pieces(runs), tmp_path / "part", recipe_of)
    marker = tmp_path / "part/explore/tree/done.json"
    marker.unlink()
    assert merge(pieces(runs), tmp_path / "part", recipe_of)[1] == 1
    assert trees_of(tmp_path / "part", "explore/tree") == trees_of(runs / "whole", "explore/tree")


def test_a_shard_is_resumed_as_any_run(runs: Path, tmp_path: Path) -> None:
    piece = tmp_path / Shard(1, 2).name("part")
    shutil.copytree(pieces(runs)[1], piece)
    (piece / "explore/tree/done.json").unlink()
    run_recipe(small(), piece, only="explore", shard=Shard(1, 2))
    assert trees_of(piece, "explore/tree") == trees_of(pieces(runs)[1], "explore/tree")
    with pytest.raises(UserError, match="other settings"):
        run_recipe(small(), piece, only="explore", shard=Shard(0, 2))


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "a/b", "0/0", "1/2/3"])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(UserError, match="is no shard: write I/N"):
        Shard.parse(text)


def test_mistakes_in_merging(runs: Path, tmp_path: Path) -> None:
    first, second = pieces(runs)
    with pytest.raises(UserError, match=r"Shard 1/2 is missing \(there are 1 of 2\)"):
        merge([first], tmp_path / "out", recipe_of)
    with pytest.raises(UserError, match="Shard 0/2 was given twice"):
        merge([first, first, second], tmp_path / "out", recipe_of)
    with pytest.raises(UserError, match="is a whole run and no shard"):
        merge([first, runs / "whole"], tmp_path / "out", recipe_of)
    with pytest.raises(UserError, match="is not a run folder"):
        merge([first, tmp_path / "nothing"], tmp_path / "out", recipe_of)
    with pytest.raises(UserError, match="nothing to merge"):
        merge([], tmp_path / "out", recipe_of)
    other = tmp_path / "other"
    run_recipe(small("explore.max_depth=1"), other, only="explore", shard=Shard(1, 2))
    with pytest.raises(UserError, match=r"of another experiment than .* they differ in explore"):
        merge([first, other], tmp_path / "out", recipe_of)
    third = tmp_path / "third"
    run_recipe(small(), third, only="explore", shard=Shard(2, 3))
    with pytest.raises(UserError, match=r"is one of 3 shards and .* one of 2"):
        merge([first, third], tmp_path / "out", recipe_of)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(second, unfinished)
    (unfinished / "explore/tree/done.json").unlink()
    with pytest.raises(UserError, match="has not finished explore/tree"):
        merge([first, unfinished], tmp_path / "out", recipe_of)
    with pytest.raises(UserError, match="other settings"):
        merge([first, second], other, recipe_of)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="5 tasks cannot be split into 9 shards"):
        run_recipe(small(), tmp_path / "many", only="explore", shard=Shard(0, 9))
