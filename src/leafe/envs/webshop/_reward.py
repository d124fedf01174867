"""The published reward: the share of the goal that a purchase meets, times the match of its type.

reward = type * (attributes met + options met + price met) / (attributes + options + 1)

Source: princeton-nlp/WebShop, web_agent_site/engine/goal.py (the main branch's form, which
verl-agent uses too); Yao et al. 2022, section 3. It differs in one point: the nouns of titles are
found without spaCy, see `_nouns`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from leafe.envs.webshop._nouns import nouns_of
from leafe.envs.webshop._packages import package
from leafe.envs.webshop._read import Product

NO_CAP = 1_000_000.0
"""The price cap, in dollars, of a goal that names none."""
COLORS = """
    alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown
    burgundy camel camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee
    cognac copper coral cranberry cream crystal dark denim eggplant elephant espresso fuchsia
    gold granite grape graphite grass gray green grey heather indigo ivory ivy khaki lavender
    lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha multicolor
    mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow red
    rose royal rust sand sapphire seashell silver skull slate steel stone stonewash sunflower
    tan taupe teal tiger turquoise violet walnut wheat white wine yellow
""".split()  # noqa: SIM905 (a block of words reads better)
"""The published colour names, in the published order: the first one in a value stands for the
value."""
MIN_SIMILARITY = 85.5
"""The published rule is a rounded similarity above 85."""
_LATIN_1 = dict.fromkeys(range(128, 256))


@dataclass(frozen=True, slots=True)
class Goal:
    """The goal of a task."""

    asin: str
    """The product that the goal was made from; others can be as good."""
    title: str
    query: str
    product_category: str
    attributes: tuple[str, ...]
    options: Mapping[str, str] | tuple[str, ...]
    """By name if the goal is synthetic; only values if a person wrote it. The published rule treats
    them differently."""
    price_upper: float

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Goal:
        options = data["options"]
        return Goal(
            **{
                **data,
                "attributes": tuple(data["attributes"]),
                "options": options if isinstance(options, dict) else tuple(options),
            }
        )


@dataclass(frozen=True, slots=True)
class Worth:
    """How a purchase meets a goal, part by part."""

    attributes: tuple[bool, ...]
    """Whether each attribute of the goal is met."""
    options: tuple[bool, ...]
    price: bool
    type: float
    """1, 0.5, 0.1 or 0."""

    @property
    def reward(self) -> float:
        return (
            self.type
            * (sum(self.attributes) + sum(self.options) + self.price)
            / (len(self.attributes) + len(self.options) + 1)
        )


def worth(
    product: Product, attributes: Sequence[str], price: float, chosen: Mapping[str, str], goal: Goal
) -> Worth:
    """The worth of buying `product` with the options `chosen`. `attributes` are the product's own,
    `price` is in dollars."""
    return Worth(
        attributes=tuple(_has(product, attributes, wanted) for wanted in goal.attributes),
        options=_options_met(tuple(chosen.values()), goal.options),
        price=price <= goal.price_upper,
        type=type_match(product, goal),
    )


def type_match(product: Product, goal: Goal) -> float:
    """1 if search, category or title agree, else 0.5; less if the titles share hardly a noun."""
    wanted, have = nouns_of(goal.title), nouns_of(product.title)
    title = len(set(wanted) & set(have)) / len(wanted) if wanted else 0.2
    if title == 0:
        return 0.0
    if title < 0.1:
        return 0.1
    categories = [
        {part.strip() for part in text.split("›")}
        for text in (product.product_category, goal.product_category)
    ]
    alike = product.query == goal.query or len(categories[0] & categories[1]) >= 2 or title > 0.2
    return 1.0 if alike else 0.5


def _has(product: Product, attributes: Sequence[str], wanted: str) -> bool:
    if any(similar(own, wanted) for own in attributes):
        return True
    texts = (product.title, " ".join(product.bullets), product.description)
    return any(wanted in text.lower() for text in texts)


def _options_met(
    chosen: Sequence[str], wanted: Mapping[str, str] | tuple[str, ...]
) -> tuple[bool, ...]:
    have = [color_of(value) for value in chosen]
    if isinstance(wanted, Mapping):
        # the published code compares name and value together, unless the value is the bare name of
        # a colour
        texts = [
            next((c for c in COLORS if c in (name, value)), f"{name} {value}")
            for name, value in wanted.items()
        ]
    else:
        texts = [color_of(value) for value in wanted]
    return tuple(any(similar(own, text) for own in have) for text in texts)


def color_of(value: str) -> str:
    """The first colour name in a value; the value itself if there is none."""
    return next((color for color in COLORS if color in value), value)


@lru_cache(maxsize=1 << 16)
def similar(one: str, other: str) -> bool:
    """Whether the words of two texts nearly agree, in any order and repetition."""
    fuzz, utils = package("rapidfuzz.fuzz", "rapidfuzz"), package("rapidfuzz.utils", "rapidfuzz")
    ratio: float = fuzz.token_set_ratio(
        *(utils.default_process(text.translate(_LATIN_1)) for text in (one, other))
    )
    return ratio >= MIN_SIMILARITY
