"""An embedded catalogue: products that do not exist, drawn from a seed, in the very columns of the
published files.

It makes the environment work without data: for tests, first steps and measurements of size. Each
kind of product has a search, a path of categories, nouns,
features that products of the kind may have, and options. A product's instruction is made as the
published synthetic ones are: some of its attributes and
its kind. Figures on this catalogue are no WebShop figures.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from leafe.core import derive_seed


@dataclass(frozen=True, slots=True)
class _Kind:
    category: str
    query: str
    path: str
    nouns: tuple[str, ...]
    features: tuple[str, ...]
    options: tuple[tuple[str, tuple[str, ...]], ...]
    prices: tuple[int, int]
    """Dollars, least and greatest."""


_COLORS = (
    "black",
    "white",
    "navy blue",
    "army green",
    "wine red",
    "light grey",
    "coffee",
    "rose gold",
)
_SIZES = ("x-small", "small", "medium", "large", "x-large", "xx-large")
_SCENTS = ("lavender", "tea tree", "coconut", "unscented", "citrus")
_FLAVORS = ("vanilla", "dark chocolate", "sea salt", "wild berry", "peanut butter", "lemon")
_PACKS = ("1 count (pack of 1)", "1 count (pack of 6)", "1 count (pack of 12)")

KINDS = (
    _Kind(
        "fashion",
        "women's dresses",
        "Clothing, Shoes & Jewelry › Women › Clothing › Dresses",
        ("Dress", "Sundress", "Maxi Dress", "Wrap Dress"),
        (
            "long sleeve",
            "short sleeve",
            "machine wash",
            "high waist",
            "polyester spandex",
            "hand wash",
            "button closure",
            "unique design",
        ),
        (("color", _COLORS), ("size", _SIZES)),
        (15, 70),
    ),
    _Kind(
        "fashion",
        "men's shirts",
        "Clothing, Shoes & Jewelry › Men › Clothing › Shirts",
        ("Shirt", "Polo Shirt", "Henley", "T-Shirt"),
        (
            "slim fit",
            "regular fit",
            "machine wash",
            "cotton spandex",
            "moisture wicking",
            "classic fit",
            "long sleeve",
            "tumble dry",
        ),
        (("color", _COLORS), ("size", _SIZES)),
        (10, 60),
    ),
    _Kind(
        "fashion",
        "running shoes",
        "Clothing, Shoes & Jewelry › Women › Shoes › Athletic",
        ("Running Shoes", "Sneakers", "Walking Shoes", "Trainers"),
        (
            "non slip",
            "rubber sole",
            "memory foam",
            "arch support",
            "light weight",
            "anti slip",
            "lace closure",
            "day comfort",
        ),
        (("color", _COLORS), ("size", ("6", "6.5", "7", "7.5", "8", "9", "10"))),
        (25, 140),
    ),
    _Kind(
        "beauty",
        "shampoos",
        "Beauty & Personal Care › Hair Care › Shampoo & Conditioner › Shampoos",
        ("Shampoo", "Scalp Shampoo", "Shampoo Bar"),
        (
            "sulfate free",
            "cruelty free",
            "dry hair",
            "damaged hair",
            "tea tree",
            "hair growth",
            "natural ingredients",
            "paraben free",
        ),
        (("scent", _SCENTS), ("size", ("8 fl oz", "12 fl oz", "33.8 fl oz"))),
        (6, 45),
    ),
    _Kind(
        "beauty",
        "face moisturizers",
        "Beauty & Personal Care › Skin Care › Face › Moisturizers",
        ("Face Cream", "Moisturizer", "Day Cream", "Face Lotion"),
        (
            "hyaluronic acid",
            "anti aging",
            "dry skin",
            "sensitive skin",
            "fragrance free",
            "oil free",
            "fine lines",
            "cruelty free",
        ),
        (("size", ("1 fl oz", "1.7 fl oz", "3.4 fl oz")),),
        (8, 90),
    ),
    _Kind(
        "beauty",
        "travel bottles",
        "Beauty & Personal Care › Tools & Accessories › Bags & Cases › Refillable Containers",
        ("Travel Bottles", "Containers", "Cream Jars"),
        (
            "leak proof",
            "bpa free",
            "easy carry",
            "travel size",
            "easy clean",
            "high quality",
            "eco friendly",
            "fine mist",
        ),
        (("color", _COLORS), ("size", _PACKS)),
        (5, 35),
    ),
    _Kind(
        "grocery",
        "snack bars",
        "Grocery & Gourmet Food › Snacks & Sweets › Snack Foods › Bars",
        ("Protein Bars", "Granola Bars", "Snack Bars"),
        (
            "gluten free",
            "high protein",
            "low sugar",
            "plant based",
            "non gmo",
            "dairy free",
            "soy free",
            "low carb",
        ),
        (("flavor", _FLAVORS), ("size", _PACKS)),
        (8, 50),
    ),
    _Kind(
        "grocery",
        "coffee beans",
        "Grocery & Gourmet Food › Beverages › Coffee, Tea & Cocoa › Coffee",
        ("Coffee Beans", "Ground Coffee", "Espresso Beans"),
        (
            "usda organic",
            "fair trade",
            "artificial flavors",
            "caffeine free",
            "keto friendly",
            "perfect gift",
            "sugar free",
            "kosher certified",
        ),
        (("flavor", _FLAVORS), ("size", ("12 ounce", "2 pound", "5 pound"))),
        (9, 65),
    ),
    _Kind(
        "garden",
        "console tables",
        "Home & Kitchen › Furniture › Living Room Furniture › Tables › Sofa & Console Tables",
        ("Console Table", "Sofa Table", "Entryway Table"),
        (
            "solid wood",
            "storage space",
            "easy assemble",
            "steel frame",
            "engineered wood",
            "living room",
            "space saving",
            "metal legs",
        ),
        (("color", ("walnut", "natural oak", "espresso", "white", "rustic brown")),),
        (70, 900),
    ),
    _Kind(
        "garden",
        "window curtains",
        "Home & Kitchen › Home Décor Products › Window Treatments › Curtains",
        ("Curtains", "Blackout Curtains", "Drapes", "Curtain Panels"),
        (
            "machine washable",
            "white item",
            "living room",
            "eco friendly",
            "stainless steel",
            "easy install",
            "dining room",
            "energy efficient",
        ),
        (("color", _COLORS), ("size", ('42" x 63"', '52" x 84"', '52" x 96"'))),
        (14, 80),
    ),
    _Kind(
        "electronics",
        "headphones",
        "Electronics › Headphones, Earbuds & Accessories › Headphones",
        ("Headphones", "Earbuds", "Headset"),
        (
            "noise cancelling",
            "hands free",
            "stereo sound",
            "fast charging",
            "long lasting",
            "high definition",
            "wireless bluetooth",
            "water resistant",
        ),
        (("color", _COLORS), ("style", ("in ear", "over ear", "on ear"))),
        (15, 320),
    ),
    _Kind(
        "electronics",
        "phone cases",
        "Cell Phones & Accessories › Cases, Holsters & Sleeves › Basic Cases",
        ("Phone Case", "Phone Cover", "Bumper Case"),
        (
            "wireless charging",
            "heavy duty",
            "tempered glass",
            "glass screen",
            "easy install",
            "non slip",
            "carbon fiber",
            "case cover",
        ),
        (("color", _COLORS), ("size", ("5.4 inch", "6.1 inch", "6.7 inch"))),
        (6, 40),
    ),
)

_HEADS = (
    "Al",
    "Be",
    "Cor",
    "Dal",
    "El",
    "Fen",
    "Gar",
    "Hol",
    "Ir",
    "Jor",
    "Kel",
    "Lum",
    "Mar",
    "Nor",
    "Or",
    "Pel",
    "Quin",
    "Ros",
    "Sol",
    "Tor",
    "Ver",
    "Zel",
)
_TAILS = (
    "vane",
    "dora",
    "mont",
    "lis",
    "bright",
    "wood",
    "haven",
    "via",
    "tek",
    "nova",
    "field",
    "crest",
    "well",
    "ora",
    "dale",
    "mere",
)
_GRADES = (
    "Premium",
    "Classic",
    "Everyday",
    "Original",
    "Deluxe",
    "Comfort",
    "Studio",
    "Essential",
    "Signature",
    "Select",
)
_PLACES = (
    "home",
    "office",
    "travel",
    "school",
    "camping",
    "gifts",
    "daily use",
    "weekends",
    "holidays",
    "the gym",
)
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def catalogue(size: int, seed: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """`size` products in the columns of items_shuffle.json, each with its entry of
    items_ins_v2.json."""
    for number in range(size):
        yield _draw(random.Random(derive_seed("webshop", "catalogue", seed, number)), number)


def _draw(chance: random.Random, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    kind = chance.choice(KINDS)
    brand, noun, grade = (
        chance.choice(_HEADS) + chance.choice(_TAILS),
        chance.choice(kind.nouns),
        chance.choice(_GRADES),
    )
    features = chance.sample(kind.features, chance.randint(2, 4))
    told, hidden = (
        features[: len(features) // 2],
        features[len(features) // 2 :],
    )  # what the title says, what only the other pages say
    model = f"{chance.choice(_DIGITS[10:])}{chance.randint(10, 9999)}"
    title = f"{brand} {grade} {noun} {model} with {' and '.join(part.title() for part in told)}"
    options: dict[str, list[dict[str, Any]]] = {}
    for name, values in kind.options:
        kept = chance.sample(values, chance.randint(2, len(values)))
        options[name.title()] = [
            {"value": value, "image": None} for value in sorted(kept, key=values.index)
        ]
    price = chance.randint(100 * kind.prices[0], 100 * kind.prices[1]) / 100
    ranged = chance.random() < 0.2
    places = chance.sample(_PLACES, 3)
    item = {
        "asin": _asin(number),
        "name": title,
        "category": kind.category,
        "query": kind.query,
        "product_category": kind.path,
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
    instruction = f"Find me {', '.join(wanted)} {kind.query}"
    return item, {
        "attributes": features,
        "instruction": instruction,
        "instruction_attributes": wanted,
    }


def _asin(number: int) -> str:
    """Ten letters and digits, another for every number below 36 ** 5: they look drawn."""
    shuffled, text = (
        (number * 48_271 + 12_345) % 36**5,
        "",
    )  # 48271 is prime to 36, so that no two numbers meet
    for _ in range(5):
        shuffled, digit = divmod(shuffled, 36)
        text = _DIGITS[digit] + text
    return f"B09LF{text}"
