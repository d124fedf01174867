"""What a step learns from: whichever way it is drawn and dealt, nothing is lost and nothing counts
twice."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from leafe.distill import DistillConfig, Encoded, Span, TokenSequence
from leafe.distill._batches import Batches, Shuffler, distribute


def sequence(part: Any, task: str, nth: int) -> TokenSequence:
    return TokenSequence(part, task, (1, 2, nth + 3), [Span(2, 3)])


def encoded(**tasks: dict[str, int]) -> Encoded:
    """So many sequences of each part for each task."""
    parts: dict[Any, list[TokenSequence]] = {
        p: [] for p in ("rehearsal", "counterfactual", "anchor", "reflection")
    }
    for part, numbers in tasks.items():
        parts[part] = [
            sequence(part, task, n) for task, number in numbers.items() for n in range(number)
        ]
    return Encoded(parts)


def test_batches_go_through_the_items_epoch_by_epoch() -> None:
    items = list("abcdefg")
    shuffler = Shuffler(items, 3, seed=4)
    drawn = [x for step in range(14) for x in shuffler.batch(step)]
    epochs = ["".join(drawn[i : i + 7]) for i in range(0, 42, 7)]
    assert all(sorted(e) == items for e in epochs)
    assert len(set(epochs)) > 1
    fresh = Shuffler(items, 3, seed=4)
    assert [fresh.batch(step) for step in (9, 2)] == [shuffler.batch(step) for step in (9, 2)]
    assert Shuffler(items, 30, seed=4).size == 7


def test_the_order_of_a_seed_is_what_it_was() -> None:
    # a run that was made with an earlier version is made again by this one
    assert [Shuffler(range(6), 4, seed=1).batch(step) for step in range(3)] == [
        [1, 0, 5, 4],
        [3, 2, 4, 5],
        [1, 0, 2, 3],
    ]


@given(st.integers(1, 40), st.integers(1, 12), st.floats(0.1, 4), st.integers(0, 99))
def test_steps_make_the_passes_that_were_asked_for_and_not_one_more(
    number: int, size: int, epochs: float, seed: int
) -> None:
    shuffler = Shuffler(range(number), size, seed)
    steps = shuffler.steps(epochs)
    assert shuffler.epochs(steps) >= epochs - 1e-9
    assert steps == 1 or shuffler.epochs(steps - 1) < epochs
    seen = Counter(x for step in range(steps) for x in shuffler.batch(step))
    assert max(seen.values()) - min(seen.get(i, 0) for i in range(number)) <= 1


@given(st.integers(0, 99), st.integers(1, 9))
def test_a_task_is_in_a_batch_with_all_its_sequences(seed: int, size: int) -> None:
    data = encoded(
        rehearsal={"a": 3, "b": 1, "c": 2},
        counterfactual={"b": 2, "d": 4},
        reflection={"a": 1, "e": 1},
    )
    config = DistillConfig(batch_by="task", tasks_per_batch=size, seed=seed, reflection_weight=0.0)
    batches = Batches(data, config)
    assert batches.parts == ("rehearsal", "counterfactual")
    whole = Counter((s.part, s.task_id) for p in batches.parts for s in data.parts[p])
    steps = batches.steps(3)
    seen: Counter[Any] = Counter()
    for step in range(steps):
        batch = Counter((s.part, s.task_id) for s in batches.batch(step))
        times = {task: batch[part, task] / number for (part, task), number in whole.items()}
        # both ends of an epoch may be in one batch; a task is there once or twice, but always whole
        assert all(
            batch[part, task] == times[task] * number for (part, task), number in whole.items()
        )
        assert sum(times.values()) == min(size, 4)
        seen += batch
    assert all(seen[key] in (3 * number, 4 * number) for key, number in whole.items())
    assert Batches(data, config).batch(steps) == batches.batch(steps)
    assert batches.epochs(steps).keys() == {"rehearsal", "counterfactual"}


def test_steps_take_each_part_in_its_own_number() -> None:
    data = encoded(rehearsal={"a": 9, "b": 9}, counterfactual={"a": 3}, anchor={"a": 7})
    batches = Batches(
        data,
        DistillConfig(
            rehearsal_batch_size=4,
            counterfactual_batch_size=8,
            anchor_batch_size=2,
            anchor_weight=0.5,
            max_steps=9,
        ),
    )
    assert Counter(s.part for s in batches.batch(5)) == {
        "rehearsal": 4,
        "counterfactual": 3,
        "anchor": 2,
    }
    assert batches.epochs(9) == {"rehearsal": 2.0, "counterfactual": 9.0, "anchor": 18 / 7}


SIZES = st.integers(0, 200)


@given(
    st.tuples(SIZES, SIZES, SIZES),
    st.tuples(*[st.integers(1, 64)] * 3),
    st.sampled_from([0.5, 1.0, 2.0, 2.5, 3.0]),
    st.integers(0, 9),
)
def test_epochs_hold_for_each_part(
    numbers: tuple[int, ...], sizes: tuple[int, ...], epochs: float, seed: int
) -> None:
    if not any(numbers):
        return
    data = encoded(
        **{
            p: {"a": n}
            for p, n in zip(("rehearsal", "counterfactual", "reflection"), numbers, strict=True)
        }
    )
    config = DistillConfig(
        num_train_epochs=epochs,
        rehearsal_batch_size=sizes[0],
        counterfactual_batch_size=sizes[1],
        reflection_batch_size=sizes[2],
        seed=seed,
    )
    batches = Batches(data, config)
    wanted = {p: data.parts[p] for p in batches.parts}
    size = min(sum(map(len, wanted.values())), sum(config.batch_size(p) for p in wanted))
    steps = batches.steps(epochs)
    drawn = [batches.batch(step) for step in range(steps)]
    seen: Counter[Any] = Counter((s.part, s.ids) for batch in drawn for s in batch)
    for part, mine in wanted.items():
        times = [seen[part, s.ids] for s in mine]
        assert max(times) - min(times) <= 1
        assert sum(times) >= math.floor(epochs * len(mine))
        assert sum(times) <= (epochs + 1) * len(
            mine
        )  # fewer than one pass too many, whatever the sets' sizes
        assert abs(sum(times) / len(mine) - batches.epochs(steps)[part]) < 1e-9
    assert all(batch and abs(len(batch) - size) < len(wanted) for batch in drawn)
    for part in wanted:  # a part that is not in every batch keeps its whole weight in the objective
        held = sum(any(s.part == part for s in batch) for batch in drawn)
        assert abs(held * batches.scale(part) - steps) <= batches.scale(part)
    again = Batches(data, config)
    assert [again.batch(step) for step in reversed(range(steps))] == drawn[::-1]


@given(st.integers(1, 90), st.integers(1, 40), st.integers(0, 9))
def test_one_part_alone_has_the_same_batches_by_steps_and_by_epochs(
    number: int, size: int, seed: int
) -> None:
    data = encoded(rehearsal={"a": number})
    by_steps, by_epochs = (
        Batches(data, DistillConfig(rehearsal_batch_size=size, seed=seed, **how))
        for how in ({"max_steps": 7}, {"num_train_epochs": 2.0})
    )
    assert [by_steps.batch(n) for n in range(7)] == [by_epochs.batch(n) for n in range(7)]


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 300)), min_size=1, max_size=60),
    st.one_of(st.none(), st.integers(1, 600)),
    st.integers(1, 5),
)
def test_rows_are_dealt_once_evenly_and_under_the_budget(
    rows: list[tuple[int, int]], budget: int | None, ranks: int
) -> None:
    lengths, costs = [length for length, _ in rows], [length + more for length, more in rows]
    dealt = distribute(costs, lengths, budget, ranks)
    assert sorted(row for passes in dealt for one in passes for row in one) == list(
        range(len(rows))
    )
    assert len(dealt) == ranks
    assert len({len(passes) for passes in dealt}) == 1
    assert len(dealt[0]) >= 1
    for passes in dealt:
        for one in passes:
            if budget is not None and len(one) > 1:
                assert max(lengths[row] for row in one) * len(one) <= budget
    loads = [sum(costs[row] for one in passes for row in one) for passes in dealt]
    assert max(loads) - min(loads) <= max(costs)
    if budget is None:
        assert len(dealt[0]) == 1
