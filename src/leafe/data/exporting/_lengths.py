"""Tokens of each exported row, by the tokenizer of the model to be trained: trainers cut long rows
from the end, where the answer is."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leafe.core import Message, UserError
from leafe.distill import Sample
from leafe.recipes import Recipe
from leafe.runs import RunFolder

TRAINER_LIMITS: Mapping[str, tuple[str, str, int]] = {
    "trl": ("TRL's SFTTrainer", "max_length", 1024),
    "dpo": ("TRL's DPOTrainer", "max_length", 1024),
    "sharegpt": ("LLaMA-Factory", "cutoff_len", 2048),
    "axolotl": ("Axolotl", "sequence_len", 512),
    "verl": ("verl", "data.max_length", 1024),
}
"""Target -> its trainer, the trainer's option for the longest row, and that option's default in
tokens."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Measures rows.

    Attributes:
        name: A folder's name or a model's id, for people.
        tokenizer: A transformers tokenizer with a chat template.
    """

    name: str
    tokenizer: Any

    def length(self, sample: Sample) -> int:
        """Tokens of prompt and answer (of a pair: of the longer answer) as a trainer renders
        them.

        Raises:
            UserError: The chat template cannot render the sample.
        """
        answers = [sample.answer, *([sample.rejected] if sample.rejected is not None else [])]
        return max(self._tokens((*sample.messages, answer)) for answer in answers)

    def _tokens(self, messages: Sequence[Message]) -> int:
        chat = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text = self.tokenizer.apply_chat_template(chat, tokenize=False)
            return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        except Exception as error:  # a template is a program of its own
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"The tokenizer {self.name} cannot render the samples ({reason}): give "
                "another one with --tokenizer."
            ) from error


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the rows that were written."""

    tokenizer: str
    parts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Tokens of each row by part; rows held out for validation are under `PART, validation`."""

    @property
    def longest(self) -> int:
        """The smallest `max_length` that cuts no row."""
        return max((max(each) for each in self.parts.values() if each), default=0)

    def longer_than(self, most: int) -> int:
        return sum(length > most for each in self.parts.values() for length in each)

    @property
    def rows(self) -> int:
        return sum(map(len, self.parts.values()))


def measure(kept: Mapping[str, Iterable[tuple[Sample, int]]], tokenizer: str) -> Lengths:
    """The lengths of samples by split and part."""
    parts: dict[str, list[int]] = {}
    for split, samples in kept.items():
        for sample, length in samples:
            parts.setdefault(
                sample.part + (", validation" if split == "validation" else ""), []
            ).append(length)
    return Lengths(tokenizer, parts)


def warning(lengths: Lengths | None, target: str) -> str:
    """One sentence if the trainer's default would cut rows, or nothing was measured; else empty."""
    if target not in TRAINER_LIMITS:
        return ""
    trainer, setting, usual = TRAINER_LIMITS[target]
    if lengths is None:
        return (
            f"row lengths are unknown, since this run has no tokenizer here: {trainer} keeps "
            f"{usual:,} tokens of a row by default; give --tokenizer FOLDER to measure."
        )
    cut = lengths.longer_than(usual)
    if not cut:
        return ""
    return (
        f"{cut} of {lengths.rows} rows are longer than the {usual:,} tokens that {trainer} "
        "keeps by default, and would lose their answer or be dropped: set "
        f"{setting} = {lengths.longest} there, or export with --max-length, which leaves long "
        "rows out."
    )


def length_section(lengths: Lengths | None, target: str) -> str:
    """The card's section on lengths."""
    if target not in TRAINER_LIMITS:
        return ""
    trainer, setting, usual = TRAINER_LIMITS[target]
    if lengths is None:
        return (
            f"## Token lengths\n\nNot measured: no tokenizer was found. {trainer} keeps "
            f"{usual:,} tokens of a row by "
            f"default and cuts or drops longer ones: set `{setting}`."
        )
    rows = [
        (
            f"| {part} | {len(each)} | {statistics.median(each):.0f} | {max(each)} | "
            f"{sum(n > usual for n in each)} |"
        )
        for part, each in lengths.parts.items()
        if each
    ]
    return "\n".join(
        [
            "## Token lengths",
            "",
            (
                f"Prompt and answer together, by the tokenizer `{lengths.tokenizer}` and its "
                "chat template; another model's differ."
            ),
            "",
            f"| part | rows | median | longest | longer than {usual:,} |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
            f"**`{setting} = {lengths.longest}` holds every row.** {trainer} keeps "
            f"{usual:,} tokens by default and cuts "
            "or drops what is longer; rows are cut from the end, where the answer is.",
        ]
    )


def tokenizer_of(
    run: RunFolder, recipe: Recipe, tokenizer: str | Path | None = None
) -> Tokenizer | None:
    """Find a tokenizer to measure rows with.

    Args:
        run: The run.
        recipe: Its recipe.
        tokenizer: A folder or a model's id; None: the tokenizer of the run's model or checkpoints.

    Returns:
        The tokenizer; None where the run has none on this machine.

    Raises:
        UserError: `tokenizer` cannot be loaded, or has no chat template.
    """
    if tokenizer is not None:
        return _load(tokenizer)
    if recipe.policy.model == "embedded":
        from leafe.embedded import base_path

        return _load(base_path(), "embedded")
    model = Path(recipe.policy.model).expanduser()
    for folder in [model, *sorted(run.path.glob("distill/*/checkpoint"))]:
        if (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file():
            try:
                return _load(folder, recipe.policy.model if folder == model else folder.parent.name)
            except UserError:
                continue
    return None


def _load(where: str | Path, name: str | None = None) -> Tokenizer:
    from leafe.policies.hf.loading import load_tokenizer

    found = load_tokenizer(where)
    if getattr(found, "chat_template", None) is None:
        raise UserError(
            f"The tokenizer {where} has no chat template, so that rows cannot be measured "
            "with it: give another one with --tokenizer."
        )
    return Tokenizer(Path(name or str(where)).name, found)
