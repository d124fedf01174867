"""A checkpoint that is damaged, or is not the one that its config.json describes, is one sentence:
for playing, for training, and for adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leafe.core import UserError
from leafe.distill import DistillConfig
from leafe.distill._model import load
from leafe.policies.hf.loading import load_model, load_tokenizer
from tests.tiny import byte_tokenizer, tiny_checkpoint

WEIGHTS = "model.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"

LAYER_9 = "base_model.model.model.layers.9.self_attn.q_proj"


def cut(at: int) -> Callable[[Path], object]:
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:at])


def tensors(
    change: Callable[[dict[str, torch.Tensor]], object], name: str = WEIGHTS
) -> Callable[[Path], None]:
    def broken(folder: Path) -> None:
        held = load_file(folder / name)
        change(held)
        save_file(held, folder / name, {"format": "pt"})

    return broken


def config(**values: object) -> Callable[[Path], object]:
    def broken(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return broken


def written(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


BROKEN: dict[str, Callable[[Path], object]] = {
    "lfs": written(WEIGHTS, LFS),
    "empty": cut(0),
    "head": cut(5),
    "cut": cut(5000),
    "noise": lambda p: (p / WEIGHTS).write_bytes(b"\xff" * 5000),
    "html": written(WEIGHTS, "<html>Not found</html>"),
    "no file": lambda p: (p / WEIGHTS).unlink(),
    "width": config(hidden_size=32),
    "layers": config(num_hidden_layers=3),
    "fewer layers": config(num_hidden_layers=1),
    "vocabulary": config(vocab_size=7),
    "zero heads": config(num_attention_heads=0),
    "heads": config(num_attention_heads=3),
    "type": config(model_type="nothing"),
    "text": config(hidden_size="x"),
    "missing": tensors(lambda held: held.pop("model.norm.weight")),
    "extra": tensors(lambda held: held.update({"model.more": torch.zeros(2)})),
    "shape": tensors(lambda held: held.update({"model.norm.weight": torch.ones(3)})),
    "config lfs": written("config.json", LFS),
    "config array": written("config.json", "[]"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("sound"), tokenizer=byte_tokenizer())


def copied(sound: Path, to: Path) -> Path:
    for path in sound.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_checkpoint_is_a_sentence(how: str, sound: Path, tmp_path: Path) -> None:
    folder = copied(sound, tmp_path)
    BROKEN[how](folder)
    for use in (
        lambda: load_model(folder),
        lambda: load(folder, DistillConfig(), torch.device("cpu")),
    ):
        with pytest.raises(UserError) as error:
            use()
        said = str(error.value)
        assert str(folder) in said
        assert "\n" not in said
        if how in (
            "lfs",
            "head",
            "cut",
            "width",
            "layers",
            "fewer layers",
            "missing",
            "extra",
            "shape",
        ):
            assert WEIGHTS in said


def test_a_sound_one_is_loaded(sound: Path) -> None:
    assert (
        load_model(sound).num_parameters()
        == load(sound, DistillConfig(), torch.device("cpu")).model.num_parameters()
    )


@pytest.mark.parametrize("text", ["", "{", LFS, '{"model": 3}'])
def test_a_broken_tokenizer_is_a_sentence(text: str, sound: Path, tmp_path: Path) -> None:
    folder = copied(sound, tmp_path)
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="tokenizer"):
        load_tokenizer(folder)


ADAPTER = "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("what", "broken"),
    [
        ("Git LFS pointer", written(ADAPTER, LFS)),
        ("cut off", lambda p: (p / ADAPTER).write_bytes((p / ADAPTER).read_bytes()[:300])),
        ("is missing", tensors(lambda held: held.pop(next(iter(held))), ADAPTER)),
        (
            "no place",
            tensors(
                lambda held: held.update({f"{LAYER_9}.lora_A.weight": torch.zeros(2, 64)}),
                ADAPTER,
            ),
        ),
        (
            "does not fit",
            tensors(lambda held: held.update({next(iter(held)): torch.zeros(2, 3)}), ADAPTER),
        ),
        ("adapter", written("adapter_config.json", "{")),
        ("does not fit", lambda p: (p / ADAPTER).unlink()),
    ],
)
def test_a_broken_adapter_is_a_sentence(
    what: str, broken: Callable[[Path], object], sound: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        load_model(sound), peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    model.save_pretrained(tmp_path)
    load_model(sound, adapter=tmp_path)
    broken(tmp_path)
    with pytest.raises(UserError, match=what) as error:
        load_model(sound, adapter=tmp_path)
    assert "\n" not in str(error.value)
