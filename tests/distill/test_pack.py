"""A packed row holds what its sequences hold, every token once, and says of each which tokens came
before it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from leafe.core import Tree
from leafe.distill import DistillConfig, Span, TokenSequence, build, encode
from leafe.distill._pack import Row, RowLimits, pack
from tests.distill.strategies import batches, parents
from tests.distill.toy import PROMPTS, chat
from tests.trees import trees

shapes = st.builds(
    RowLimits,
    tokens=st.sampled_from([1, 5, 20, math.inf]),
    width=st.sampled_from([2.0, 20.0, math.inf]),
    branching=st.booleans(),
)


def read(row: Row, node: int) -> tuple[int, ...]:
    """The tokens from the root to the node, by the nodes that it attends to."""
    seen = [j for j in range(node + 1) if node < row.ends[j]]
    assert [row.depths[j] for j in seen] == list(range(len(seen)))
    return tuple(row.ids[j] for j in seen)


def held(rows: Sequence[Row]) -> Counter[tuple[object, ...]]:
    """All that the loss is a function of: part, weight, target, what is read before it, what the
    teacher reads before it."""
    return Counter(
        (
            t.part,
            t.weight,
            t.token,
            read(row, t.at),
            None if t.teacher is None else read(row.teachers[t.teacher[0]], t.teacher[1]),
        )
        for row in rows
        for t in row.targets
    )


def wanted(batch: Sequence[TokenSequence]) -> Counter[tuple[object, ...]]:
    return Counter(
        (
            s.part,
            span.weight,
            s.ids[at],
            s.ids[:at],
            None if span.teacher is None else (*span.teacher, *s.ids[span.start : at]),
        )
        for s in batch
        for span in s.spans
        for at in range(span.start, span.end)
    )


def inputs(batch: Sequence[TokenSequence]) -> list[tuple[int, ...]]:
    return [s.ids[: s.spans[-1].end - 1] for s in batch]


@given(batches, shapes)
def test_every_target_stands_in_its_context_whatever_the_shape(
    batch: list[TokenSequence], shape: RowLimits
) -> None:
    rows = pack(batch, shape)
    assert held(rows) == wanted(batch)
    assert sum(r.given for r in rows) == sum(span.end - 1 for s in batch for span in s.spans)


@given(batches)
def test_without_limits_every_prefix_is_one_node(batch: list[TokenSequence]) -> None:
    (row,) = pack(batch, RowLimits())
    assert row.tokens == len({ids[: n + 1] for ids in inputs(batch) for n in range(len(ids))})
    for teacher in row.teachers:
        assert teacher.tokens == len({read(teacher, n) for n in range(teacher.tokens)})


@given(batches, shapes)
def test_rows_are_trees_in_depth_first_order(batch: list[TokenSequence], shape: RowLimits) -> None:
    for packed in pack(batch, shape):
        for row in (packed, *packed.teachers):
            children = Counter(parents(row))
            for node, parent in enumerate(parents(row)):
                assert parent < node < row.ends[node] <= row.tokens
                assert row.depths[node] == (0 if parent < 0 else row.depths[parent] + 1)
                assert parent < 0 or row.ends[node] <= row.ends[parent]
            assert row.branches == (max(children.values()) > 1)
            # no row holds a token that nothing is read from
            leaves = set(range(row.tokens)) - set(children)
            assert leaves <= (
                {t.at for t in row.targets}
                if row is packed
                else {t.teacher[1] for t in packed.targets if t.teacher}
            )


@given(batches, shapes, st.randoms(use_true_random=False))
def test_the_order_of_the_batch_is_of_no_account(
    batch: list[TokenSequence], shape: RowLimits, random: object
) -> None:
    shuffled = list(batch)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, two = pack(batch, shape), pack(shuffled, shape)
    assert [(r.ids, r.ends, r.depths) for r in one] == [(r.ids, r.ends, r.depths) for r in two]
    assert held(one) == held(two)


@given(batches, st.integers(1, 30))
def test_a_row_is_within_the_limit_or_a_single_path(batch: list[TokenSequence], limit: int) -> None:
    rows = pack(batch, RowLimits(limit))
    longest = max(len(ids) for ids in inputs(batch))
    assert all(r.tokens <= limit or not r.branches for r in rows)
    assert max(r.tokens for r in rows) <= max(limit, longest)


@given(batches, st.sampled_from([2.0, 8.0, 30.0]))
def test_under_a_dense_mask_sharing_never_costs_more_than_it_saves(
    batch: list[TokenSequence], width: float
) -> None:
    def cost(number: int) -> float:
        return number + number**2 / width

    assert (
        sum(cost(r.tokens) for r in pack(batch, RowLimits(width=width)))
        <= sum(cost(len(ids)) for ids in inputs(batch)) + 1e-9
    )


@given(batches)
def test_rows_for_causal_models_are_single_paths(batch: list[TokenSequence]) -> None:
    rows = pack(batch, RowLimits(branching=False))
    assert not any(r.branches for packed in rows for r in (packed, *packed.teachers))
    # as few as can be: one for each sequence that is no prefix of another
    distinct = set(inputs(batch))
    assert len(rows) == sum(
        not any(other != one and other[: len(one)] == one for other in distinct) for one in distinct
    )


@given(trees())
def test_a_tree_of_episodes_is_one_row_in_which_no_history_is_repeated(tree: Tree) -> None:
    config = DistillConfig(
        rehearsal="progress_prefix", counterfactuals="all", anchors=True, reflections=True
    )
    encoded = encode(build({"t0": tree}, PROMPTS, config, 0).samples, chat(), 512)
    batch = [s for mine in encoded.parts.values() for s in mine]
    rows = pack(batch, RowLimits())
    assert len(rows) == bool(batch)
    assert held(rows) == wanted(batch)
    assert (
        sum(r.tokens for r in rows)
        <= sum(len(ids) for ids in inputs(batch))
        <= sum(r.given for r in rows)
    )


def test_two_samples_of_one_history_share_it_and_keep_their_weights() -> None:
    batch = [
        TokenSequence("rehearsal", "t0", (1, 2, 3, 4), [Span(2, 4, 2.0)]),
        TokenSequence("counterfactual", "t0", (1, 2, 3, 4), [Span(2, 4, 0.5)]),
        TokenSequence("counterfactual", "t0", (1, 2, 5, 4), [Span(2, 4)]),
    ]
    (row,) = pack(batch, RowLimits())
    assert (row.ids, parents(row), row.depths, row.given) == (
        [1, 2, 3, 5],
        [-1, 0, 1, 1],
        [0, 1, 2, 2],
        9,
    )
    assert Counter(t[:4] for t in row.targets) == Counter(
        {
            (1, 3, "rehearsal", 2.0): 1,
            (1, 3, "counterfactual", 0.5): 1,
            (1, 5, "counterfactual", 1.0): 1,
            (2, 4, "rehearsal", 2.0): 1,
            (2, 4, "counterfactual", 0.5): 1,
            (3, 4, "counterfactual", 1.0): 1,
        }
    )
    assert pack([], RowLimits()) == []
