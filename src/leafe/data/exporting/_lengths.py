"""How many tokens each row has, by the tokenizer of the model that is to be trained: trainers cut
long rows from the end, where the answer is."""

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

USUAL: Mapping[str, tuple[str, str, int]] = {
    "trl": ("TRL's SFTTrainer", "max_length", 1024),
    "dpo": ("TRL's DPOTrainer", "max_length", 1024),
    "sharegpt": ("LLaMA-Factory", "cutoff_len", 2048),
    "axolotl": ("Axolotl", "sequence_len", 512),
    "verl": ("verl", "data.max_length", 1024),
}
"""Target: its trainer, what the trainer calls the most tokens of a row, and that setting's
default."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """What rows are measured with."""

    name: str
    """For people: a folder's name or a model's id, no path."""
    tokenizer: Any

    def length(self, sample: Sample) -> int:
        """Tokens of the prompt and its answer (of a pair: the longer one) as a trainer renders
        them."""
        answers = [sample.answer, *([sample.rejected] if sample.rejected is not None else [])]
        return max(self._tokens((*sample.messages, answer)) for answer in answers)

    def _tokens(self, messages: Sequence[Message]) -> int:
        chat = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text = self.tokenizer.apply_chat_template(chat, tokenize=False)
            return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        except Exception as error:  # a template is a program of its own
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"The tokenizer {self.name} cannot render the samples ({said}): give "
                "another one with --tokenizer."
            ) from error


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of the rows that were written."""

    tokenizer: str
    parts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Tokens of each row, by part; of rows that are held out, by `PART, validation`."""

    @property
    def longest(self) -> int:
        """The `max_length` that holds every row."""
        return max((max(each) for each in self.parts.values() if each), default=0)

    def longer_than(self, most: int) -> int:
        return sum(length > most for each in self.parts.values() for length in each)

    @property
    def rows(self) -> int:
        return sum(map(len, self.parts.values()))


def measured(kept: Mapping[str, Iterable[tuple[Sample, int]]], tokenizer: str) -> Lengths:
    """The lengths of samples by split and part."""
    parts: dict[str, list[int]] = {}
    for split, samples in kept.items():
        for sample, length in samples:
            parts.setdefault(
                sample.part + (", validation" if split == "validation" else ""), []
            ).append(length)
    return Lengths(tokenizer, parts)


def warning(lengths: Lengths | None, target: str) -> str:
    """One sentence where the trainer's own default would cut rows; empty where it would not, or
    nothing is known."""
    if target not in USUAL:
        return ""
    trainer, setting, usual = USUAL[target]
    if lengths is None:
        return (
            "no tokenizer of this run is here, so that nothing was measured: "
            f"{trainer} keeps {usual:,} tokens of a row by default; --tokenizer FOLDER measures."
        )
    cut = lengths.longer_than(usual)
    if not cut:
        return ""
    return (
        f"{cut} of {lengths.rows} rows are longer than the {usual:,} tokens that {trainer} "
        "keeps by default, and would lose their answer, which stands at the "
        f"end, or be dropped: set {setting} = {lengths.longest} there, or export with "
        "--max-length, which leaves long rows out."
    )


def section(lengths: Lengths | None, target: str) -> str:
    """The card's part on lengths."""
    if target not in USUAL:
        return ""
    trainer, setting, usual = USUAL[target]
    if lengths is None:
        return (
            f"## Token lengths\n\nNot measured: no tokenizer was at hand. {trainer} keeps "
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
    run: RunFolder, recipe: Recipe, asked: str | Path | None = None
) -> Tokenizer | None:
    """The tokenizer that was asked for (a folder or a model's id), else that of the run's model;
    None where that is not on this machine.

    Raises:
        UserError: The one that was asked for cannot be loaded, or has no chat template.
    """
    if asked is not None:
        return _loaded(asked)
    if recipe.policy.model == "embedded":
        from leafe.embedded import base_path

        return _loaded(base_path(), "embedded")
    model = Path(recipe.policy.model).expanduser()
    for folder in [model, *sorted(run.path.glob("distill/*/checkpoint"))]:
        if (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file():
            try:
                return _loaded(
                    folder, recipe.policy.model if folder == model else folder.parent.name
                )
            except UserError:
                continue
    return None


def _loaded(where: str | Path, name: str | None = None) -> Tokenizer:
    from leafe.policies.hf.loading import load_tokenizer

    found = load_tokenizer(where)
    if getattr(found, "chat_template", None) is None:
        raise UserError(
            f"The tokenizer {where} has no chat template, so that rows cannot be measured "
            "with it: give another one with --tokenizer."
        )
    return Tokenizer(Path(name or str(where)).name, found)
