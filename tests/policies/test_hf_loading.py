"""What can be wrong with a checkpoint, each said in one sentence; and what must load."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from leafe.core import Message, Request, UserError  # noqa: E402
from leafe.policies.hf import HFPolicy, load_model, load_tokenizer  # noqa: E402
from leafe.policies.hf.loading import check_architecture  # noqa: E402
from tests.tiny import tiny_checkpoint  # noqa: E402


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "llama")


def with_config(source: Path, target: Path, **changes: object) -> Path:
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def test_a_word_level_tokenizer_is_read_as_it_was_written_whatever_the_architecture(
    tmp_path: Path,
) -> None:
    for arch in ("llama", "qwen2"):
        tokenizer = load_tokenizer(tiny_checkpoint(tmp_path / arch, arch))
        assert tokenizer.convert_ids_to_tokens(tokenizer("take key ; on")["input_ids"]) == [
            "take",
            "key",
            ";",
            "on",
        ]


@pytest.mark.parametrize("where", ["/no/such/folder", "no/such/local/folder"])
def test_a_missing_folder(where: str) -> None:
    with pytest.raises(UserError, match=f"no model folder {where}"):
        HFPolicy(where)


def test_a_folder_without_a_model(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(UserError, match=r"No (tokenizer|model) can be loaded"):
        HFPolicy(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.jinja"):
        shutil.copy(llama / name, tmp_path)
    with pytest.raises(UserError, match="No model can be loaded"):
        HFPolicy(tmp_path)


def test_pickled_weights_are_not_read(tmp_path: Path, llama: Path) -> None:
    folder = with_config(llama, tmp_path / "pickled")
    model = load_model(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="No model can be loaded"):
        HFPolicy(folder)


def test_a_checkpoint_without_chat_template(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no chat template"):
        HFPolicy(tiny_checkpoint(tmp_path, template=None))


def test_a_template_that_breaks_the_prefix_rule(tmp_path: Path) -> None:
    shows_the_last_only = (
        "{% for m in messages[-1:] %}<|user|>{{ m['content'] }}<|end|>{% endfor %}{% if "
        "add_generation_prompt %}<|assistant|>{% endif %}"
    )
    with pytest.raises(UserError, match="prefix rule"):
        HFPolicy(tiny_checkpoint(tmp_path, template=shows_the_last_only))


def test_sliding_windows_are_refused_unless_the_context_fits_in_one(tmp_path: Path) -> None:
    qwen = tiny_checkpoint(tmp_path / "qwen", "qwen2")
    slides = with_config(
        qwen,
        tmp_path / "slides",
        use_sliding_window=True,
        sliding_window=64,
        layer_types=["full_attention", "sliding_attention"],
    )
    with pytest.raises(UserError, match="sliding window of 64"):
        HFPolicy(slides)
    policy = HFPolicy(slides, max_context=64)
    (found,) = asyncio.run(policy.complete(Request((Message("user", "go"),), max_tokens=2, seed=0)))
    assert found.count == 1
    asyncio.run(policy.close())


def test_an_architecture_that_keeps_another_state_is_refused(tmp_path: Path, llama: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    tokenizer = load_tokenizer(llama)
    MambaForCausalLM(
        MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=8)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="in-process engine"):
        HFPolicy(tmp_path, max_context=128)


def test_bad_options(llama: Path) -> None:
    with pytest.raises(UserError, match="max_batch"):
        HFPolicy(llama, max_batch=0)
    with pytest.raises(UserError, match="dtype"):
        HFPolicy(llama, dtype="float17")
    with pytest.raises(UserError, match="device"):
        HFPolicy(llama, device="cuda:77")
    with pytest.raises(UserError, match=r"adapter_config\.json is missing"):
        HFPolicy(llama, adapter=llama)


def test_a_missing_extra_names_the_command(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'leafe\[hf\]'"):
        load_model(llama)
    with pytest.raises(UserError, match=r"pip install 'leafe\[hf\]'"):
        load_tokenizer(llama)


def test_an_adapter_is_merged_and_an_adapter_folder_finds_its_base(
    tmp_path: Path, llama: Path
) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        load_model(llama),
        peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[6, 7, 8, 9]])
    with torch.no_grad():
        want = model.eval()(input_ids=ids).logits
        plain = load_model(llama)(input_ids=ids).logits
        given = load_model(llama, adapter=tmp_path / "adapter")(input_ids=ids).logits
        named = load_model(tmp_path / "adapter")(input_ids=ids).logits
    assert not torch.allclose(want, plain, atol=1e-3)
    assert torch.allclose(given, want, atol=1e-5)
    assert torch.equal(named, given)
    policy = HFPolicy(tmp_path / "adapter")
    assert policy.name == str(tmp_path / "adapter")
    asyncio.run(policy.close())


LONG = {
    "longrope": (
        transformers.Phi3Config,
        {
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 64,
            "pad_token_id": 1,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [4.0] * 8,
            },
        },
    ),
    "dynamic": (
        transformers.LlamaConfig,
        {"max_position_embeddings": 64, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    ),
}


@pytest.mark.parametrize("kind", LONG)
def test_rotary_factors_that_depend_on_the_longest_row_are_refused_past_the_switch(
    kind: str,
) -> None:
    family, options = LONG[kind]
    config = family(hidden_size=64, num_attention_heads=4, num_hidden_layers=2, **options)
    with pytest.raises(UserError, match=r"past 64 tokens.*set max_context to 64 or less"):
        check_architecture(config, 65, "made")
    check_architecture(config, 64, "made")
    plain = transformers.LlamaConfig(rope_scaling={"rope_type": "linear", "factor": 2.0})
    check_architecture(plain, plain.max_position_embeddings, "made")
