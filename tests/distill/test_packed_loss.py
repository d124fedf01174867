"""The packed loss and every gradient are those of the samples one by one, for the families of models and however the batch is cut."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from leafe.distill import PARTS, Span, TokenSequence, build, encode, preset
from tests.distill.strategies import WORDS, batches
from tests.distill.toy import PROMPTS, chat, forest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

from leafe.distill import _loss  # noqa: E402
from leafe.distill._attention import Attention, choose, dense_mask, output_layer  # noqa: E402
from leafe.distill._loss import collate, part_losses, totals  # noqa: E402
from leafe.distill._pack import Row, pack  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 4, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {}, "Qwen2": {}, "Qwen3": {}, "Mistral": {"sliding_window": None}, "Gemma": {}, "Phi3": {}, "SmolLM3": {}, "Olmo2": {},
}  # fmt: skip
WEIGHTS = torch.tensor([0.5, 1.0, 0.3, 0.1], dtype=torch.float64)


def tiny(family: str, dtype: Any = torch.float64, words: int = WORDS, seed: int = 0, **options: Any) -> Any:
    config = getattr(transformers, f"{family}Config")(**SIZES | FAMILIES.get(family, {}) | options | {"vocab_size": words})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    return model.to(dtype).eval()


def one_by_one(model: Any, start: Any, batch: Sequence[TokenSequence]) -> Any:
    """loss_P by the definition: each target with nothing but its own context before the model."""
    sums = [torch.zeros((), dtype=torch.float64) for _ in PARTS]
    weights = [0.0 for _ in PARTS]
    for sequence in batch:
        part = PARTS.index(sequence.part)
        for span in sequence.spans:
            for at in range(span.start, span.end):
                new = model(torch.tensor([sequence.ids[:at]])).logits[0, -1].log_softmax(-1)
                if span.teacher is None:
                    loss = -new[sequence.ids[at]]
                else:
                    with torch.no_grad():
                        old = start(torch.tensor([[*span.teacher, *sequence.ids[span.start : at]]])).logits[0, -1].log_softmax(-1)
                    loss = (old.exp() * (old - new)).sum()
                sums[part] = sums[part] + span.weight * loss
                weights[part] += span.weight
    return torch.stack([s / w if w else s for s, w in zip(sums, weights, strict=True)])


def packed(model: Any, start: Any, batch: Sequence[TokenSequence], attention: Attention, limit: int = 1000, rows_a_pass: int = 1000) -> Any:
    rows = pack(batch, attention.shape(limit))
    passes = [rows[i : i + rows_a_pass] for i in range(0, len(rows), rows_a_pass)]
    return sum(part_losses(model, lambda: nullcontext(start), collate(p, totals(batch), 0, attention)) for p in passes)


def gradients(model: Any, loss_P: Any) -> dict[str, Any]:
    """The losses and every parameter's gradient."""
    model.zero_grad()
    (loss_P * WEIGHTS.to(loss_P.dtype)).sum().backward()
    return {"losses": loss_P.detach()} | {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float) -> None:
    """Tensor by tensor, the Euclidean norm of the difference over the norm.

    A gradient below a thousandth of all of them together, which is a difference of large numbers, is measured against that thousandth.
    """
    whole = sum(float(g.norm()) ** 2 for name, g in expected.items() if name != "losses") ** 0.5
    off = {name: float((found[name].double() - g).norm() / max(g.norm(), 1e-3 * whole, 1e-12)) for name, g in expected.items()}
    assert max(off.values()) <= tolerance, off


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms are computed in float32 whatever the model's type is; here float64 stays float64."""
    to, to_float = torch.Tensor.to, torch.Tensor.float

    def stay(tensor: Any, *arguments: Any, **options: Any) -> Any:
        return tensor if tensor.dtype is torch.float64 and torch.float32 in (*arguments, *options.values()) else to(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", stay)
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor if tensor.dtype is torch.float64 else to_float(tensor))


def toy_batch() -> list[TokenSequence]:
    encoded = encode(build(forest(2), PROMPTS, preset("leafe+"), 0).samples, chat(), 512)
    soft = [TokenSequence(s.part, s.task_id, s.ids, [Span(p.start, p.end, 0.5, s.ids[:3]) for p in s.spans]) for s in encoded.parts["counterfactual"]]
    return [*soft, *(s for part in PARTS for s in encoded.parts[part])]


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_the_samples_one_by_one(family: str) -> None:
    words = len(chat().tokenizer)
    model, start = (tiny(family, words=words, seed=seed) for seed in (0, 1))
    batch = toy_batch()
    attention = choose(model, 512)
    assert (attention.kind, attention.head, attention.notes) == ("sdpa", True, ())
    wide = Attention("sdpa", head=True)
    assert len(pack(batch, wide.shape(1000))) == 1
    assert len(pack(batch, wide.shape(40))) > 5
    expected = gradients(model, one_by_one(model, start, batch))
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        model, start = model.to(dtype), start.to(dtype)
        for attend, limit, rows in ((wide, 1000, 1), (wide, 40, 2), (attention, 1000, 1000), (Attention("causal"), 1000, 3)):
            assert_same(gradients(model, packed(model, start, batch, attend, limit, rows)), expected, tolerance)


MODEL, START = (tiny("Llama", seed=s) for s in (0, 1))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches)
def test_random_batches(batch: list[TokenSequence]) -> None:
    expected = gradients(MODEL, one_by_one(MODEL, START, batch))
    assert_same(gradients(MODEL, packed(MODEL, START, batch, Attention("sdpa", head=True))), expected, 1e-10)
