"""The trainers' own loaders read what is exported and put the loss where leafe's trainer puts it.

TRL is one of our own dependencies. The others do not install beside it (they pin older packages);
where one can be imported its loader is the oracle,
else `test_write.py` holds the files against its documented schema. They were LLaMA-Factory 0.9.4,
Axolotl 0.19.0 and verl 0.8.0.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from leafe.core import Message
from leafe.data import Source, export
from leafe.distill import Sample, build, preset
from tests.data.importing.logs import ABOUT
from tests.distill.toy import PROMPTS, WORDS, chat, forest
from tests.tiny import tiny_tokenizer

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore")


def samples(method: str = "leafe+") -> list[Sample]:
    data = build(forest(4), PROMPTS, preset(method), 0)
    return [s for s in data.samples if s.part != "anchor"]


def source(method: str = "leafe+") -> Source:
    return Source(ABOUT, build(forest(4), PROMPTS, preset(method), 0))


def targets(sample: Sample) -> tuple[list[int], list[bool]]:
    """The token ids of a sample and which of them are learnt, as leafe's trainer has them."""
    prompt, answer = (
        chat().prompt(sample.messages),
        chat().answer(Message("assistant", sample.answer.content)),
    )
    return [*prompt, *answer], [False] * len(prompt) + [True] * len(answer)


def test_the_hubs_loader_reads_every_part_by_its_name(tmp_path: Path) -> None:
    """`load_dataset(folder, PART)`, which goes by the card's front matter."""
    for target in ("trl", "axolotl", "sharegpt", "verl"):
        done = export(source(), target, tmp_path / target)  # type: ignore[arg-type]
        for part in ("rehearsal", "counterfactual", "reflection"):
            found = datasets.load_dataset(
                str(done.folder), part, split="train", cache_dir=str(tmp_path / "cache")
            )
            assert len(found) == sum(s.part == part for s in samples()), (target, part)


def test_trl_takes_the_columns_for_what_they_are(tmp_path: Path) -> None:
    utils = pytest.importorskip("trl.data_utils")
    done = export(source(), "trl", tmp_path / "out")
    for row in datasets.load_dataset(
        str(done.folder), "counterfactual", split="train", cache_dir=str(tmp_path / "cache")
    ):
        assert utils.is_conversational(row)
        said = utils.apply_chat_template(
            {k: row[k] for k in ("prompt", "completion")}, tiny_tokenizer(WORDS)
        )
        assert said.keys() == {"prompt", "completion"}
    done = export(source("dpo"), "dpo", tmp_path / "pairs")
    for row in datasets.load_dataset(
        str(done.folder), "preference", split="train", cache_dir=str(tmp_path / "cache")
    ):
        said = utils.apply_chat_template(
            {k: row[k] for k in ("prompt", "chosen", "rejected")}, tiny_tokenizer(WORDS)
        )
        assert said.keys() == {"prompt", "chosen", "rejected"}
        assert said["chosen"] != said["rejected"]


@pytest.fixture
def llamafactory(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaMA-Factory's data modules; what they import for sound and pictures may be missing."""
    pytest.importorskip(
        "llamafactory",
        reason=(
            "LLaMA-Factory is not installed: checked against its documented schema in test_write.py"
        ),
    )
    for name in ("torchaudio", "av"):
        if importlib.util.find_spec(name) is None:
            stub = types.ModuleType(name)
            stub.__spec__ = importlib.machinery.ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, stub)


@pytest.mark.usefixtures("llamafactory")
@pytest.mark.parametrize("target", ["sharegpt", "dpo"])
def test_llama_factory_reads_it(target: Any, tmp_path: Path) -> None:
    from llamafactory.data.converter import get_dataset_converter  # type: ignore[import-not-found]
    from llamafactory.data.parser import get_dataset_list  # type: ignore[import-not-found]

    method = "dpo" if target == "dpo" else "leafe+"
    done = export(source(method), target, tmp_path / "out")
    names = (
        ["leafe_preference"]
        if target == "dpo"
        else ["leafe_rehearsal", "leafe_counterfactual", "leafe_reflection"]
    )
    read = []
    for attributes in get_dataset_list(names, str(done.folder)):
        assert attributes.load_from == "file"
        file = str(done.folder / attributes.dataset_name)
        found = datasets.load_dataset(
            "json", data_files=file, split=attributes.split, cache_dir=str(tmp_path / "cache")
        )
        convert = get_dataset_converter(
            attributes.formatting, attributes, types.SimpleNamespace(media_dir="")
        )
        read += [convert(row) for row in found]
    mine = samples(method)
    assert len(read) == len(mine)
    said = {
        (
            each["_system"],
            tuple((m["role"], m["content"]) for m in each["_prompt"]),
            *(m["content"] for m in each["_response"]),
        )
        for each in read
    }
    assert said == {
        (
            "",
            tuple((m.role, m.content) for m in s.messages),
            s.answer.content,
            *([s.rejected.content] if target == "dpo" and s.rejected else []),
        )
        for s in mine
    }


def test_axolotl_learns_the_answer_alone(tmp_path: Path) -> None:
    pytest.importorskip(
        "axolotl",
        reason="Axolotl is not installed: checked against its documented schema in test_write.py",
    )
    strategies = pytest.importorskip(
        "axolotl.prompt_strategies.chat_template", exc_type=ImportError
    )
    import yaml
    from axolotl.utils.dict import DictDefault  # type: ignore[import-not-found]

    done = export(source(), "axolotl", tmp_path / "out")
    config = yaml.safe_load((done.folder / "axolotl.yaml").read_text("utf-8"))
    read = []
    for entry in config["datasets"]:
        found = datasets.load_dataset(
            "json",
            data_files=str(done.folder / entry["path"]),
            split="train",
            cache_dir=str(tmp_path / "cache"),
        )
        strategy = strategies.load(
            tiny_tokenizer(WORDS),
            DictDefault({"sequence_len": 512, "chat_template": config["chat_template"]}),
            DictDefault(entry),
        )
        read += [strategy.tokenize_prompt(row) for row in found]
    mine = samples()
    assert len(read) == len(mine)
    theirs = sorted(
        (list(each["input_ids"]), [label != -100 for label in each["labels"]]) for each in read
    )
    assert theirs == sorted(targets(s) for s in mine)


def test_verl_learns_the_answer_alone(tmp_path: Path) -> None:
    pytest.importorskip(
        "verl",
        reason="verl is not installed: checked against its documented schema in test_write.py",
    )
    pytest.importorskip(
        "verl.utils.dataset.multiturn_sft_dataset",
        exc_type=ImportError,
        reason="this verl does not work with this transformers",
    )
    done = export(source(), "verl", tmp_path / "out")
    spec = importlib.util.spec_from_file_location("answer_only", done.folder / "answer_only.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    files = [str(done.folder / name) for name in done.files]
    config = {
        "pad_mode": "no_padding",
        "max_length": 512,
        "truncation": "error",
        "messages_key": "messages",
    }
    read = module.AnswerOnly(parquet_files=files, tokenizer=tiny_tokenizer(WORDS), config=config)
    mine = samples()
    assert len(read) == len(mine)
    theirs = sorted(
        ([int(i) for i in read[n]["input_ids"]], [bool(i) for i in read[n]["loss_mask"]])
        for n in range(len(read))
    )
    assert theirs == sorted(targets(s) for s in mine)
