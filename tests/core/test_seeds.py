"""A seed is a function of its names: the same in every process, another for other names."""

from __future__ import annotations

import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from leafe.core import derive_seed

names = st.lists(
    st.text(st.characters(exclude_characters="\x1f", exclude_categories=["Cs"]), max_size=4)
    | st.integers(),
    max_size=4,
)


@given(names, names)
def test_other_names_give_another_seed(one: list[str | int], other: list[str | int]) -> None:
    assert (derive_seed(*one) == derive_seed(*other)) == (one == other)


@given(names)
def test_a_seed_fits_63_bits(given_names: list[str | int]) -> None:
    assert 0 <= derive_seed(*given_names) < 2**63


def test_the_same_in_every_process() -> None:
    code = (
        "from leafe.core import derive_seed; print(derive_seed(7, 'a/b', 'é', 3), "
        "derive_seed('7', 'a/b', 'é', 3))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "12345")
    }
    assert said == {"7215368941054026196 7281849258618541571\n"}, (
        "seeds changed: no earlier run can be resumed or repeated"
    )
