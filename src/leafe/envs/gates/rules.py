"""The words of the embedded environment and its rules: what habit says, and what is true.

A gate has an adjective, and one of twelve tools opens it. `HABIT` is what the embedded model was
brought up with. `TARGET` is what
holds in the settings easy and hard: it differs for the five adjectives of `SHIFTED`. The pairs of
`HELD_OUT` (the shifted rules and one more pair
for every other adjective) stand in no note, no reflection and no feedback of the model's
pretraining.

`FAMILIES` are two environments of one build that share no word but the tools and the ways: policies
that learn in the one are tested in the other.
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
"""T. The longest task (six forks with two stretches of path each) takes 19 steps."""

HABIT = dict(zip(ADJECTIVES, TOOLS, strict=True))
"""Adjective -> tool, in the model's pretraining."""

SHIFTED = ("mossy", "wooden", "painted", "dusty", "hollow")
"""The adjectives whose rule is another than habit's."""

TARGET = HABIT | {
    adjective: HABIT[SHIFTED[(i + 2) % len(SHIFTED)]] for i, adjective in enumerate(SHIFTED)
}
"""Adjective -> tool, in the settings easy and hard."""

RULES = {"target": TARGET, "habit": HABIT}
"""What the option `rules` of the environment can be: by name, adjective -> tool."""

HELD_OUT = frozenset(
    (a, TARGET[a] if a in SHIFTED else TOOLS[(i + 5) % len(TOOLS)])
    for i, a in enumerate(ADJECTIVES)
)
"""(adjective, tool) pairs that pretraining never states: following a note is measured on them."""


@dataclass(frozen=True, slots=True)
class Words:
    """What the tasks of an environment are made of."""

    adjectives: tuple[str, ...]
    places: tuple[str, ...]
    objects: tuple[str, ...]


_FIRST = ("rusty", "mossy", "golden", "painted", "silver", "hollow")

FAMILIES = {
    "all": Words(ADJECTIVES, PLACES, OBJECTS),
    "first": Words(_FIRST, PLACES[:6], OBJECTS[:5]),
    "second": Words(tuple(a for a in ADJECTIVES if a not in _FIRST), PLACES[6:], OBJECTS[5:]),
}
"""What the option `words` of the environment can be. `first` and `second` part the words; the rules
stay those of `RULES`.

A policy that was trained on `first` has seen no adjective, place or object of `second` since its
pretraining, so that what it does better or worse there it
owes to no rule that it learnt. Three rules of six are shifted in `first`, where policies are
trained, and two of six in `second`, so that the base solves some
tasks of `second` and coverage can be lost as well as won.

The tools are shared: any of them can be taken at any gate, which is what makes a gate a choice. But
no tool that opens a gate of the one family
opens one of the other, since a rule set gives each tool to one adjective. And no family has a
derangement of its own: the pairs of `TARGET` are the ones that
pretraining was kept from. So one shifted rule of each family names a tool that habit gives to the
other (`hollow` needs `wooden`'s hammer, `dusty` needs
`mossy`'s rope), and all others stay within the family, which is the least that a circle of five
allows.
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
"""Every word that the environment, its prompts or its policy uses: the vocabulary of the embedded
model."""
