"""A tiny random checkpoint in the standard format, so that tests take the path that any model
takes.

    from tests.tiny import tiny_checkpoint

The tokenizer is word-level (one token a word, split at white space); its chat template closes every
message with `<|end|>` and only appends, so `ChatTokens` accepts it. Weights are random but seeded.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

WORDS = (
    "take",
    "use",
    "go",
    "left",
    "right",
    "up",
    "down",
    "walk",
    "on",
    "key",
    "lamp",
    "rope",
    "rusty",
    "dark",
    "gate",
    ";",
    ":",
    "s0",
    "s1",
    "s2",
    "note",
    "reflect",
)

SPECIAL = ("<unk>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer(words: Iterable[str] = WORDS, template: str | None = TEMPLATE) -> Any:
    """A word-level `PreTrainedTokenizerFast` with the special tokens above; `template=None`: no
    chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(dict.fromkeys((*SPECIAL, *words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|end|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        clean_up_tokenization_spaces=False,
    )
    if template is not None:
        fast.chat_template = template
    return fast


def byte_tokenizer() -> Any:
    """A byte-level tokenizer (one token a byte, any text goes in and out) with the same special
    tokens and template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate((*SPECIAL, *letters))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|end|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
    )
    fast.chat_template = TEMPLATE
    return fast


def tiny_checkpoint(
    path: str | Path,
    arch: Literal["llama", "qwen2"] = "llama",
    words: Iterable[str] = WORDS,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    context: int = 512,
    seed: int = 0,
    scale: float = 0.02,
    template: str | None = TEMPLATE,
    tokenizer: Any = None,
) -> Path:
    """Write a random model and its tokenizer (`words` by default) to the folder `path` and return
    it. A larger `scale` (0.2) gives peaked distributions."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    tokenizer = tokenizer or tiny_tokenizer(words, template)
    config_class, model_class = (
        (LlamaConfig, LlamaForCausalLM) if arch == "llama" else (Qwen2Config, Qwen2ForCausalLM)
    )
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        initializer_range=scale,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
    path = Path(path)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
