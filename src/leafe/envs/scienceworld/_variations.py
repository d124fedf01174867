"""The 30 tasks, their variations and splits, as plain numbers: choosing tasks needs no JVM.

The numbers are those of ScienceWorld 1.2 (`getTaskMaxVariations`), and the split rule is the
package's: the first half is train, the third quarter its development set, the rest test. A started
JVM is compared with the numbers, so that another version is noticed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from leafe.envs._options import shuffled

SPLITS = ("train", "valid", "test")
"""'valid' is the package's dev set."""

VARIATIONS: dict[str, int] = {
    "boil": 30,
    "change-the-state-of-matter-of": 30,
    "chemistry-mix": 32,
    "chemistry-mix-paint-secondary-color": 36,
    "chemistry-mix-paint-tertiary-color": 36,
    "find-animal": 300,
    "find-living-thing": 300,
    "find-non-living-thing": 300,
    "find-plant": 300,
    "freeze": 30,
    "grow-fruit": 126,
    "grow-plant": 126,
    "identify-life-stages-1": 14,
    "identify-life-stages-2": 10,
    "inclined-plane-determine-angle": 168,
    "inclined-plane-friction-named-surfaces": 1386,
    "inclined-plane-friction-unnamed-surfaces": 162,
    "lifespan-longest-lived": 125,
    "lifespan-longest-lived-then-shortest-lived": 125,
    "lifespan-shortest-lived": 125,
    "measure-melting-point-known-substance": 436,
    "measure-melting-point-unknown-substance": 300,
    "melt": 30,
    "mendelian-genetics-known-plant": 120,
    "mendelian-genetics-unknown-plant": 480,
    "power-component": 20,
    "power-component-renewable-vs-nonrenewable-energy": 20,
    "test-conductivity": 900,
    "test-conductivity-of-unknown-substances": 600,
    "use-thermometer": 540,
}
"""Task name -> number of variations, numbered from 0."""


def variations(task: str, split: str) -> range:
    """The variations of a task in a split; splits do not overlap."""
    quarter, total = VARIATIONS[task] // 4, VARIATIONS[task]
    return {
        "train": range(2 * quarter),
        "valid": range(2 * quarter, 3 * quarter),
        "test": range(3 * quarter, total),
    }[split]


def balanced(tasks: Sequence[str], split: str, seed: int) -> Iterator[tuple[str, int]]:
    """Every (task, variation) of the split once, in rounds that hold each task once while it has
    variations left. All orders are drawn by `seed`."""
    left = {
        task: list(shuffled(variations(task, split), seed, "scienceworld", split, task))
        for task in tasks
    }
    number = 0
    while left:
        order = shuffled(sorted(left), seed, "scienceworld", split, number)
        for task in order:
            yield task, left[task].pop()
            if not left[task]:
                del left[task]
        number += 1
