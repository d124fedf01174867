"""The loss against a loop written from its definition, and a training that can be killed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from leafe.core import Stop, UserError
from leafe.distill import PARTS, Dataset, DistillConfig, Sample, build, encode, preset, train
from tests.distill.toy import PROMPTS, TASKS, chat, checkpoint, forest
from tests.trees import Ep, make_tree

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

SMALL: dict[str, Any] = {
    "batch_by": "sequence",
    "rehearsal_batch_size": 4,
    "counterfactual_batch_size": 3,
    "anchor_batch_size": 3,
    "reflection_batch_size": 2,
    "learning_rate": 3e-3,
    "max_steps": 12,
}


def load(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def weights(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def by_hand(model: Any, start: Any, samples: tuple[Sample, ...]) -> dict[str, float]:
    """Each part's mean, one sample and one target token at a time, no padding, no merging."""
    sums: dict[str, list[float]] = {}
    for sample in samples:
        prompt, answer = chat().prompt(sample.messages), chat().answer(sample.answer)
        for at in range(len(answer)):
            context = torch.tensor([[*prompt, *answer[:at]]])
            with torch.no_grad():
                new = torch.log_softmax(model(context).logits[0, -1], -1)
                old = torch.log_softmax(start(context).logits[0, -1], -1)
            loss = (old.exp() * (old - new)).sum() if sample.part == "anchor" else -new[answer[at]]
            sums.setdefault(sample.part, []).append(float(loss))
    return {part: sum(values) / len(values) for part, values in sums.items()}


@pytest.fixture(scope="module")
def moved(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with its weights shaken: KL to the start policy is not 0."""
    path = checkpoint(tmp_path_factory.mktemp("moved"))
    model = load(path)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("packing", ["tree", "causal"])
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_the_loss_is_its_definition_however_it_is_cut(
    data: Dataset, model_path: Path, moved: Path, packing: Any, merge: bool, size: int
) -> None:
    from contextlib import nullcontext

    from leafe.distill._attention import select_attention
    from leafe.distill._loss import collate, part_losses, totals
    from leafe.distill._pack import pack

    start, model = load(model_path), load(moved)
    few = tuple(s for s in data.samples if s.task_id in ("t0", "t1"))
    encoded = encode(few, chat(), 512, merge=merge)
    sequences = [s for p in PARTS for s in encoded.parts[p]]
    attention = select_attention(model, 512, packing)
    assert attention.kind == {"tree": "sdpa", "causal": "causal"}[packing]
    rows = pack(sequences, attention.limits(100))
    pieces = [
        collate(rows[i : i + size], totals(sequences), 1, attention)
        for i in range(0, len(rows), size)
    ]
    with torch.no_grad():
        found = sum(part_losses(model, lambda: nullcontext(start), piece) for piece in pieces)
    expected = by_hand(model, start, few)
    assert expected["anchor"] > 0.001
    assert [float(x) for x in found] == pytest.approx([expected[p] for p in PARTS], rel=1e-4)


def test_the_objective_weighs_the_parts(data: Dataset, model_path: Path, tmp_path: Path) -> None:
    rows: list[Mapping[str, Any]] = []
    config = preset(
        "leafe+",
        **SMALL
        | {
            "max_steps": 3,
            "rehearsal_weight": 0.25,
            "counterfactual_weight": 2.0,
            "anchor_weight": 0.5,
            "reflection_weight": 0.125,
        },
    )
    train(model_path, tmp_path, data, None, config, rows.append)
    for row in rows:
        whole = (
            0.25 * row["loss/rehearsal"]
            + 2 * row["loss/counterfactual"]
            + 0.5 * row["loss/anchor"]
            + 0.125 * row["loss/reflection"]
        )
        assert row["loss"] == pytest.approx(whole)
    assert rows[0]["loss/anchor"] == pytest.approx(
        0, abs=1e-6
    )  # the start policy is the trained one before the first step
    assert rows[2]["loss/anchor"] > 1e-6


def test_small_forward_passes_change_nothing(
    data: Dataset, model_path: Path, tmp_path: Path
) -> None:
    results = []
    for size in (2, 60, None):
        config = preset("leafe+", **SMALL, micro_batch_tokens=size)
        train(model_path, tmp_path / str(size), data, None, config)
        results.append(weights(tmp_path / str(size)))
    for other in results[1:]:
        for name, tensor in results[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=2e-4)


def test_training_learns_and_writes_a_standard_checkpoint(
    data: Dataset, model_path: Path, tmp_path: Path
) -> None:
    result = train(
        model_path,
        tmp_path,
        data,
        None,
        preset("leafe+", **SMALL | {"max_steps": 60, "learning_rate": 1e-2}),
    )
    after = by_hand(load(tmp_path), load(model_path), data.part("counterfactual"))["counterfactual"]
    before = by_hand(load(model_path), load(model_path), data.part("counterfactual"))[
        "counterfactual"
    ]
    assert after < 0.2 * before
    assert (result.steps, result.kept_step, result.stopped_early, result.path) == (
        60,
        60,
        False,
        tmp_path,
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (model_path / name).read_bytes()
    assert not (tmp_path / "checkpoints").exists()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(1, 61))
    epochs = result.counts["epochs"]
    assert epochs["rehearsal"] == 60 * 4 / result.counts["rehearsal"]["sequences"]


def test_another_training_that_was_cut_off_in_this_process_keeps_no_step_from_being_taken(
    data: Dataset, model_path: Path, tmp_path: Path
) -> None:
    from accelerate.state import GradientState

    config = preset("leafe+", **SMALL)
    train(model_path, tmp_path / "clean", data, None, config)
    GradientState()._set_sync_gradients(
        False
    )  # where TRL's trainer is between two forward passes of one step
    train(model_path, tmp_path / "after", data, None, config)
    clean, after, start = (
        weights(folder) for folder in (tmp_path / "clean", tmp_path / "after", model_path)
    )
    assert all(torch.equal(clean[name], after[name]) for name in clean)
    assert any(not torch.equal(after[name], start[name]) for name in after)


def test_anchors_hold_the_policy_where_the_other_parts_pull(
    data: Dataset, model_path: Path, tmp_path: Path
) -> None:
    drift = {}
    for weight in (0.0, 3.0):
        out = tmp_path / str(weight)
        train(
            model_path,
            out,
            data,
            None,
            preset("leafe+", **SMALL | {"max_steps": 40}, anchor_weight=weight),
        )
        drift[weight] = by_hand(load(out), load(model_path), data.part("anchor"))["anchor"]
    assert drift[3.0] < 0.5 * drift[0.0]


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "options",
    [{}, {"lora": {"r": 2, "lora_dropout": 0.3}, "batch_by": "task", "tasks_per_batch": 2}],
    ids=["full", "lora by task"],
)
def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(
    data: Dataset, model_path: Path, tmp_path: Path, options: Any
) -> None:
    config = preset(
        "leafe+", **SMALL | {"max_steps": 14, "save_steps": 4, "eval_steps": 3} | options
    )
    some, valid = data.split(0.3, 0)
    whole = train(model_path, tmp_path / "whole", some, valid, config)

    def killer(at: int) -> Any:
        def progress(row: Mapping[str, Any]) -> None:
            if row["step"] == at:
                raise Killed

        return progress

    for at in (2, 7, 13):  # before the first checkpoint, between two, after the last
        with pytest.raises(Killed):
            train(model_path, tmp_path / "broken", some, valid, config, killer(at))
    steps: list[int] = []
    again = train(
        model_path, tmp_path / "broken", some, valid, config, lambda row: steps.append(row["step"])
    )
    assert steps == [13, 14]
    assert again.kept_step == whole.kept_step
    ours, theirs = weights(tmp_path / "broken"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    logs = [
        [json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
        for n in ("broken", "whole")
    ]
    for row in logs[0] + logs[1]:
        row.pop("seconds", None)
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_sigkill_at_any_moment(data: Dataset, model_path: Path, tmp_path: Path) -> None:
    data.save(tmp_path / "data.jsonl")
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from leafe.distill import Dataset, preset, train
        model, out, data = map(Path, sys.argv[1:])
        config = preset("leafe+", max_steps=30, learning_rate=1e-3, save_steps=1)
        say = lambda row: print(row["step"], flush=True)
        train(model, out, Dataset.load(data), None, config, say)
    """)

    def start(out: str) -> subprocess.Popen[str]:
        arguments = [
            sys.executable,
            "-c",
            program,
            str(model_path),
            str(tmp_path / out),
            str(tmp_path / "data.jsonl"),
        ]
        return subprocess.Popen(
            arguments, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )

    assert start("whole").wait(200) == 0
    for wait in (0.013, 0.131):
        process = start("broken")
        assert process.stdout is not None
        for _ in range(4):
            process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    assert start("broken").wait(200) == 0
    ours, theirs = weights(tmp_path / "broken"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_tokenizer_is_the_one_in_the_file(tmp_path: Path) -> None:
    from leafe.distill._model import load_tokenizer
    from tests.distill.toy import WORDS
    from tests.tiny import tiny_checkpoint

    path = tiny_checkpoint(tmp_path / "qwen2", arch="qwen2", words=WORDS, layers=1, width=32)
    text = "leave the house t0 ; s0 ; start t0"
    assert load_tokenizer(path)(text)["input_ids"] == chat().tokenizer(text)["input_ids"]


def test_a_finished_training_is_not_done_again_and_a_foreign_folder_is_refused(
    data: Dataset, model_path: Path, tmp_path: Path
) -> None:
    config = preset("leafe+", **SMALL | {"max_steps": 3})
    first = train(model_path, tmp_path, data, None, config)
    rows: list[Mapping[str, Any]] = []
    assert train(model_path, tmp_path, data, None, config, rows.append) == first
    assert rows == []
    with pytest.raises(UserError, match="another training"):
        train(model_path, tmp_path, data, None, preset("leafe+", **SMALL | {"max_steps": 4}))

    def stop(row: Mapping[str, Any]) -> None:
        if row["step"] == 2:
            raise Killed

    with pytest.raises(Killed):
        train(
            model_path,
            tmp_path / "b",
            data,
            None,
            preset("leafe+", **SMALL | {"max_steps": 3}, save_steps=1),
            stop,
        )
    with pytest.raises(UserError, match="checkpoints of another training"):
        train(
            model_path,
            tmp_path / "b",
            data,
            None,
            preset("leafe+", **SMALL | {"max_steps": 4}, save_steps=1),
        )


def test_early_stopping_keeps_the_weights_of_the_lowest_validation_loss(
    model_path: Path, tmp_path: Path
) -> None:
    # training tasks and validation tasks ask for opposite actions at like histories: what is learnt
    # soon hurts
    def samples(tasks: range, action: str) -> tuple[Sample, ...]:
        return tuple(s for i in tasks for s in _one(f"t{i}", action))

    some, valid = Dataset(samples(range(6), "go left")), Dataset(samples(range(6, 9), "take key"))
    rows: list[Mapping[str, Any]] = []
    config = preset(
        "rehearsal",
        **SMALL | {"max_steps": 60},
        eval_steps=2,
        early_stopping_patience=2,
        lr_scheduler_type="constant",
    )
    result = train(model_path, tmp_path, some, valid, config, rows.append)
    losses = {r["step"]: r["valid_loss"] for r in rows if "valid_loss" in r and r["step"]}
    assert result.stopped_early
    assert result.steps < 60
    assert result.kept_step == min(losses, key=lambda s: losses[s]) == result.steps - 4
    kept = by_hand(load(tmp_path), load(tmp_path), valid.samples)["rehearsal"]
    assert kept == pytest.approx(result.valid_loss, rel=1e-4)
    assert kept == pytest.approx(losses[result.kept_step], rel=1e-4)


def _one(task_id: str, action: str) -> tuple[Sample, ...]:
    from tests.trees import Ep, make_tree

    return build(
        {task_id: make_tree(Ep(action), task_id=task_id)}, PROMPTS, preset("rehearsal"), 0
    ).samples


def test_lora_changes_no_weight_of_the_base_and_merges_or_not(
    data: Dataset, model_path: Path, tmp_path: Path
) -> None:
    before = weights(model_path)
    merged = preset("leafe+", **SMALL, lora={"r": 4, "target_modules": ("q_proj", "v_proj")})
    apart = preset(
        "leafe+", **SMALL, lora={"r": 4, "target_modules": ("q_proj", "v_proj"), "merge": False}
    )
    train(model_path, tmp_path / "merged", data, None, merged)
    train(model_path, tmp_path / "apart", data, None, apart)
    after = weights(tmp_path / "merged")
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "v_proj"}
    assert (tmp_path / "apart" / "adapter_model.safetensors").is_file()
    ids = torch.tensor([chat().prompt(data.samples[0].messages)])
    with torch.no_grad():
        torch.testing.assert_close(
            load(tmp_path / "apart")(ids).logits,
            load(tmp_path / "merged")(ids).logits,
            rtol=1e-3,
            atol=1e-4,
        )
    with pytest.raises(UserError, match=r"lora\.target_modules = no_such_layer"):
        train(
            model_path,
            tmp_path / "x",
            data,
            None,
            preset("leafe+", **SMALL, lora={"target_modules": ("no_such_layer",)}),
        )


def test_gradient_checkpointing_gives_the_same_weights(
    data: Dataset, model_path: Path, tmp_path: Path
) -> None:
    for on in (False, True):
        train(
            model_path,
            tmp_path / str(on),
            data,
            None,
            preset("leafe+", **SMALL | {"max_steps": 4}, gradient_checkpointing=on),
        )
    one, two = weights(tmp_path / "False"), weights(tmp_path / "True")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


def test_weight_decay_shrinks_matrices_and_leaves_norms_alone(
    data: Dataset, model_path: Path, tmp_path: Path
) -> None:
    rate = 1e-3
    train(
        model_path,
        tmp_path,
        data,
        None,
        preset(
            "leafe+",
            **SMALL | {"max_steps": 1, "learning_rate": rate},
            weight_decay=300.0,
            warmup_steps=0.0,
        ),
    )
    before, after = weights(model_path), weights(tmp_path)
    for name, tensor in before.items():
        expected = tensor * (1 - rate * 300 if tensor.ndim >= 2 else 1)
        torch.testing.assert_close(
            after[name], expected, rtol=0, atol=1.1 * rate
        )  # Adam's own step is at most the rate


def test_bfloat16_arithmetic_leaves_the_weights_in_the_sources_type(
    data: Dataset, model_path: Path, tmp_path: Path
) -> None:
    result = train(model_path, tmp_path, data, None, preset("leafe+", **SMALL, dtype="bfloat16"))
    assert math.isfinite(result.loss)
    assert {t.dtype for t in weights(tmp_path).values()} == {torch.float32}


def test_a_training_that_diverges_stops_and_says_so(
    data: Dataset, model_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"training diverged; lower learning_rate \(it is 1e\+30\)"):
        train(model_path, tmp_path, data, None, preset("leafe+", **SMALL | {"learning_rate": 1e30}))
    assert not (tmp_path / "model.safetensors").exists()


def test_nothing_to_train_on(data: Dataset, model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        train(model_path, tmp_path, Dataset(()), None, preset("paper"))
    with pytest.raises(UserError, match="no sample fits 5 tokens"):
        train(model_path, tmp_path, data, None, preset("paper", max_length=5))
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        train(tmp_path / "nowhere", tmp_path, data, None, preset("paper"))
    result = train(
        model_path,
        tmp_path / "a",
        Dataset(data.part("counterfactual")),
        None,
        preset("paper", **SMALL | {"max_steps": 2}),
    )
    assert result.notes == (
        "No samples for rehearsal (successes): training on the other part alone.",
    )


def test_the_learning_rate_rises_and_falls() -> None:
    from leafe.distill._train import learning_rate

    cosine = DistillConfig(learning_rate=1.0, warmup_steps=0.2)
    rates = [learning_rate(cosine, s, 10) for s in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert all(a > b > 0 for a, b in pairwise(rates[2:]))
    constant = DistillConfig(learning_rate=1.0, warmup_steps=0.0, lr_scheduler_type="constant")
    assert {learning_rate(constant, s, 10) for s in range(10)} == {1.0}


@pytest.mark.parametrize(("given", "steps"), [(0.0, 0), (0.25, 3), (0.2, 2), (1.0, 1), (7.0, 7)])
def test_warmup_steps_are_steps_from_1_on_and_a_share_of_them_below(
    given: float, steps: int
) -> None:
    from leafe.distill._train import learning_rate

    config = DistillConfig(learning_rate=1.0, warmup_steps=given, lr_scheduler_type="constant")
    assert config.warmup(10) == steps
    rates = [learning_rate(config, s, 10) for s in range(10)]
    assert rates == pytest.approx([min(1.0, (s + 1) / (steps + 1)) for s in range(10)])


@pytest.mark.parametrize("fraction", [1.0, 0.2])
def test_paper_passes_over_each_set_two_to_three_times(
    fraction: float, model_path: Path, tmp_path: Path
) -> None:
    failed = Ep("go left", stop=Stop.failure, blame=0, note="x")
    branches = [Ep(word, stop=Stop.failure, branch_of=0) for word in ("use", "take", "go")]
    wide = forest(8) | {t: make_tree(failed, *branches, task_id=t) for t in TASKS[8:]}
    config = preset(
        "paper",
        rehearsal_batch_size=4,
        counterfactual_batch_size=2,
        rehearsal_fraction=fraction,
        learning_rate=1e-4,
    )
    rows: list[Mapping[str, Any]] = []
    result = train(model_path, tmp_path, build(wide, PROMPTS, config, 0), None, config, rows.append)
    sizes = {p: result.counts[p]["sequences"] for p in ("rehearsal", "counterfactual")}
    assert sizes["counterfactual"] > 3 * sizes["rehearsal"] or fraction == 1.0
    assert result.steps == math.ceil(2 * sum(sizes.values()) / 6)
    assert all(2 <= passes < 3 for passes in result.counts["epochs"].values())
    # a set that is absent from a batch says nothing there, and makes up for it in the batches that
    # hold it
    parts = {
        p: weight * max(1, sum(sizes.values()) / (6 * sizes[p]))
        for p, weight in (("rehearsal", 0.5), ("counterfactual", 1.0))
    }
    for row in rows:
        assert row["loss"] == pytest.approx(
            sum(w * row[f"loss/{p}"] for p, w in parts.items() if f"loss/{p}" in row)
        )
