"""No answer is lost in another trainer without a word: rows are measured as the trainer renders
them, and the length that holds all of them is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from leafe.core import Message, UserError
from leafe.data import TARGETS, Source, Tokenizer, export
from leafe.data.exporting._lengths import TRAINER_LIMITS
from leafe.distill import Dataset, Sample
from tests.data.exporting.test_write import pairs, rows, source
from tests.data.importing.logs import ABOUT
from tests.distill.toy import chat, checkpoint

pytest.importorskip("datasets")
SAMPLES = [target for target in TARGETS if target != "chat"]


def measure() -> Tokenizer:
    return Tokenizer("toy", chat().tokenizer)


def of(target: str) -> Source:
    return pairs() if target == "dpo" else source()


def long_source(target: str, words: int = 2100) -> Source:
    """One sample more than before, whose prompt alone is over every trainer's default."""
    found = of(target)
    first = found.data.samples[0]
    told = Message("user", " ".join(["go"] * words))
    return replace(
        found,
        data=Dataset((*found.data.samples, replace(first, messages=(*first.messages[:-1], told)))),
    )


@pytest.mark.parametrize("target", SAMPLES)
def test_the_longest_row_is_named_in_the_card_and_the_trainers_settings(
    target: Any, tmp_path: Path
) -> None:
    done = export(of(target), target, tmp_path / "out", tokenizer=measure())
    assert done.lengths is not None
    assert done.lengths.rows == sum(
        number
        for name, number in done.files.items()
        if not (target == "dpo" and name.endswith(".jsonl"))
    )
    card = (done.folder / "README.md").read_text("utf-8")
    _trainer, setting, usual = TRAINER_LIMITS[target]
    longest = done.lengths.longest
    assert 0 < longest < usual
    assert done.warning == ""
    assert f"**`{setting} = {longest}` holds every row.**" in card
    for part, lengths in done.lengths.parts.items():
        assert f"| {part} | {len(lengths)} |" in card
    told = (
        yaml.safe_load((done.folder / "axolotl.yaml").read_text("utf-8"))["sequence_len"]
        if target == "axolotl"
        else None
    )
    assert told in (None, longest)
    if target != "axolotl":
        assert str(longest) in card.partition("## How to load it")[2]


@pytest.mark.parametrize("target", SAMPLES)
def test_a_usual_default_that_would_cut_is_warned_of(target: Any, tmp_path: Path) -> None:
    done = export(long_source(target), target, tmp_path / "out", tokenizer=measure())
    trainer, setting, usual = TRAINER_LIMITS[target]
    assert done.lengths is not None
    assert done.lengths.longer_than(usual) == 1
    assert (
        f"1 of {done.lengths.rows} rows are longer than the {usual:,} tokens that "
        f"{trainer} keeps by default"
    ) in done.warning
    assert f"set {setting} = {done.lengths.longest}" in done.warning


@pytest.mark.parametrize("target", SAMPLES)
def test_what_is_too_long_is_left_out_and_counted(target: Any, tmp_path: Path) -> None:
    whole = export(of(target), target, tmp_path / "whole", tokenizer=measure())
    done = export(
        long_source(target), target, tmp_path / "out", tokenizer=measure(), max_length=500
    )
    assert done.left_out["longer than 500 tokens"] == 1
    assert done.files == whole.files
    assert done.lengths == whole.lengths
    assert [rows(done.folder, name) for name in done.files] == [
        rows(whole.folder, name) for name in whole.files
    ]
    assert "| longer than 500 tokens | 1 |" in (done.folder / "README.md").read_text("utf-8")
    with pytest.raises(UserError, match="every sample is longer than 3 tokens"):
        export(of(target), target, tmp_path / "none", tokenizer=measure(), max_length=3)
    assert not (tmp_path / "none").exists()


def test_without_a_tokenizer_it_says_that_nothing_was_measured(tmp_path: Path) -> None:
    done = export(of("trl"), "trl", tmp_path / "out")
    assert done.lengths is None
    assert "--tokenizer" in done.warning
    assert "max_length=None" in (done.folder / "README.md").read_text("utf-8")
    with pytest.raises(UserError, match="give one with --tokenizer"):
        export(of("trl"), "trl", tmp_path / "none", max_length=100)
    with pytest.raises(UserError, match="from 1"):
        export(of("trl"), "trl", tmp_path / "none", tokenizer=measure(), max_length=0)


def test_a_template_that_cannot_render_is_a_sentence(tmp_path: Path) -> None:
    broken = chat().tokenizer.__class__.from_pretrained(checkpoint(tmp_path / "model"))
    for template in ("{{ raise_exception('System role not supported') }}", "{% for", None):
        broken.chat_template = template
        with pytest.raises(UserError, match="give another one with --tokenizer"):
            export(of("trl"), "trl", tmp_path / "out", tokenizer=Tokenizer("x", broken))


def test_trl_keeps_every_answer_token_with_the_named_length(tmp_path: Path) -> None:
    """TRL's own data preparation; with one token less it cuts, so that the length is exact."""
    trl = pytest.importorskip("trl")
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    path = checkpoint(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(path)
    done = export(source(), "trl", tmp_path / "out", tokenizer=Tokenizer("toy", tokenizer))
    assert done.lengths is not None
    model = AutoModelForCausalLM.from_pretrained(path)
    data = datasets.Dataset.from_list(
        [row for name in done.files for row in rows(done.folder, name)]
    )

    def kept(most: int | None) -> list[int]:
        arguments = trl.SFTConfig(
            output_dir=str(tmp_path / "trl"),
            report_to=[],
            bf16=False,
            use_cpu=True,
            max_length=most,
        )
        trainer = trl.SFTTrainer(
            model=model, args=arguments, train_dataset=data, processing_class=tokenizer
        )
        batch = trainer.data_collator(list(trainer.train_dataset))
        return sorted((batch["labels"] != -100).sum(1).tolist())

    whole = kept(None)
    assert len(whole) == data.num_rows
    assert min(whole) > 0
    assert kept(done.lengths.longest) == whole
    assert sum(kept(done.lengths.longest - 1)) < sum(whole)


def test_a_sample_is_as_long_as_its_longer_answer() -> None:
    sample = Sample(
        "counterfactual",
        "t",
        "t/0.0",
        (Message("user", "go"),),
        Message("assistant", "up"),
        rejected=Message("assistant", "up up up"),
    )
    assert measure().length(sample) == measure().length(replace(sample, rejected=None)) + 2
    assert ABOUT["model"]


@pytest.mark.parametrize("target", SAMPLES)
def test_half_a_surrogate_pair_of_an_old_journal_is_written_as_a_character(
    target: Any, tmp_path: Path
) -> None:
    found = of(target)
    first = found.data.samples[0]
    odd = replace(
        first, messages=(*first.messages[:-1], Message("user", "a \udcff file")), note="\ud800"
    )
    done = export(
        replace(found, data=Dataset((odd,)), valid=None),
        target,
        tmp_path / "out",
        tokenizer=measure(),
    )
    for name in done.files:
        assert "a \ufffd file" in str(rows(done.folder, name))
