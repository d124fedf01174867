"""Writes samples into a folder that another trainer reads: one file per part, the trainer's own
description of them, and the dataset card.

The folder is written beside its destination and renamed when complete. Anchors are always left out:
their loss is a divergence from the start policy's distribution, which none of these trainers
computes. Soft targets become the actions that were taken.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from leafe.core import Message, UserError, clean_text
from leafe.data.exporting import _episodes, _rows
from leafe.data.exporting._card import card
from leafe.data.exporting._lengths import Lengths, Tokenizer, measure, warning
from leafe.data.exporting._source import Source
from leafe.distill import PARTS, Dataset, Sample, export_dpo, export_trl

Target = Literal["trl", "sharegpt", "axolotl", "verl", "dpo", "chat"]
TARGETS: tuple[Target, ...] = ("trl", "sharegpt", "axolotl", "verl", "dpo", "chat")
ANCHORS = (
    "anchor: its loss is a divergence from the start policy's distribution, which this trainer "
    "does not compute"
)
CUT = (
    "its answer was cut at its limit of tokens: this trainer would end it with a token that "
    "was never sampled"
)
TURNS = "its messages are not user and assistant in turn, which ShareGPT needs"


@dataclass(slots=True)
class Exported:
    """The result of an export."""

    folder: Path
    target: Target
    files: dict[str, int] = field(default_factory=dict)
    """Rows by file; names are relative to the folder."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Samples that are in no file, counted by reason."""
    changed: dict[str, int] = field(default_factory=dict)
    """Samples counted by what the format cannot express about them."""
    lengths: Lengths | None = None
    """Tokens of the rows; None without a tokenizer, and for whole episodes."""

    @property
    def warning(self) -> str:
        """One sentence if the trainer's default would cut rows; else empty."""
        return warning(self.lengths, self.target)


def export(
    source: Source,
    target: Target,
    out: Path | str,
    *,
    tokenizer: Tokenizer | None = None,
    max_length: int | None = None,
) -> Exported:
    """Write a source into a new folder, with its dataset card README.md.

    Args:
        source: Samples (`samples_of`), or whole episodes (`episodes_of`) for the target `chat`.
        target: The format.
        out: A new or empty folder.
        tokenizer: Measures rows (`tokenizer_of`); None: rows are not measured.
        max_length: Rows of more tokens are left out and counted.

    Raises:
        UserError: `out` is not empty or cannot be written, there is nothing to write, or
            `max_length` comes without a tokenizer.
    """
    out = Path(out)
    if max_length is not None and max_length < 1:
        raise UserError(f"No row has at most {max_length} tokens: give a --max-length from 1.")
    if max_length is not None and target == "chat":
        raise UserError(
            "Episodes are not cut: --max-length is for samples, not for the target chat."
        )
    if max_length is not None and tokenizer is None:
        raise UserError(
            "This run has no tokenizer on this machine, so rows cannot be measured: "
            "give one with --tokenizer, or no --max-length."
        )
    if target not in TARGETS:
        raise UserError(f"There is no export to {target!r}: choose one of {', '.join(TARGETS)}.")
    partial = out.with_name(f".{out.name}.partial")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(
                f"{out} is there already: an export goes into a new or an empty folder."
            )
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        done = Exported(partial, target)
        if target == "chat":
            _write_episodes(source, done)
        else:
            _write_samples(source, done, tokenizer, max_length)
        (partial / "README.md").write_text(card(source, done), encoding="utf-8")
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except ModuleNotFoundError as error:
        raise UserError(
            f"An export to {target} needs the package {error.name}, which is not "
            "installed: pip install 'leafe[hf]'."
        ) from error
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}): give another folder, or "
            "free space."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    done.folder = out
    return done


def _write_episodes(source: Source, done: Exported) -> None:
    assert source.prompts is not None, "whole episodes come from episodes_of"
    rows = _episodes.rows(source.trees, source.prompts, done.left_out)
    number = _write_lines(done.folder / "episodes.jsonl", map(_clean, rows))
    if not number:
        raise UserError(
            "There is nothing to export: no episode of that exploration took an action."
        )
    done.files["episodes.jsonl"] = number


def _write_samples(
    source: Source, done: Exported, tokenizer: Tokenizer | None, max_length: int | None
) -> None:
    splits = {
        "train": source.data.samples,
        "validation": source.valid.samples if source.valid else (),
    }
    done.left_out |= source.data.skipped
    kept = {
        split: [_clean_sample(s) for s in samples if _is_kept(s, done)]
        for split, samples in splits.items()
    }
    if not kept["train"]:
        pairs = done.target == "dpo"
        what = "pairs" if pairs else "rehearsal, counterfactual or reflection samples"
        raise UserError(f"There is nothing to export: the trees give no {what}.")
    if tokenizer is not None:
        kept = _within_length(kept, done, tokenizer, max_length)
    _count_changes([s for samples in kept.values() for s in samples], done)
    _WRITERS[done.target](kept, done)


Kept = Mapping[str, Sequence[Sample]]


def _clean_sample(sample: Sample) -> Sample:
    """Journals of leafe 0.1.0 may hold halves of surrogate pairs, which other programs refuse."""

    def clean(message: Message) -> Message:
        if message.content.isascii():
            return message
        return replace(message, content=clean_text(message.content))

    return replace(
        sample,
        messages=tuple(map(clean, sample.messages)),
        answer=clean(sample.answer),
        rejected=None if sample.rejected is None else clean(sample.rejected),
        task_id=clean_text(sample.task_id),
        turn_id=clean_text(sample.turn_id),
        note=clean_text(sample.note),
    )


def _clean(value: Any) -> Any:
    """The same for every text in plain values."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(key): _clean(each) for key, each in value.items()}
    return [_clean(each) for each in value] if isinstance(value, list) else value


def _within_length(
    kept: Kept, done: Exported, tokenizer: Tokenizer, max_length: int | None
) -> dict[str, list[Sample]]:
    """The samples that are short enough, with their lengths recorded and the others counted."""
    found = {
        split: [(sample, tokenizer.length(sample)) for sample in samples]
        for split, samples in kept.items()
    }
    short = {
        split: [each for each in samples if max_length is None or each[1] <= max_length]
        for split, samples in found.items()
    }
    lost = sum(map(len, found.values())) - sum(map(len, short.values()))
    if lost:
        done.left_out[f"longer than {max_length} tokens"] = lost
    if not short["train"]:
        raise UserError(
            f"There is nothing to export: every sample is longer than {max_length} tokens, the "
            f"shortest of {min(n for _, n in found['train'])}."
        )
    done.lengths = measure(short, tokenizer.name)
    return {split: [sample for sample, _ in samples] for split, samples in short.items()}


def _is_kept(sample: Sample, done: Exported) -> bool:
    """Whether the target can express the sample; if not, the reason is counted."""
    if done.target == "dpo" and sample.rejected is None:
        reason = "it is no pair"
    elif done.target != "dpo" and sample.part == "anchor":
        reason = ANCHORS
    elif sample.cut:
        reason = CUT
    else:
        return True
    done.left_out[reason] = done.left_out.get(reason, 0) + 1
    return False


def _count_changes(samples: Sequence[Sample], done: Exported) -> None:
    counts = {
        "their weight is not 1: it is in the column `weight`, which this trainer does not "
        "read": sum(s.weight != 1 for s in samples),
        "soft targets: written as the one action that was taken": sum(
            s.teacher is not None for s in samples
        ),
        "they are pairs: the rejected action is not written (dpo writes it)": sum(
            done.target != "dpo" and s.rejected is not None for s in samples
        ),
        "their sampled token ids are known: this trainer tokenises their text again, with its own "
        "or the model's chat template": sum(s.answer.tokens is not None for s in samples),
    }
    done.changed |= {what: number for what, number in counts.items() if number}


def _trl(kept: Kept, done: Exported) -> None:
    data, valid = (
        Dataset(tuple(replace(s, rejected=None) for s in kept[split]))
        for split in ("train", "validation")
    )
    for part in export_trl(data, done.folder, valid):
        for split in ("train", "validation"):
            if (done.folder / part / f"{split}.parquet").is_file():
                done.files[f"{part}/{split}.parquet"] = sum(s.part == part for s in kept[split])


def _dpo(kept: Kept, done: Exported) -> None:
    export_dpo(Dataset(tuple(kept["train"])), done.folder, Dataset(tuple(kept["validation"])))
    for split in ("train", "validation"):
        if (done.folder / "preference" / f"{split}.parquet").is_file():
            done.files[f"preference/{split}.parquet"] = len(kept[split])
    _write_parts(kept, done, _rows.ranking, _write_lines, ".jsonl", "preference")
    _write_dataset_info(done, ranking=True)


def _sharegpt(kept: Kept, done: Exported) -> None:
    _write_parts(kept, done, _rows.sharegpt, _write_lines, ".jsonl")
    _write_dataset_info(done, ranking=False)


def _axolotl(kept: Kept, done: Exported) -> None:
    _write_parts(kept, done, _rows.axolotl, _write_lines, ".jsonl")
    listed = {
        split: [_axolotl_entry(name) for name in done.files if _split(name) == split]
        for split in ("train", "validation")
    }
    head = (
        "# Into your Axolotl config. The paths are seen from this folder: run axolotl in it, "
        "or put its path before them.\n"
    )
    length = (
        f"sequence_len: {done.lengths.longest}  # holds every row\n"
        if done.lengths is not None
        else ""
    )
    text = (
        head + length + "chat_template: tokenizer_default\ndatasets:\n" + "".join(listed["train"])
    )
    if listed["validation"]:
        text += "test_datasets:\n" + "".join(listed["validation"])
    (done.folder / "axolotl.yaml").write_text(text, encoding="utf-8")


def _axolotl_entry(name: str) -> str:
    return (
        f"  - path: {name}\n    ds_type: json\n    type: chat_template\n    "
        "field_messages: messages\n    message_property_mappings:\n      role: role\n"
        "      content: content\n    roles_to_train: []\n    train_on_eos: turn\n    "
        "message_field_training: train\n    split: train\n"
    )


def _verl(kept: Kept, done: Exported) -> None:
    _write_parts(kept, done, _rows.verl, _write_parquet, ".parquet")
    program = resources.files("leafe.data.exporting") / "answer_only.py.txt"
    (done.folder / "answer_only.py").write_text(
        program.read_text(encoding="utf-8"), encoding="utf-8"
    )


def _write_parts(
    kept: Kept,
    done: Exported,
    row: Callable[[Sample], dict[str, Any] | None],
    write: Callable[[Path, Iterable[dict[str, Any]]], int],
    ending: str,
    together: str | None = None,
) -> None:
    """One file for each split and part that has samples; with `together`, one of that name for
    each split."""
    for split, samples in kept.items():
        for name in PARTS if together is None else (together,):
            found = [row(s) for s in samples if together is not None or s.part == name]
            lost = sum(each is None for each in found)
            if lost and done.target == "dpo":
                what = f"not in preference.jsonl: {TURNS}"
                done.changed[what] = done.changed.get(what, 0) + lost
            elif lost:
                done.left_out[TURNS] = done.left_out.get(TURNS, 0) + lost
            if len(found) > lost:
                file = name + ("" if split == "train" else ".validation") + ending
                done.files[file] = write(
                    done.folder / file, [each for each in found if each is not None]
                )


def _write_dataset_info(done: Exported, ranking: bool) -> None:
    """Write LLaMA-Factory's dataset_info.json, which names the datasets `leafe_PART`."""
    columns = {"messages": "conversations", "system": "system"} | (
        {"chosen": "chosen", "rejected": "rejected"} if ranking else {}
    )
    info = {
        "leafe_" + name.removesuffix(".jsonl").replace(".", "_"): {
            "file_name": name,
            "formatting": "sharegpt",
            **({"ranking": True} if ranking else {}),
            "columns": columns,
            "tags": {
                "role_tag": "from",
                "content_tag": "value",
                "user_tag": "human",
                "assistant_tag": "gpt",
            },
        }
        for name in done.files
        if name.endswith(".jsonl")
    }
    if not info and not ranking:
        raise UserError(f"There is nothing to export: {TURNS}.")
    (done.folder / "dataset_info.json").write_text(
        json.dumps(info, indent=2) + "\n", encoding="utf-8"
    )


def _split(name: str) -> str:
    return "validation" if "validation" in name else "train"


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    number = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=True) + "\n")
            number += 1
    return number


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    import pyarrow
    import pyarrow.parquet

    listed = list(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(listed), path)
    return len(listed)


_WRITERS: Mapping[str, Callable[[Kept, Exported], None]] = {
    "trl": _trl,
    "sharegpt": _sharegpt,
    "axolotl": _axolotl,
    "verl": _verl,
    "dpo": _dpo,
}
