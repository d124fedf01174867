"""A WebShop of two products in the published files, and what both of its test modules need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leafe.core import Environment, Task
from leafe.envs.webshop import WebShop
from leafe.envs.webshop._read import Product, product_of

LAMP = {
    "asin": "B00LAMP001",
    "name": "Brenwick Desk Lamp with Touch Control",
    "category": "garden",
    "query": "Desk Lamps ",
    "product_category": "Home › Lighting › Lamps › Desk Lamps",
    "full_description": "A lamp for the desk,\n  made of stainless steel.",
    "small_description": ["LED: long lasting.", "Easy to clean"],
    "pricing": "$25.00 $1,031.50",
    "customization_options": {
        "Color": [{"value": "Black/White", "image": None}, {"value": " Navy  blue "}],
        "Size": [{"value": "small"}],
        "Style": None,
    },
    "images": ["x.jpg"],
}
SHIRT = LAMP | {
    "asin": "B00SHIRT02",
    "name": "Norhill Cotton Shirt",
    "category": "fashion",
    "query": "shirts",
    "product_category": "Clothing › Men › Shirts",
    "full_description": "",
    "small_description": "",
    "pricing": "",
    "customization_options": "",
}
INSTRUCTIONS: dict[str, Any] = {
    "B00LAMP001": {
        "attributes": ["long lasting", "touch control"],
        "instruction": "Find me long lasting lamps",
        "instruction_attributes": ["long lasting"],
    },
    "B00SHIRT02": {"attributes": []},
    "B00NOTHING": {
        "attributes": ["x"],
        "instruction": "Find me nothing",
        "instruction_attributes": ["x"],
    },
}
HUMAN = {
    "B00LAMP001": [
        {
            "instruction": "i want a black lamp that lasts.",
            "instruction_attributes": ["long lasting"],
            "instruction_options": ["black | white"],
        },
        {"instruction": "a lamp", "instruction_attributes": [], "instruction_options": []},
    ],
    "B00NOTHING": [
        {"instruction": "x", "instruction_attributes": ["x"], "instruction_options": []}
    ],
}


def shop_files(
    folder: Path,
    products: object = (LAMP, SHIRT),
    instructions: object = INSTRUCTIONS,
    human: object = HUMAN,
) -> Path:
    folder.mkdir(exist_ok=True)
    for name, value in (
        ("items_shuffle_1000", products),
        ("items_ins_v2_1000", instructions),
        ("items_human_ins", human),
    ):
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def read(item: Mapping[str, Any]) -> Product:
    found = product_of(item, "here")
    assert found is not None
    return found[0]


def goal_task(env: WebShop, options: Mapping[str, str]) -> Task:
    tasks = (t for split in env.splits for t in env.tasks(split))
    return next(
        t
        for t in tasks
        if {name: " ".join(value.split()) for name, value in t.payload["options"].items()}
        == options
    )


def solve(env: Environment, task: Task) -> list[str]:
    """Search for the goal's own title, open the product, choose the options, buy."""
    options = task.payload["options"]
    chosen = options.values() if isinstance(options, dict) else options
    return [
        f"search[{task.payload['title']}]",
        f"click[{task.payload['asin'].lower()}]",
        *(f"click[{value}]" for value in chosen),
        "click[buy now]",
    ]
