"""The embedded catalogue: invented products, drawn from a seed, in the columns of the published
files.

It makes the environment work without data, for tests, first steps and measurements of size.
`catalogue.toml` says what products are made of: each kind has a search, a category path, nouns,
features and options. A product's instruction is made like the published synthetic ones: some of its
attributes, and its kind. Figures on this catalogue are no WebShop figures.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

from leafe.core import derive_seed

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads((resources.files(__package__) / "catalogue.toml").read_text("utf-8"))


def catalogue(size: int, seed: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """`size` products in the columns of items_shuffle.json, each with its entry of
    items_ins_v2.json."""
    for number in range(size):
        yield _draw(random.Random(derive_seed("webshop", "catalogue", seed, number)), number)


def _draw(chance: random.Random, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    data = _data()
    kind = chance.choice(data["kinds"])
    brand = chance.choice(data["brand_starts"]) + chance.choice(data["brand_ends"])
    noun, grade = chance.choice(kind["nouns"]), chance.choice(data["grades"])
    features = chance.sample(kind["features"], chance.randint(2, 4))
    # the title says the first half of the features, only the other pages the rest
    told, hidden = features[: len(features) // 2], features[len(features) // 2 :]
    model = f"{chance.choice(_DIGITS[10:])}{chance.randint(10, 9999)}"
    title = f"{brand} {grade} {noun} {model} with {' and '.join(part.title() for part in told)}"
    options: dict[str, list[dict[str, Any]]] = {}
    for name, values in kind["options"].items():
        if isinstance(values, str):
            values = data["shared"][values]
        kept = chance.sample(values, chance.randint(2, len(values)))
        options[name.title()] = [
            {"value": value, "image": None} for value in sorted(kept, key=values.index)
        ]
    price = chance.randint(100 * kind["prices"][0], 100 * kind["prices"][1]) / 100
    ranged = chance.random() < 0.2
    places = chance.sample(data["uses"], 3)
    item = {
        "asin": _asin(number),
        "name": title,
        "category": kind["category"],
        "query": kind["query"],
        "product_category": kind["path"],
        "full_description": f"The {noun.lower()} by {brand}, made for {places[0]} and {places[1]}. "
        f"It is {hidden[0]} and comes with our usual warranty. Model {model}.",
        "small_description": [
            f"{grade.upper()}: a {noun.lower()} for {places[2]}, {', '.join(told)}.",
            *(
                f"{feature.upper()}: you asked for {feature}, and this {noun.lower()} has it."
                for feature in hidden
            ),
            f"SERVICE: write to {brand} about {model} whenever there is a question.",
        ],
        "pricing": f"${price:,.2f}"
        + (f" ${price * chance.uniform(1.05, 1.5):,.2f}" if ranged else ""),
        "customization_options": options,
        "images": [],
    }
    wanted = chance.sample(features, chance.randint(1, min(3, len(features))))
    instruction = f"Find me {', '.join(wanted)} {kind['query']}"
    return item, {
        "attributes": features,
        "instruction": instruction,
        "instruction_attributes": wanted,
    }


def _asin(number: int) -> str:
    """A product number that looks drawn, different for each number below 36 ** 5."""
    # 48271 is coprime to 36, so no two numbers collide
    shuffled, text = (number * 48_271 + 12_345) % 36**5, ""
    for _ in range(5):
        shuffled, digit = divmod(shuffled, 36)
        text = _DIGITS[digit] + text
    return f"B09LF{text}"
