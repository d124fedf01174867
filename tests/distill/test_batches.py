"""What a step learns from: whichever way it is drawn and dealt, nothing is lost and nothing counts twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from leafe.distill import DistillConfig, Encoded, Span, TokenSequence
from leafe.distill._batches import Batches, Shuffler, deal


def sequence(part: Any, task: str, nth: int) -> TokenSequence:
    return TokenSequence(part, task, (1, 2, nth + 3), [Span(2, 3)])


def encoded(**tasks: dict[str, int]) -> Encoded:
    """So many sequences of each part for each task."""
    parts: dict[Any, list[TokenSequence]] = {p: [] for p in ("rehearsal", "counterfactual", "anchor", "reflection")}
    for part, numbers in tasks.items():
        parts[part] = [sequence(part, task, n) for task, number in numbers.items() for n in range(number)]
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
    assert [Shuffler(range(6), 4, seed=1).batch(step) for step in range(3)] == [[1, 0, 5, 4], [3, 2, 4, 5], [1, 0, 2, 3]]


@given(st.integers(1, 40), st.integers(1, 12), st.floats(0.1, 4), st.integers(0, 99))
def test_steps_make_the_passes_that_were_asked_for_and_not_one_more(number: int, size: int, epochs: float, seed: int) -> None:
    shuffler = Shuffler(range(number), size, seed)
    steps = shuffler.steps(epochs)
    assert shuffler.epochs(steps) >= epochs - 1e-9
    assert steps == 1 or shuffler.epochs(steps - 1) < epochs
    seen = Counter(x for step in range(steps) for x in shuffler.batch(step))
    assert max(seen.values()) - min(seen.get(i, 0) for i in range(number)) <= 1


@given(st.integers(0, 99), st.integers(1, 9))
def test_a_task_is_in_a_batch_with_all_its_sequences(seed: int, size: int) -> None:
    data = encoded(rehearsal={"a": 3, "b": 1, "c": 2}, counterfactual={"b": 2, "d": 4}, reflection={"a": 1, "e": 1})
    config = DistillConfig(batch_by="task", tasks_batch=size, seed=seed, reflection_weight=0.0)
    batches = Batches(data, config)
    assert batches.parts == ("rehearsal", "counterfactual")
    whole = Counter((s.part, s.task_id) for p in batches.parts for s in data.parts[p])
    steps = batches.steps(3)
    seen: Counter[Any] = Counter()
    for step in range(steps):
        batch = Counter((s.part, s.task_id) for s in batches.batch(step))
        times = {task: batch[part, task] / number for (part, task), number in whole.items()}
        # both ends of an epoch may be in one batch; a task is there once or twice, but always whole
        assert all(batch[part, task] == times[task] * number for (part, task), number in whole.items())
        assert sum(times.values()) == min(size, 4)
        seen += batch
    assert all(seen[key] in (3 * number, 4 * number) for key, number in whole.items())
    assert Batches(data, config).batch(steps) == batches.batch(steps)
    assert batches.epochs(steps).keys() == {"rehearsal", "counterfactual"}


def test_a_batch_by_sequence_has_the_parts_in_their_own_numbers() -> None:
    data = encoded(rehearsal={"a": 9, "b": 9}, counterfactual={"a": 3}, anchor={"a": 7})
    batches = Batches(data, DistillConfig(rehearsal_batch=4, counterfactual_batch=8, anchor_batch=2, anchor_weight=0.5))
    assert Counter(s.part for s in batches.batch(5)) == {"rehearsal": 4, "counterfactual": 3, "anchor": 2}
    assert batches.steps(2) == 9  # twice over the 18 of rehearsal by 4; the anchors' own passes do not count
    assert batches.epochs(9) == {"rehearsal": 2.0, "counterfactual": 9.0, "anchor": 18 / 7}


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 300)), min_size=1, max_size=60), st.one_of(st.none(), st.integers(1, 600)), st.integers(1, 5))
def test_rows_are_dealt_once_evenly_and_under_the_budget(rows: list[tuple[int, int]], budget: int | None, ranks: int) -> None:
    lengths, costs = [length for length, _ in rows], [length + more for length, more in rows]
    dealt = deal(costs, lengths, budget, ranks)
    assert sorted(row for passes in dealt for one in passes for row in one) == list(range(len(rows)))
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
