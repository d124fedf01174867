"""An earlier attempt in words: what was done and what came of it, within its bound, the oldest
observations left out first."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import Kind, Stop, Turn
from leafe.explore import ExploreConfig, make_strategy
from leafe.prompts import PromptSet, attempt_text, load_prompt_set, prompt_sets
from leafe.prompts._attempts import cut_middle
from tests.trees import Ep, make_tree

WORDS = PromptSet(name="bare")
CARRYING = [name for name in prompt_sets() if load_prompt_set(name).attempt]


def acts(steps: list[tuple[str, str]]) -> list[Turn]:
    return [
        Turn(f"t/0.{i}", None, "t", i, Kind.act, a, action=a, observation=o)
        for i, (a, o) in enumerate(steps)
    ]


def test_only_the_embedded_model_sees_less_than_the_attempt() -> None:
    assert set(prompt_sets()) - set(CARRYING) == {"gates"}
    turns = acts([("take lamp", "lamp taken"), ("use lamp", "gate breaks ; iron needs key")])
    assert attempt_text(load_prompt_set("gates"), turns) == "gate breaks ; iron needs key"


@pytest.mark.parametrize("name", CARRYING)
def test_every_step_stands_there_in_order(name: str) -> None:
    text = attempt_text(
        load_prompt_set(name), acts([("one", "first"), ("two", "second"), ("three", "third")])
    )
    places = [text.index(word) for word in ("one", "first", "two", "second", "three", "third")]
    assert places == sorted(places)


@given(
    st.lists(st.tuples(st.text(max_size=60), st.text(max_size=90)), min_size=1, max_size=9),
    st.integers(120, 700),
)
def test_it_is_never_longer_than_its_bound_and_the_last_step_stands(
    steps: list[tuple[str, str]], most: int
) -> None:
    words = WORDS.model_copy(update={"attempt_chars": most, "left_out": "(-)"})
    text = attempt_text(words, acts(steps))
    assert len(text) <= most
    assert f"Step {len(steps) - 1}: " in text
    if sum(map(len, steps[-1])) < 60:
        assert text.endswith(f"Step {len(steps) - 1}: {steps[-1][0]}\n{steps[-1][1]}\n")


@given(st.integers(2, 12), st.integers(1, 40), st.integers(80, 900))
def test_what_is_left_out_is_the_oldest_and_observations_before_steps(
    count: int, length: int, most: int
) -> None:
    steps = [(f"<do {i}>", f"<saw {i} {'x' * length}>") for i in range(count)]
    text = attempt_text(WORDS.model_copy(update={"attempt_chars": most}), acts(steps))
    done, seen = ([int(n) for n in re.findall(rf"<{what} (\d+)", text)] for what in ("do", "saw"))
    assert done == list(range(count - len(done), count))
    assert seen == list(range(count - len(seen), count))
    if len(done) < count:
        assert len(seen) <= 1, (
            "a step is left out only where no older observation is left to leave out"
        )


@given(st.text(max_size=300), st.integers(0, 300))
def test_a_cut_says_how_much_is_missing(text: str, most: int) -> None:
    cut = cut_middle(text, most)
    assert len(cut) <= most
    said = re.fullmatch(r"(.*)\n\[\.\.\. (\d+) characters cut \.\.\.\]\n(.*)", cut, re.DOTALL)
    if len(text) <= most:
        assert cut == text
    elif said is not None and "characters cut" not in text:
        assert text.startswith(said[1])
        assert text.endswith(said[3])
        assert len(said[1]) + len(said[3]) + int(said[2]) == len(text)
    else:
        assert text.startswith(cut) or "characters cut" in text


def test_refinement_carries_the_latest_attempts_whole_and_each_once() -> None:
    failed = {"stop": Stop.failure}
    tree = make_tree(
        Ep("a", "b", **failed),
        Ep("c", **failed),
        Ep("d", **failed),
        Ep("c", **failed),
        Ep("e", stop=Stop.budget),
    )  # type: ignore[arg-type]
    carried = make_strategy(ExploreConfig(strategy="refine", max_attempts_in_prompt=2), WORDS).next(
        tree
    )
    assert carried is not None
    assert carried.preamble == ("Step 0: d\nseen d\n", "Step 0: c\nseen c\n")


@pytest.mark.parametrize("name", ["mbpp", "humaneval", "codecontests"])
def test_reflexion_on_programs_carries_the_last_program_with_its_reflection(name: str) -> None:
    tree = make_tree(
        Ep("one()", stop=Stop.failure, blame=0, note="add"),
        Ep("two()", stop=Stop.failure, blame=0, note="subtract"),
    )
    config = ExploreConfig(strategy="reflexion")
    plan = make_strategy(config, load_prompt_set(name)).next(tree)
    assert plan is not None
    first, last = plan.preamble
    assert first == "add"
    assert last.startswith("subtract\n")
    assert "two()" in last
    assert "seen two()" in last
    assert "one()" not in last
    bare = make_strategy(config, WORDS).next(tree)
    assert bare is not None
    assert bare.preamble == ("add", "subtract")
