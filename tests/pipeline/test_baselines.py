"""GRPO, Early Experience, ACE and attempts at test time as parts of a recipe: within the budget of
one exploration, resumable, sampled like every other arm."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from leafe.baselines.ace import Playbook, with_playbook
from leafe.baselines.attempts import read_attempts
from leafe.core import Kind, UserError
from leafe.embedded import base_path
from leafe.pipeline import StageKind, plan, run_recipe, summarise_run
from leafe.pipeline._acting import make_pool, make_prompts, read_playbook, sampling_of, source_of
from leafe.pipeline._actor import StageActor, actor_order
from leafe.pipeline._plan import find
from leafe.pipeline._weights import checkpoint_of
from leafe.prompts import Prompts, load_prompt_set
from leafe.recipes import Recipe, load_recipe
from leafe.runs import RunFolder, load_trees, read_journal
from tests.pipeline.test_arms import SMALL, done, weights
from tests.pipeline.test_run import trees_of

CALLS = 30
QUICK = (
    "evaluate.compare=[]",
    "tasks.train=6",
    "tasks.test=2",
    "evaluate.samples=4",
    "validation={tasks=3, samples=4, k=2}",
    "env.options.rules=habit",
    f"explore.limits.policy_calls={CALLS}",
    "arms={}",
)
GRPO = (
    "arms.rl.preset=grpo",
    "arms.rl.grpo={learning_rate=1e-3, tasks_per_batch=2, num_generations=4, eval_steps=1}",
)
ACE = ("arms.book.preset=ace", "arms.book.ace={place='step', batch=3}")
EARLY = (
    "arms.early.preset=early-experience",
    "arms.early.distill={max_steps=2, rehearsal_batch_size=2}",
    "arms.early.early={alternatives=3, temperature=1.5}",
    "arms.early.early.world_model={max_steps=1, rehearsal_batch_size=2}",
)
ON = (
    "arms.after.preset=leafe+",
    "arms.after.start=rl",
    "arms.after.explorer=rl",
    "arms.after.distill={max_steps=1, rehearsal_batch_size=2}",
    "arms.book2.preset=ace",
    "arms.book2.start=rl",
    "arms.book2.sweep={max_items=[2, 6], temperature=[1.0, 1.3]}",
)
TRIES = (
    (
        "evaluate.tries={reflexion={samples=2, attempts=3}, more={policy='book', "
        "method='independent', samples=2, attempts=2}}"
    ),
)


def recipe(*more: str) -> Recipe:
    return load_recipe(SMALL, (*QUICK, *more))


def everything() -> Recipe:
    return recipe(*GRPO, *ACE, *EARLY, *ON, *TRIES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "whole"
    run_recipe(everything(), path)
    return path


def test_what_the_arms_unroll_into() -> None:
    stages = {stage.name: stage for stage in plan(everything())}
    assert stages["distill/rl"].needs == (), "GRPO samples for itself"
    assert stages["collect/book"].needs == ()
    assert stages["collect/early"].needs == ("explore/tree",)
    assert set(stages["distill/early"].needs) == {"explore/tree", "collect/early"}
    assert "distill/book" not in stages, "no weights change"
    assert stages["collect/book2.try1"].needs == ("distill/rl",)
    assert stages["validate/book2.try2"].needs == ("collect/book2.try1",), (
        "settings that differ in the temperature alone are one playbook"
    )
    assert set(stages["choose/book2"].needs) == {f"validate/book2.try{n}" for n in range(1, 5)}
    assert stages["tries/more"].needs == ("collect/book",)
    assert "explore/rl.tree" in stages
    only = {stage.name for stage in plan(recipe(*GRPO, *ACE, "strategies=[]"))}
    assert not any(name.startswith("explore/") for name in only), "these need no exploration"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ("arms.x.preset=grop",),
            "there is no preset 'grop'; there are paper, .*grpo, early-experience",
        ),
        (
            (*GRPO, "arms.rl.distill={rehearsal_weight=1.0}"),
            "arms.rl.distill: the preset 'grpo' has no use for it; its options stand under grpo",
        ),
        ((*ACE, "arms.book.explored=refine"), "ace acts for itself and learns from no exploration"),
        ((*GRPO, "rounds=2"), "rounds are of distillation"),
        (
            (*GRPO, "arms.rl.grpo.learning_rte=1"),
            r"arms.rl.grpo.learning_rte: there is no such option; did you mean 'learning_rate'",
        ),
        (
            (*GRPO, "arms.rl.grpo.lr=1"),
            r"arms.rl.grpo.lr: there is no such option; there are limits, max_steps",
        ),
        ((*GRPO, "arms.rl.grpo.seed=1"), "a training takes the run's seed"),
        ((*GRPO, "explore.limits={}"), "arms.rl has no end"),
        ((*GRPO, "arms.rl.sweep={beta=[0.1], most=[1]}"), "'most' is no option of GRPO"),
        (
            (*ACE, "arms.y.preset=leafe+", "arms.y.start=book"),
            "that arm is a playbook and has no weights of its own",
        ),
        ((*EARLY, "arms.early.early.alternativs=3"), "alternativs"),
        ((*EARLY, "arms.early.explored=refine"), "which is not among the strategies"),
        (
            ("evaluate.tries={a={policy='nobody'}}",),
            "evaluate.tries.a: there is no policy 'nobody'",
        ),
        (("evaluate.tries={a={method='luck'}}",), "evaluate.tries.a.method"),
    ],
)
def test_mistakes_are_one_sentence(more: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        recipe(*more)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_stage_by_stage_it_comes_to_the_same_end(whole: Path, tmp_path: Path) -> None:
    """As `leafe explore`, `distill`, `evaluate` give them, until nothing waits."""
    made, run = everything(), tmp_path / "run"
    kinds: list[StageKind] = ["explore", "distill", "explore", "distill", "evaluate"]
    for kind in kinds:
        run_recipe(made, run, only=kind)
    assert not [stage.name for stage in plan(made) if RunFolder.read(run).done(stage.name) is None]
    for stage in ("collect/book", "evaluate/book", "evaluate/after"):
        assert trees_of(run, stage) == trees_of(whole, stage)


@pytest.mark.slow
def test_every_arm_has_its_row_within_the_budget_of_one_exploration(whole: Path) -> None:
    budget = 6 * CALLS
    for stage, spent in (
        ("collect/book", done(whole, "collect/book")["spent"]),
        ("distill/rl", done(whole, "distill/rl")["train"]["spent"]),
        ("explore/tree", done(whole, "explore/tree")["spent"]),
    ):
        assert 0 < spent["policy_calls"] <= budget, stage
    journalled = sum(
        t.kind in (Kind.act, Kind.aside)
        for line in read_journal(whole / "collect/book")
        for e in line
        for t in e.turns
    )
    assert journalled == done(whole, "collect/book")["spent"]["policy_calls"], (
        "the journal's sums are the budget's"
    )
    rows = {row["arm"] for row in summarise_run(RunFolder.read(whole)).to_json()["evaluate"]}
    assert rows == {"base", "rl", "book", "early", "after", "book2"}
    chosen = done(whole, "choose/book2")
    assert len(chosen["candidates"]) == 4
    assert done(whole, "evaluate/book2")["temperature"] == chosen["temperature"]


@pytest.mark.slow
def test_whose_weights_and_which_words(whole: Path) -> None:
    run, made = RunFolder.read(whole), everything()
    variant = find(made, "evaluate/book").variant
    assert checkpoint_of(run, variant, "book") is None, "the base, with a playbook"
    assert checkpoint_of(run, variant, "book2") == whole / "distill/rl/checkpoint"
    assert checkpoint_of(run, variant, "early") == whole / "distill/early/checkpoint"
    # that GRPO ran in this process before must not keep another training from taking its steps
    assert (
        weights(whole / "distill/early/checkpoint")
        != weights(whole / "distill/early/world_model")
        != weights(base_path())
    )
    assert weights(whole / "distill/after/checkpoint") != weights(whole / "distill/rl/checkpoint")
    pool = make_pool(made, variant, 1)
    plain = make_prompts(made, pool)
    pool.close()
    for row, attempt in (("book", "book"), ("book2", done(whole, "choose/book2")["chosen"])):
        grown = Playbook.load(whole / f"collect/{attempt}/playbook.json")
        place: Any = done(whole, f"collect/{attempt}")["place"]
        pool = make_pool(made, variant, 1)
        found = make_prompts(made, pool, whole, find(made, f"evaluate/{row}"))
        pool.close()
        assert words(found) == words(with_playbook(plain, grown, place))
    assert words(plain) == ("", {})
    assert read_playbook(whole, find(made, "evaluate/rl")) is None


def words(prompts: Prompts) -> tuple[str, dict[str, str]]:
    return prompts.playbook, prompts.lessons


@pytest.mark.slow
def test_attempts_are_the_rows_of_their_journal(whole: Path) -> None:
    found = done(whole, "tries/reflexion")
    again = read_attempts(load_trees(whole / "tries/reflexion"), "reflexion", 3)
    assert found["rows"] == json.loads(json.dumps(again.rows()))
    assert len(again.samples) == 4, "two of each task"
    assert [row["attempts"] for row in found["rows"]] == [1, 2, 3]
    rates, calls = ([row[name] for row in found["rows"]] for name in ("pass_1", "policy_calls"))
    assert rates == sorted(rates)
    assert calls == sorted(calls)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", ["collect/book", "collect/early", "tries/reflexion", "distill/rl", "distill/early"]
)
def test_cut_off_in_the_middle_it_comes_to_the_same_end(
    whole: Path, tmp_path: Path, stage: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(whole, copy)
    before = done(whole, stage)
    later = {s.name for s in plan(everything()) if stage in s.needs}
    for name in (stage, *later):
        (copy / name / "done.json").unlink(missing_ok=True)
    journals = list((copy / stage).glob("journal-*.jsonl"))
    for journal in journals:  # half of it, and half a line
        text = journal.read_text()
        journal.write_text(text[: len(text) // 2])
    for checkpoint in ("checkpoint", "env"):
        shutil.rmtree(copy / stage / checkpoint, ignore_errors=True)
    run_recipe(everything(), copy)
    after = done(copy, stage)
    for name in ("spent", "merges", "items", "counts", "rows", "samples"):
        assert steady(before.get(name)) == steady(after.get(name)), name
    if journals:
        if (
            stage != "collect/early"
        ):  # its journal holds what is put onto the exploration's trees, and no tree by itself
            assert trees_of(copy, stage) == trees_of(whole, stage)
    else:
        assert weights(copy / stage / "checkpoint") == weights(whole / stage / "checkpoint")


def steady(value: Any) -> Any:
    """Without what hangs on timing and on what the engine and the environment's snapshots happen to
    hold."""
    if isinstance(value, list):
        return [steady(v) for v in value]
    return (
        {
            k: steady(v)
            for k, v in value.items()
            if k not in ("seconds", "cached_tokens", "replayed_steps")
        }
        if isinstance(value, dict)
        else value
    )


@pytest.mark.slow
def test_actors_read_the_playbook_too(whole: Path) -> None:
    import asyncio

    made = everything()
    stage = find(made, "evaluate/book")
    order = actor_order(
        made,
        whole,
        stage,
        load_prompt_set("gates"),
        2,
        source_of(whole, stage),
        sampling_of(made, whole, stage),
        read_playbook(whole, stage),
    )

    async def main() -> Prompts:
        actor = StageActor(order)
        await actor.start()
        prompts = actor.prompts
        await actor.close()
        return prompts

    pool = make_pool(made, stage.variant, 1)
    assert words(asyncio.run(main())) == words(make_prompts(made, pool, whole, stage))
    pool.close()
    assert order["playbook"]["place"] == "step"


def test_no_success_no_early_experience(tmp_path: Path) -> None:
    made = recipe(*EARLY, "explore.limits.policy_calls=1", "tasks.train=2", "tasks.test=1")
    run_recipe(made, tmp_path / "run")
    assert re.search("hold no success", done(tmp_path / "run", "collect/early")["empty"])
    assert (
        done(tmp_path / "run", "distill/early")["empty"]
        == done(tmp_path / "run", "collect/early")["empty"]
    )
    assert "early" not in {
        row["arm"] for row in summarise_run(RunFolder.read(tmp_path / "run")).to_json()["evaluate"]
    }


def test_reflection_needs_room_for_a_thought(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no room for thoughts"):
        run_recipe(recipe(*EARLY, "arms.early.preset=self-reflection"), tmp_path / "run")
