"""TRL's own trainer computes our loss on the exported data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leafe.core import UserError
from leafe.distill import Dataset, build, encode, export_trl, preset
from tests.distill.toy import PROMPTS, chat, checkpoint, forest

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("datasets")


def test_the_columns_are_trls(tmp_path: Path) -> None:
    data = build(forest(4), PROMPTS, preset("leafe+"), 0)
    train, valid = data.split(0.25, 0)
    folders = export_trl(train, tmp_path / "out", valid)
    assert sorted(folders) == ["counterfactual", "reflection", "rehearsal"]
    found = datasets.Dataset.from_parquet(
        str(folders["counterfactual"] / "train.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert found.num_rows == len(train.part("counterfactual")) == 6
    first = train.part("counterfactual")[0]
    assert found[0]["prompt"] == [{"role": m.role, "content": m.content} for m in first.messages]
    assert found[0]["completion"] == [{"role": "assistant", "content": first.answer.content}]
    assert (found[0]["task_id"], found[0]["turn_id"]) == (first.task_id, first.turn_id)
    assert (folders["rehearsal"] / "validation.parquet").is_file()
    with pytest.raises(UserError, match="nothing to export"):
        export_trl(Dataset(data.part("anchor")), tmp_path / "none")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["rehearsal", "counterfactual"])
def test_trls_trainer_computes_the_same_loss(part: Any, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from leafe.distill._attention import select_attention
    from leafe.distill._config import PARTS
    from leafe.distill._loss import collate, part_losses, totals
    from leafe.distill._pack import pack

    torch.set_num_threads(1)
    path = checkpoint(tmp_path / "model")
    data = build(forest(5), PROMPTS, preset("leafe+"), 0)
    folder = export_trl(data, tmp_path / "out")[part]
    rows = datasets.Dataset.from_parquet(
        str(folder / "train.parquet"), cache_dir=str(tmp_path / "cache")
    )
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "trl"),
        per_device_eval_batch_size=len(rows),
        report_to=[],
        bf16=False,
        use_cpu=True,
        max_length=512,
    )
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(path),
    )
    theirs = trainer.evaluate()["eval_loss"]

    sequences = encode(data.samples, chat(), 512).parts[part]  # merged, as our trainer has them
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        attention = select_attention(model, 512)
        ours = part_losses(
            model,
            None,
            collate(pack(sequences, attention.limits(512)), totals(sequences), 1, attention),
        )[PARTS.index(part)]
    assert len(sequences) < len(rows)
    assert float(ours) == pytest.approx(theirs, rel=1e-5)
    assert theirs > 0.1
