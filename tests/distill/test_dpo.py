"""DPO pairs: what they mean, that TRL reads them as we do, and a training on them that can be
killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from leafe.core import Stop, Tree, UserError
from leafe.distill import Dataset, DistillConfig, build, export_dpo, export_trl, preset, train
from leafe.prompts import history_before
from tests.distill.toy import PROMPTS, chat, checkpoint, forest
from tests.trees import Ep, make_tree, trees

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl")
torch.set_num_threads(1)


def config(**options: Any) -> DistillConfig:
    return preset(
        "dpo",
        **({"max_steps": 12, "learning_rate": 3e-3, "counterfactual_batch_size": 6} | options),
    )


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return build(forest(10), PROMPTS, config(), 0)


@given(trees())
def test_a_pair_prefers_the_revised_action_to_the_original_one(tree: Tree) -> None:
    for wanted in ("all", "improved", "success_path"):
        found = build({"t0": tree}, PROMPTS, config(counterfactuals=wanted), 0)
        sound = [
            b
            for b in tree.branches()
            if all(tree.episode_of(t.id).stop is not Stop.diverged for t in tree.path(b.revised.id))
        ]
        expected = {
            (
                PROMPTS.act(history_before(tree, b.original, with_experience=False)),
                b.revised.action_text,
                b.original.action_text,
            )
            for b in sound
            if (wanted == "all" or (b.improved if wanted == "improved" else b.on_success_path))
            and b.revised.valid
            and b.revised.action_text != b.original.action_text
        }
        pairs = [
            (s.messages, s.answer.content, s.rejected.content)
            for s in found.samples
            if s.rejected is not None
        ]
        assert len(pairs) == len(found.samples) == len(set(pairs))
        assert set(pairs) == expected


def test_nothing_but_pairs_is_selected() -> None:
    other = build(forest(4), PROMPTS, preset("leafe+", method="dpo"), 0)
    assert other.samples == build(forest(4), PROMPTS, preset("dpo"), 0).samples != ()


def test_an_action_that_was_not_revised_makes_no_pair() -> None:
    tree = make_tree(Ep("a", "b", stop=Stop.failure, blame=1, note="b again"), Ep("b", branch_of=0))
    found = build({"t0": tree}, PROMPTS, config(counterfactuals="all"), 0)
    assert (found.samples, found.skipped) == (
        (),
        {"counterfactual: the revised action is the original one": 1},
    )
    with pytest.raises(UserError, match="holds no pairs"):
        export_dpo(found, Path("nowhere"))
    with pytest.raises(UserError, match="holds no pairs"):
        export_dpo(build(forest(2), PROMPTS, preset("leafe+"), 0), Path("nowhere"))


def test_trl_reads_the_export_and_has_our_token_ids(
    data: Dataset, model_path: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from leafe.distill._dpo import _pairs

    train_data, valid = data.split(0.2, 0)
    folder = export_dpo(train_data, tmp_path / "out", valid)
    assert (
        export_trl(train_data, tmp_path / "both", valid)["counterfactual"].parent
        == tmp_path / "both"
    )
    assert (tmp_path / "both/preference/validation.parquet").read_bytes() == (
        folder / "validation.parquet"
    ).read_bytes()
    rows = datasets.Dataset.from_parquet(
        str(folder / "train.parquet"), cache_dir=str(tmp_path / "cache")
    )
    first = train_data.samples[0]
    assert first.rejected is not None
    assert rows[0]["prompt"] == [{"role": m.role, "content": m.content} for m in first.messages]
    assert (
        (rows[0]["chosen"][0]["content"], rows[0]["rejected"][0]["content"])
        == (first.answer.content, first.rejected.content)
        == ("take key", "take lamp")
    )
    trainer = trl.DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
        args=trl.DPOConfig(
            output_dir=str(tmp_path / "trl"), report_to=[], bf16=False, use_cpu=True
        ),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(model_path),
    )
    theirs = [
        {k: row[k] for k in ("prompt_ids", "chosen_ids", "rejected_ids")}
        for row in trainer.train_dataset
    ]
    assert theirs == _pairs(train_data, chat(), 512, config())[0]


def test_pairs_that_are_too_long_are_left_out_or_cut_and_counted(data: Dataset) -> None:
    from leafe.distill._dpo import _pairs

    whole, _ = _pairs(data, chat(), 512, config())
    length = [
        len(p["prompt_ids"]) + max(len(p["chosen_ids"]), len(p["rejected_ids"])) for p in whole
    ]
    assert len(set(length)) == 2
    limit = max(length) - 1
    kept, counts = _pairs(data, chat(), limit, config())
    assert kept == [p for p, n in zip(whole, length, strict=True) if n <= limit]
    assert counts["skipped"] == {
        f"pairs without tokens, or of more than {limit}": len(whole) - len(kept)
    }
    cut, counts = _pairs(data, chat(), limit, config(too_long="truncate"))
    assert counts["skipped"] == {
        f"pairs without the oldest turns, to fit {limit} tokens": len(whole) - len(kept)
    }
    for mine, theirs, n in zip(cut, whole, length, strict=True):
        assert [mine[k] for k in ("chosen_ids", "rejected_ids")] == [
            theirs[k] for k in ("chosen_ids", "rejected_ids")
        ]
        assert (mine == theirs) == (n <= limit)
        assert (
            len(mine["prompt_ids"]) + max(len(mine["chosen_ids"]), len(mine["rejected_ids"]))
            <= limit
        )


def _margin(model_path: Path, start_path: Path, data: Dataset) -> float:
    """The mean over the pairs of how much further the log-ratio to the start is on the chosen
    action, by a loop over single tokens."""
    from transformers import AutoModelForCausalLM

    models = [
        AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32).eval()
        for p in (model_path, start_path)
    ]
    out = 0.0
    for sample in data.samples:
        assert sample.rejected is not None
        prompt = chat().prompt(sample.messages)
        for answer, sign in ((sample.answer, 1), (sample.rejected, -1)):
            ids = chat().answer(answer)
            for at in range(len(ids)):
                with torch.no_grad():
                    after, before = (
                        torch.log_softmax(m(torch.tensor([prompt + ids[:at]])).logits[0, -1], -1)[
                            ids[at]
                        ]
                        for m in models
                    )
                out += sign * float(after - before)
    return out / len(data.samples)


def test_a_training_raises_the_margin_and_leaves_a_standard_checkpoint(
    data: Dataset, model_path: Path, tmp_path: Path
) -> None:
    train_data, valid = data.split(0.2, 0)
    rows: list[Mapping[str, Any]] = []
    options = config(eval_steps=4)
    result = train(model_path, tmp_path / "out", train_data, valid, options, rows.append)
    assert _margin(tmp_path / "out", model_path, valid) > 3.0
    assert (result.steps, result.counts["counterfactual"]["pairs"]) == (12, len(train_data.samples))
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert lines == [dict(r) for r in rows]
    validated = [r for r in rows if "valid_loss" in r]
    assert [r["step"] for r in validated] == [0, 4, 8, 12]
    assert result.valid_loss == min(r["valid_loss"] for r in validated) < validated[0]["valid_loss"]
    # the last row's margin is TRL's figure of the same thing
    assert _margin(tmp_path / "out", model_path, valid) * options.dpo_beta == pytest.approx(
        validated[-1]["valid_margin"], rel=1e-3
    )
    assert not (tmp_path / "out/checkpoints").exists()
    assert train(model_path, tmp_path / "out", train_data, valid, options) == result
    with pytest.raises(UserError, match="holds another training"):
        train(model_path, tmp_path / "out", train_data, valid, config(eval_steps=4, dpo_beta=0.2))


class Cut(Exception):
    pass


def test_a_training_that_was_cut_off_goes_on_to_the_same_weights(
    data: Dataset, model_path: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    options = config(save_steps=4)
    whole = train(model_path, tmp_path / "whole", data, None, options)

    def cut(row: Mapping[str, Any]) -> None:
        if row["step"] == 10:
            raise Cut

    with pytest.raises(Cut):
        train(model_path, tmp_path / "cut", data, None, options, cut)
    newest = tmp_path / "cut/checkpoints/checkpoint-8"
    (newest / "trainer_state.json").rename(newest / "half")  # as though killed in mid-save
    taken: list[int] = []
    again = train(
        model_path,
        tmp_path / "cut",
        data,
        None,
        options,
        lambda row: taken.append(int(row["step"])),
    )
    assert taken == list(range(5, 13))
    assert [
        json.loads(line)["step"]
        for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()
    ] == list(range(1, 13))
    assert again.loss == whole.loss
    mine, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(mine[n], theirs[n]) for n in theirs)


_KILLED = """
import os, signal, sys
from pathlib import Path
from leafe.distill import build, preset, train
from tests.distill.toy import PROMPTS, forest
import torch
torch.set_num_threads(1)
options = preset("dpo", max_steps=12, learning_rate=3e-3, counterfactual_batch_size=6, save_steps=1)
def row(values):
    if values["step"] == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
train(sys.argv[1], Path(sys.argv[2]), build(forest(10), PROMPTS, options, 0), None, options, row)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kill_9_and_again(model_path: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    def start(name: str, die: int) -> int:
        return subprocess.run(
            [sys.executable, "-c", _KILLED, str(model_path), str(tmp_path / name), str(die)],
            timeout=600,
            capture_output=True,
        ).returncode

    assert start("whole", 99) == 0
    assert [start("cut", die) for die in (3, 9, 99)] == [-signal.SIGKILL, -signal.SIGKILL, 0]
    mine, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(mine[n], theirs[n]) for n in theirs)


def test_passes_under_a_token_budget_give_the_same_weights(
    data: Dataset, model_path: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    for name, budget in (("one", None), ("cut", 140)):
        train(
            model_path,
            tmp_path / name,
            data,
            None,
            config(max_steps=3, learning_rate=1e-3, micro_batch_tokens=budget),
        )
    mine, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "one"))
    assert all(torch.allclose(mine[n], theirs[n], atol=1e-5) for n in theirs)


@pytest.mark.parametrize("merge", [True, False])
def test_adapters(data: Dataset, model_path: Path, tmp_path: Path, merge: bool) -> None:
    result = train(
        model_path,
        tmp_path / "out",
        data,
        None,
        config(max_steps=6, learning_rate=1e-2, lora={"r": 4, "lora_alpha": 8, "merge": merge}),
    )
    assert result.loss < 0.6  # it was ln 2
    assert (tmp_path / "out/adapter_model.safetensors").exists() == (not merge)
    if merge:
        assert _margin(tmp_path / "out", model_path, data) > 1.0


def test_faults(data: Dataset, model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pairs of actions of at most 8 tokens"):
        train(model_path, tmp_path / "short", data, None, config(max_length=8))
    with pytest.raises(UserError, match="lower learning_rate"):
        train(
            model_path,
            tmp_path / "nan",
            data,
            None,
            config(learning_rate=1e30, max_grad_norm=1e30, warmup_steps=0),
        )
