"""The words of the embedded environment and its rules.

A gate has an adjective, and one of twelve tools opens it. `HABIT` is what the embedded model was
pretrained on. `TARGET` holds in the settings easy and hard; it differs for the five adjectives of
`SHIFTED`. The pairs of `HELD_OUT` (the shifted rules, and one more pair for every other adjective)
appear in no note, reflection or feedback of the pretraining.

`FAMILIES` are two environments of one build that share no words but the tools and the ways:
policies that learn in one are tested in the other.
"""

from __future__ import annotations

from dataclasses import dataclass

ADJECTIVES = (
    "rusty",
    "mossy",
    "icy",
    "golden",
    "wooden",
    "cracked",
    "painted",
    "silver",
    "dusty",
    "crooked",
    "hollow",
    "narrow",
)
TOOLS = (
    "lamp",
    "rope",
    "key",
    "axe",
    "hammer",
    "chalk",
    "mirror",
    "feather",
    "needle",
    "bell",
    "candle",
    "spade",
)
PLACES = (
    "attic",
    "cellar",
    "garden",
    "library",
    "kitchen",
    "tower",
    "chapel",
    "stable",
    "harbor",
    "market",
    "bridge",
    "orchard",
)
WAYS = ("left", "right", "up", "down")
OBJECTS = (
    "crown",
    "pearl",
    "scroll",
    "amulet",
    "ring",
    "goblet",
    "orb",
    "mask",
    "flute",
    "compass",
)

HORIZON = 20
"""T. The longest task (six forks with two steps of path each) takes 19 steps."""

HABIT = dict(zip(ADJECTIVES, TOOLS, strict=True))
"""Adjective -> tool, in the model's pretraining."""

SHIFTED = ("mossy", "wooden", "painted", "dusty", "hollow")
"""The adjectives whose rule differs from habit."""

TARGET = HABIT | {
    adjective: HABIT[SHIFTED[(i + 2) % len(SHIFTED)]] for i, adjective in enumerate(SHIFTED)
}
"""Adjective -> tool, in the settings easy and hard."""

RULES = {"target": TARGET, "habit": HABIT}
"""The values of the option `rules`: adjective -> tool."""

HELD_OUT = frozenset(
    (a, TARGET[a] if a in SHIFTED else TOOLS[(i + 5) % len(TOOLS)])
    for i, a in enumerate(ADJECTIVES)
)
"""(adjective, tool) pairs that pretraining never states: following notes is measured on them."""


@dataclass(frozen=True, slots=True)
class Words:
    """The words of an environment's tasks."""

    adjectives: tuple[str, ...]
    places: tuple[str, ...]
    objects: tuple[str, ...]


_FIRST = ("rusty", "mossy", "golden", "painted", "silver", "hollow")

FAMILIES = {
    "all": Words(ADJECTIVES, PLACES, OBJECTS),
    "first": Words(_FIRST, PLACES[:6], OBJECTS[:5]),
    "second": Words(tuple(a for a in ADJECTIVES if a not in _FIRST), PLACES[6:], OBJECTS[5:]),
}
"""The values of the option `words`. The rules stay those of `RULES`.

A policy that was trained on `first` has seen no adjective, place or object of `second` since its
pretraining, so no change there is due to a rule that it learned. Three of six rules are shifted in
`first`, where policies are trained, and two of six in `second`, so the base solves some tasks of
`second`, and coverage can be lost as well as gained.

The tools are shared: each of them can be taken at any gate, which makes a gate a choice. But no
tool that opens a gate of one family opens one of the other, since a rule set gives each tool to one
adjective. No family has a derangement of its own, since pretraining was kept from the pairs of
`TARGET`. So one shifted rule of each family names a tool that habit gives to the other (`hollow`
needs `wooden`'s hammer, `dusty` needs `mossy`'s rope), and all others stay within the family, which
is the least that a cycle of five allows.
"""

_OTHERS = (
    "get take use go walk on gate fork path hold here have breaks needs dead end "
    "; no first you way say or shut unknown action over note reflect earlier"
)

WORDS = (
    *(f"s{step}" for step in range(HORIZON + 1)),
    *ADJECTIVES,
    *TOOLS,
    *PLACES,
    *WAYS,
    *OBJECTS,
    *_OTHERS.split(),
)
"""Every word of the environment, its prompts and its policy: the embedded model's vocabulary."""
