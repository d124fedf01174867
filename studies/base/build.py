"""Build the embedded base policy: tokenizer, pretraining on `examples`, and the requirements that
the checkpoint has to meet.

Tensor names carry their axes: B an example, T a token of it. One thread is used on every machine,
so that the same seed gives the same weights on the same machine, and because two threads are slower
than one at this size.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from leafe.core import ChatTokens, UserError
from leafe.envs.gates.rules import WORDS
from leafe.prompts import Prompts, load_prompt_set
from studies.base.measure import REQUIRED, measure_base
from studies.base.pretraining import examples, words_to_ids

PAD, UNKNOWN, END = "<pad>", "<unk>", "<end>"
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{{ '"
    + END
    + "' if m['role'] == 'assistant' else ' ' }}{% endfor %}"
)
"""No token but the end of the policy's own messages: a word more in every turn would cost a tenth
of the demo's time."""

CONTEXT = 512
"""Tokens; the longest prompt (twenty steps, four earlier attempts) takes about 230."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One id a word, `END` after each of the policy's messages."""
    vocabulary = {word: i for i, word in enumerate((PAD, UNKNOWN, END, *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        model_max_length=CONTEXT,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast) -> Any:
    """An untrained Llama of 0.8M parameters.

    The words that go in are told apart strongly from the start and are not tied to the words that
    come out. With tied words and the usual
    small start the model sticks: the words of a kind, all likely at the same places, grow into one
    before it learns to copy any of them.
    """
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            initializer_range=0.06,
        )
    )
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.4)
    torch.nn.init.normal_(model.lm_head.weight, std=0.02)
    return model


def batches(
    stream: Iterator[tuple[list[int], list[float]]],
    tokens: int,
    rng: random.Random,
    pool: int = 1024,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(ids_BT, weight_BT) of examples of like length, `tokens` with padding at most."""
    while True:
        lot = sorted(itertools.islice(stream, pool), key=lambda example: len(example[0]))
        out: list[list[tuple[list[int], list[float]]]] = [[]]
        for example in lot:
            if out[-1] and len(example[0]) * (len(out[-1]) + 1) > tokens:
                out.append([])
            out[-1].append(example)
        rng.shuffle(out)
        for batch in out:
            length = len(batch[-1][0])
            yield (
                torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in batch]),
                torch.tensor([weight + [0.0] * (length - len(weight)) for _, weight in batch]),
            )


def loss_of(model: Any, ids_BT: torch.Tensor, weight_BT: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross-entropy of the policy's words, nats."""
    hidden = model.model(input_ids=ids_BT[:, :-1], use_cache=False).last_hidden_state
    at = weight_BT[:, 1:] > 0
    loss = functional.cross_entropy(model.lm_head(hidden[at]), ids_BT[:, 1:][at], reduction="none")
    weight = weight_BT[:, 1:][at]
    return (loss * weight).sum() / weight.sum()


def build(
    out: Path,
    seed: int = 0,
    *,
    steps: int = 2000,
    batch_tokens: int = 1280,
    rate: float = 2e-3,
    say: Any = print,
    strict: bool = True,
    tasks: int = 80,
) -> dict[str, float]:
    """Pretrain the base policy and write it to `out`.

    Args:
        out: the checkpoint's folder.
        seed: draws the weights and the examples.
        steps: optimiser steps.
        batch_tokens: tokens of a batch, padding included.
        rate: the highest learning rate.
        say: receives progress lines.
        strict: write nothing where a requirement is missed.
        tasks: validation tasks to measure on.

    Returns:
        What `measure_base` measured, with `markers_seen` and `seconds`.

    Raises:
        UserError: with `strict`, the base misses a requirement (`REQUIRED`).
    """
    start = time.monotonic()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(seed)
        rng = random.Random(seed)
        prompts = Prompts(load_prompt_set("gates"))
        tokenizer = make_tokenizer()
        chat = ChatTokens(tokenizer, "the embedded model")
        model = make_model(tokenizer)
        encode = words_to_ids(tokenizer.get_vocab(), chat.end_of_turn)
        size = sum(p.numel() for p in model.parameters())
        say(
            f"embedded base: {size} parameters, {len(tokenizer)} words, {steps} steps of "
            f"{batch_tokens} tokens, seed {seed}"
        )
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        seen: set[int] = set()
        mean = 0.0
        stream = (encode(example) for example in examples(seed, prompts))
        for step, (ids_BT, weight_BT) in zip(
            range(steps), batches(stream, batch_tokens, rng), strict=False
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(
                    (step + 1) / 60, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
                )
            loss = loss_of(model, ids_BT, weight_BT)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seen.update(ids_BT.flatten().tolist())
            mean = loss.item() if step == 0 else 0.95 * mean + 0.05 * loss.item()
            if step % 50 == 49:
                say(f"step {step + 1}/{steps}  loss {mean:.3f}  {time.monotonic() - start:.0f} s")
            if step % 300 == 299 and step + 1 < steps:
                say(_line(measure_base(model, chat, prompts, tasks=16)))
        model.eval()
        measured = measure_base(model, chat, prompts, tasks)
        names = set(tokenizer.convert_ids_to_tokens(sorted(seen)))
        measured["markers_seen"] = sum(f"s{i}" in names for i in range(_MARKERS)) / _MARKERS
        measured["seconds"] = round(time.monotonic() - start, 1)
        say(_line(measured))
        missed = [
            f"{name} {measured[name]:.3f} < {least}"
            for name, least in REQUIRED.items()
            if measured[name] < least
        ]
        if missed and strict:
            raise UserError(
                f"The embedded base of seed {seed} misses {', '.join(missed)}: build it "
                "with another seed or more steps."
            )
        save(
            out,
            model,
            tokenizer,
            measured | {"seed": seed, "steps": steps, "batch_tokens": batch_tokens, "rate": rate},
        )
        say(
            f"written to {out}"
            + (f"; it misses {', '.join(missed)}" if missed else "; every requirement met")
        )
        return measured
    finally:
        torch.set_num_threads(threads)


_MARKERS = sum(word[0] == "s" and word[1:].isdigit() for word in WORDS)


def _line(measured: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in measured.items())


def save(
    out: Path, model: Any, tokenizer: PreTrainedTokenizerFast, facts: dict[str, float]
) -> None:
    """The checkpoint in the standard layout, and `facts.json`: how it was made and what it
    measured."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
