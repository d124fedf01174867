"""WebShop's published rules a second time, on the published files as plain JSON: what the
environment's goals and rewards are held against.

Written from the rules (Yao et al. 2022; princeton-nlp/WebShop, goal.py and engine.py) in another
way than the environment: everything in memory, similarity by a
table of common subsequences, goals listed one by one. The nouns of a title are handed in: which
tagger finds them is another question.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PALETTE = (
    "alabaster,apricot,aqua,ash,asphalt,azure,banana,beige,black,blue,blush,bordeaux,bronze,brown,burgundy,camel,camo,caramel,champagne,charcoal,cheetah,"
    "chestnut,chocolate,christmas,coffee,cognac,copper,coral,cranberry,cream,crystal,dark,denim,eggplant,elephant,espresso,fuchsia,gold,granite,grape,"
    "graphite,grass,gray,green,grey,heather,indigo,ivory,ivy,khaki,lavender,lemon,leopard,light,lilac,lime,magenta,maroon,mauve,merlot,midnight,mint,mocha,"
    "multicolor,mushroom,mustard,natural,navy,nude,olive,orange,peach,pewter,pink,plum,purple,rainbow,red,rose,royal,rust,sand,sapphire,seashell,silver,skull,"
    "slate,steel,stone,stonewash,sunflower,tan,taupe,teal,tiger,turquoise,violet,walnut,wheat,white,wine,yellow"
)


def likeness(one: str, other: str) -> float:
    """The token set ratio, 0 to 100: the best of the shared words, and the shared words with the
    rest of either, against one another."""

    def words(text: str) -> set[str]:
        return set(re.sub(r"[\W_]", " ", re.sub(r"[\x80-\xff]", "", text)).lower().split())

    a, b = words(one), words(other)
    if not a or not b:
        return 0.0
    shared, only_a, only_b = (" ".join(sorted(part)) for part in (a & b, a - b, b - a))
    if shared and not (only_a and only_b):
        return 100.0
    with_a, with_b = (f"{shared} {rest}".strip() for rest in (only_a, only_b))
    return max(
        _ratio(with_a, with_b),
        *((_ratio(shared, with_a), _ratio(shared, with_b)) if shared else (0.0,)),
    )


def _ratio(one: str, other: str) -> float:
    row = [0] * (len(other) + 1)
    for x in one:
        above, row = row, [0]
        for at, y in enumerate(other):
            row.append(above[at] + 1 if x == y else max(above[at + 1], row[at]))
    return 200.0 * row[-1] / (len(one) + len(other))


def alike(one: str, other: str) -> bool:
    return round(likeness(one, other)) > 85


def colored(text: str) -> str:
    for color in PALETTE.split(","):
        if text.find(color) >= 0:
            return color
    return text


def parts(
    product: Mapping[str, Any],
    attributes: Sequence[str],
    price: float,
    chosen: Sequence[str],
    goal: Mapping[str, Any],
    nouns: Callable[[str], Sequence[str]],
) -> tuple[int, int, bool, float]:
    """(attributes met, options met, price met, type). `product` in the columns of the product
    file."""
    bullets = product["small_description"]
    everything = [
        product["name"],
        " ".join(bullets if isinstance(bullets, list) else [bullets]),
        product["full_description"],
    ]
    met = 0
    for wanted in goal["attributes"]:
        met += int(
            any(alike(wanted, own) for own in attributes)
            or any(wanted in text.lower() for text in everything)
        )
    options = 0
    if isinstance(goal["options"], dict):
        for name, value in goal["options"].items():
            bare = [color for color in PALETTE.split(",") if color in (name, value)]
            options += int(
                any(alike(colored(own), bare[0] if bare else f"{name} {value}") for own in chosen)
            )
    else:
        for value in goal["options"]:
            options += int(any(alike(colored(own), colored(value)) for own in chosen))
    return met, options, price <= goal["price_upper"], _type(product, goal, nouns)


def _type(
    product: Mapping[str, Any], goal: Mapping[str, Any], nouns: Callable[[str], Sequence[str]]
) -> float:
    asked = list(nouns(goal["title"]))
    title = len(set(asked).intersection(nouns(product["name"]))) / len(asked) if asked else 0.2
    trails = [
        {step.strip() for step in trail.split("›")}
        for trail in (product["product_category"], goal["product_category"])
    ]
    score = 1.0
    if (
        product["query"].lower().strip() != goal["query"]
        and len(trails[0].intersection(trails[1])) < 2
        and not title > 0.2
    ):
        score = 0.5
    if title < 0.1:
        score = 0.1
    return score if title else 0.0


def reward(met: tuple[int, int, bool, float], goal: Mapping[str, Any]) -> float:
    attributes, options, price, kind = met
    return (
        kind * (attributes + options + price) / (len(goal["attributes"]) + len(goal["options"]) + 1)
    )


def published_order(
    options: Sequence[tuple[str, Mapping[str, Sequence[str]]]],
) -> list[tuple[str, dict[str, str]]]:
    """(asin, options) of each synthetic goal in the published order; given the options of each
    product that has an instruction, in the file's order."""
    goals = []
    for asin, choices in options:
        names = sorted(choices)
        goals += [
            (asin, dict(zip(names, values, strict=True)))
            for values in itertools.product(*(choices[name] for name in names))
        ]
    random.Random(233).shuffle(goals)
    return goals
