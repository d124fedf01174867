"""Counted sampling draws what plain sampling would: exactly, number by number, and so in
distribution."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from leafe.core import Message, Request  # noqa: E402
from leafe.policies.hf import HFPolicy  # noqa: E402
from leafe.policies.hf._sampling import draw, uniforms  # noqa: E402
from tests.tiny import tiny_checkpoint  # noqa: E402


def chi_square_limit(df: int) -> float:
    """About the 99.99 % point (Wilson and Hilferty)."""
    return df * (1 - 2 / (9 * df) + 3.72 * (2 / (9 * df)) ** 0.5) ** 3


def stream(seeds: object, samples: object, steps: object) -> np.ndarray:
    return uniforms(
        np.atleast_1d(np.asarray(seeds, np.uint64)),
        np.atleast_1d(np.asarray(samples, np.int64)),
        np.atleast_1d(np.asarray(steps, np.int64)),
    )


def test_uniforms_are_uniform_and_uncorrelated_along_each_name() -> None:
    n = 40_000
    at = np.arange(n)
    for u in (
        stream(at, 0 * at, 0 * at),
        stream(0 * at + 7, at, 0 * at),
        stream(0 * at + 7, 0 * at, at),
    ):
        cells = np.bincount((u * 64).astype(int), minlength=64)
        assert ((cells - n / 64) ** 2 / (n / 64)).sum() < chi_square_limit(63)
        assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 4 / n**0.5
        assert u.min() >= 0
        assert u.max() < 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_shared_draw_is_each_samples_own_draw(data: st.DataObject) -> None:
    """A row for many samples gives each sample the token that a row of its own would."""
    rows, vocabulary = data.draw(st.integers(1, 5)), data.draw(st.integers(2, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    logits = torch.from_numpy(rng.normal(size=(rows, vocabulary)) * 3).float()
    temperature = rng.choice([0.0, 0.5, 1.0, 2.0], rows)
    top_p = rng.choice([1.0, 0.9, 0.3], rows)
    counts = rng.integers(1, 12, rows)
    row_n = np.repeat(np.arange(rows), counts)
    u = rng.random(len(row_n))
    together = draw(logits, temperature, top_p, row_n, u)
    token_n = np.empty(len(row_n), np.int64)
    for k, token in enumerate(together.token):
        mine = together.order[together.start[k] : together.start[k + 1]]
        assert (row_n[mine] == together.row[k]).all()
        assert (np.diff(mine) > 0).all()
        token_n[mine] = token
    alone = draw(
        logits[torch.from_numpy(row_n)], temperature[row_n], top_p[row_n], np.arange(len(row_n)), u
    )
    assert (alone.token == token_n).all()
    logp = torch.log_softmax(
        logits.double() / torch.from_numpy(np.where(temperature > 0, temperature, 1.0))[:, None], -1
    ).numpy()
    assert np.allclose(together.logprob, logp[together.row, together.token], atol=1e-5)


def test_draws_follow_the_distribution_and_top_p_cuts_it() -> None:
    p = np.array([0.5, 0.25, 0.15, 0.07, 0.03])
    n = 50_000
    for top_p, kept in ((1.0, 5), (0.75, 2), (0.76, 3), (1e-6, 1)):
        drawn = draw(
            torch.log(torch.tensor(p))[None],
            np.ones(1),
            np.full(1, top_p),
            np.zeros(n, np.int64),
            stream(np.full(n, 3), np.arange(n), np.zeros(n)),
        )
        counts = np.zeros(5)
        counts[drawn.token] = np.diff(drawn.start)
        assert (counts[kept:] == 0).all()
        want = p[:kept] / p[:kept].sum() * n
        if kept > 1:
            assert ((counts[:kept] - want) ** 2 / want).sum() < chi_square_limit(kept - 1)


def test_numbers_at_the_edges_never_draw_an_impossible_token() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]])
    u = np.array([0.0, 1 - 2.0**-53, 0.5])
    drawn = draw(logits, np.ones(1), np.ones(1), np.zeros(3, np.int64), u)
    assert set(drawn.token.tolist()) <= {1, 3}


def test_counted_answers_have_the_distribution_of_plain_ones(tmp_path: Path) -> None:
    """Chi-square of one counted request against as many requests with seeds of their own, over
    whole answers."""
    policy = HFPolicy(
        tiny_checkpoint(tmp_path, words=("a", "b", "c"), scale=0.15, seed=3), max_batch=64
    )
    n = 3000
    messages = (Message("user", "a b"),)

    async def main() -> tuple[Counter[tuple[int, ...]], Counter[tuple[int, ...]]]:
        counted = await policy.complete(Request(messages, n=n, max_tokens=3, seed=11))
        plain = await asyncio.gather(
            *(policy.complete(Request(messages, max_tokens=3, seed=1000 + i)) for i in range(n))
        )
        await policy.close()
        return Counter({c.tokens or (): c.count for c in counted}), Counter(
            p[0].tokens or () for p in plain
        )

    one, other = asyncio.run(main())
    assert sum(one.values()) == sum(other.values()) == n
    cells = [(one[t], other[t]) for t in {*one, *other}]
    common = [c for c in cells if sum(c) >= 20]
    rare = (sum(a for a, b in cells if a + b < 20), sum(b for a, b in cells if a + b < 20))
    table = np.array([*common, rare], float) if sum(rare) else np.array(common, float)
    assert len(table) > 20
    assert ((table[:, 0] - table[:, 1]) ** 2 / table.sum(1)).sum() < chi_square_limit(
        len(table) - 1
    )
