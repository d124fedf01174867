"""The WebShop environment: a shopping session on the published pages.

A page is text with ` [SEP] ` between its parts, like the published simple text mode. An action is
`search[words]` or `click[button]`, where the page names the buttons. A session (page, query,
product, options) is one small value, and that value is the snapshot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import numpy as np

from leafe.core import Environment, StepResult, Task, UserError, derive_seed
from leafe.envs._data import data_path
from leafe.envs._options import check_split, whole_number
from leafe.envs.webshop._read import Product
from leafe.envs.webshop._reward import Goal, Worth, worth
from leafe.envs.webshop._store import Source, Store, default_cache, open_store

PAGE = 10
"""Products on a page of results."""
SEP = " [SEP] "
SUB_PAGES = ("description", "features", "reviews", "attributes")
MAX_BUTTONS = 60
"""The most buttons that the answer to an invalid click lists."""
MAX_ACTION = 2_000
"""Characters of an action; a longer one is refused."""
_ACTION = re.compile(r"(search|click)\s*\[(.+)\]", re.IGNORECASE)
_PRODUCT_FILES = (
    "items_shuffle.json",
    "items_shuffle_1000.json",
    "items_shuffle.json.gz",
    "items_shuffle_1000.json.gz",
)


@dataclass(frozen=True, slots=True)
class _Session:
    """The state of the session. `page` counts the result pages from 1, `row` is the product, `sub`
    one of SUB_PAGES or ""."""

    at: str = "search"
    """search | results | item | sub | done"""
    query: str = ""
    page: int = 1
    row: int = -1
    options: tuple[tuple[str, str], ...] = ()
    sub: str = ""
    best: float = 0.0
    """The greatest reward that buying could have had so far: the progress."""


class WebShop(Environment):
    """WebShop: find, customise and buy the product that an instruction asks for, in a text shop of
    up to 1.18 million products.

    The splits follow the published shuffle (seed 233): test is the first 500 goals, valid the next
    1000, train the rest. With fewer than 5000 goals, test and valid are at most a fifth each.

    Args:
        products: A file in a published form (items_shuffle*.json or documents*.jsonl), or a folder
            that holds one.
        instructions: items_ins_v2*.json; by default the one beside `products`.
        human: items_human_ins.json; by default the one beside `products`.
        catalogue: 'files' (without `products`: the folder `webshop` of the data folder) or
            'synthetic' (embedded). By default 'files' if `products` is given, else 'synthetic'.
        goals: 'synthetic' (made from products and their options) or 'human'.
        size: How many products the synthetic catalogue has.
        seed: Decides the synthetic catalogue.
        limit: Use only the first products of the file.
        show_attributes: Show the published button Attributes.
        details: Say on the last page which parts of the reward were missed. The published text page
            does not.
        horizon: Steps.
        cache: The folder of the index. By default LEAFE_CACHE, else ~/.cache/leafe.
    """

    name = "webshop"
    deterministic = True
    can_snapshot = True
    horizon = 15
    actions_help = (
        "Actions: search[words] looks for products; click[button] clicks a button, product "
        "number or option that the page names, for example click[next >], "
        "click[b01abcdefg], click[buy now]. Choose the options that the instruction asks "
        "for before you buy. Buying ends the task."
    )
    splits: tuple[str, ...] = ("train", "valid", "test")
    needs: ClassVar[str] = (
        "nothing but pip install 'leafe[webshop]' for the synthetic catalogue; else "
        "WebShop's files in LEAFE_DATA/webshop or at products"
    )

    def __init__(
        self,
        products: str | None = None,
        instructions: str | None = None,
        human: str | None = None,
        catalogue: str | None = None,
        goals: str = "synthetic",
        size: int = 1000,
        seed: int = 0,
        limit: int | None = None,
        show_attributes: bool = False,
        details: bool = False,
        horizon: int = 15,
        cache: str | None = None,
    ) -> None:
        catalogue = catalogue or ("files" if products else "synthetic")
        for option, value, allowed in (
            ("catalogue", catalogue, ("synthetic", "files")),
            ("goals", goals, ("synthetic", "human")),
        ):
            if value not in allowed:
                raise UserError(
                    f"The environment 'webshop' has no {option} {value!r}: give "
                    f"{' or '.join(allowed)}."
                )
        for option, number in (("size", size), ("horizon", horizon), ("limit", limit)):
            if number is not None or option != "limit":
                whole_number(self.name, option, number)
        if catalogue == "synthetic" and (products or instructions or human or goals == "human"):
            raise UserError(
                "The environment 'webshop' with catalogue 'synthetic' takes no files and "
                "no goals by people: leave catalogue out, and give products."
            )
        self.goals, self.horizon = goals, horizon
        self.show_attributes, self.details = show_attributes, details
        if catalogue == "synthetic":
            source = Source(size=size, seed=seed, limit=limit)
        else:
            source = _files(
                Path(products) if products else data_path("webshop", "WebShop", "products"),
                instructions,
                human,
                goals,
                limit,
            )
        self.store: Store = open_store(source, Path(cache) if cache else default_cache())
        self._task: Task | None = None
        self._goal: Goal | None = None
        self._session = _Session()

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The split's goals, in an order drawn by `seed`."""
        check_split(self.name, split, self.splits)
        order = self.store.order[self.goals]
        if not len(order):
            about = self.store.about
            unknown = about[
                "unknown_human_instructions" if self.goals == "human" else "unknown_instructions"
            ]
            raise UserError(
                f"No {self.goals} goal can be made for the {about['products']} products of "
                f"{about['source']['products']} ({unknown} instructions name products "
                "that are not among them): give the instruction file of these products by "
                f"the option {'human' if self.goals == 'human' else 'instructions'}."
            )
        test, valid = min(500, len(order) // 5), min(1000, len(order) // 5)
        part = order[
            {
                "test": slice(0, test),
                "valid": slice(test, test + valid),
                "train": slice(test + valid, None),
            }[split]
        ]
        drawn = np.random.RandomState(derive_seed(seed, "webshop", split) % 2**32).permutation(
            len(part)
        )[:count]
        return [self._make_task(int(part[at]), split) for at in drawn]

    def _make_task(self, number: int, split: str) -> Task:
        name, text, goal = self.store.goal(self.goals, number)
        options = dict(goal.options) if isinstance(goal.options, Mapping) else list(goal.options)
        payload = asdict(replace(goal, options={})) | {
            "attributes": list(goal.attributes),
            "options": options,
        }
        return Task(
            id=f"webshop-{name}", env=self.name, split=split, instruction=text, payload=payload
        )

    def reset(self, task: Task, seed: int) -> str:
        self._task, self._goal, self._session = task, Goal.from_json(task.payload), _Session()
        return self._page()

    def step(self, action: str) -> StepResult:
        if self._task is None:
            raise RuntimeError("step before reset")
        if self._session.at == "done":
            return StepResult(
                "The purchase is made: the task is over.",
                done=True,
                valid=False,
                progress=self._session.best,
            )
        match = _ACTION.match(action.strip()) if len(action) <= MAX_ACTION else None
        verb, what = (match[1].lower(), " ".join(match[2].lower().split())) if match else ("", "")
        if verb == "search" and what and not set("[]") & set(what):
            return self._go_to(_Session("results", what, best=self._session.best))
        if verb == "click":
            after = self._click(what)
            if after is not None:
                return self._buy() if after.at == "done" else self._go_to(after)
        return self._refuse(action, verb, what)

    def valid_actions(self) -> Sequence[str]:
        if self._task is None or self._session.at == "done":
            return ()
        if self._session.at == "search":
            goal = self._goal
            assert goal is not None
            return [
                f"search[{text}]"
                for text in (goal.query, goal.title.lower()[:200], self._task.instruction.lower())
                if text.strip()
            ]
        return [f"click[{button}]" for button in self._buttons()]

    def snapshot(self) -> object:
        return (self._task, self._session)

    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, tuple)
        self._task, self._session = snapshot
        self._goal = Goal.from_json(self._task.payload) if self._task is not None else None

    def versions(self) -> Mapping[str, str]:
        about = self.store.about
        return {
            "bm25s": version("bm25s"),
            "rapidfuzz": version("rapidfuzz"),
            "PyStemmer": version("PyStemmer"),
            "webshop-data": (
                f"{about['products']} products, {about['goals'][self.goals]} {self.goals} "
                f"goals, {about['digest']}"
            ),
        }

    # What a click does

    def _click(self, button: str) -> _Session | None:
        """The session after a click; None if the page has no such button."""
        now = self._session
        if button not in self._buttons():
            return None
        if button == "back to search":
            return _Session(best=now.best)
        if button == "buy now":
            return replace(now, at="done")
        if button in ("next >", "< prev"):
            if now.at == "results":
                return replace(now, page=now.page + (1 if button == "next >" else -1))
            return (
                _Session("results", now.query, now.page, best=now.best)
                if now.at == "item"
                else replace(now, at="item", sub="")
            )
        if now.at == "results":
            row = next(
                row for row in self._results() if self.store.product(row).asin.lower() == button
            )
            return replace(now, at="item", row=row)
        if button in SUB_PAGES:
            return replace(now, at="sub", sub=button)
        named = {
            value: name
            for name, values in self.store.product(now.row).options.items()
            for value in values
        }
        return replace(
            now,
            options=tuple(
                sorted(
                    (
                        dict(now.options) | {named[self._spelling(button)]: self._spelling(button)}
                    ).items()
                )
            ),
        )

    def _spelling(self, button: str) -> str:
        """The product's spelling of an option value."""
        values = (
            value
            for values in self.store.product(self._session.row).options.values()
            for value in values
        )
        return next(value for value in values if " ".join(value.split()) == button)

    def _buttons(self) -> list[str]:
        """The buttons of this page, as they are written in an action."""
        now = self._session
        if now.at == "results":
            return [
                "back to search",
                *(["< prev"] if now.page > 1 else []),
                "next >",
                *(self.store.product(row).asin.lower() for row in self._results()),
            ]
        if now.at == "sub":
            return ["back to search", "< prev"]
        if now.at == "item":
            values = [
                " ".join(value.split())
                for values in self.store.product(now.row).options.values()
                for value in values
            ]
            return list(
                dict.fromkeys(
                    [
                        "back to search",
                        "< prev",
                        *SUB_PAGES[: 4 if self.show_attributes else 3],
                        "buy now",
                        *filter(None, values),
                    ]
                )
            )
        return []

    def _results(self) -> tuple[int, ...]:
        return self.store.search(self._session.query)[
            (self._session.page - 1) * PAGE : self._session.page * PAGE
        ]

    # Observations

    def _go_to(self, after: _Session) -> StepResult:
        self._session = after
        if after.row >= 0:
            self._session = replace(after, best=max(after.best, self._worth().reward))
        return StepResult(self._page(), progress=self._session.best)

    def _worth(self) -> Worth:
        now, goal = self._session, self._goal
        assert goal is not None
        return worth(
            self.store.product(now.row),
            self.store.attributes(now.row),
            self.store.price(now.row),
            dict(now.options),
            goal,
        )

    def _buy(self) -> StepResult:
        value, goal = self._worth(), self._goal
        assert goal is not None
        reward = value.reward
        self._session = replace(self._session, at="done", best=max(self._session.best, reward))
        parts = [
            "Thank you for shopping with us!",
            "Purchased",
            self.store.product(self._session.row).asin,
        ]
        parts += [
            "options",
            ", ".join(f"{name}: {chosen}" for name, chosen in self._session.options) or "none",
        ]
        parts += ["Your score (min 0.0, max 1.0)", str(round(reward, 4))]
        if self.details:
            parts += ["Reward details", _details(value, goal)]
        info = {"asin": self.store.product(self._session.row).asin, "worth": asdict(value)}
        return StepResult(
            _joined(parts),
            reward=reward,
            done=True,
            success=reward == 1,
            progress=self._session.best,
            info=info,
        )

    def _refuse(self, action: str, verb: str, what: str) -> StepResult:
        shown = action.strip()[:80] + ("..." if len(action.strip()) > 80 else "")
        if verb == "search":
            why = "The search is empty or has brackets in it: write search[words]."
        elif verb == "click":
            why = f"There is no button {shown.partition('[')[2].rstrip(']')!r} on this page."
        else:
            why = f"There is no action {shown!r}: write search[words] or click[button]."
        buttons = self._buttons()
        more = f" and {len(buttons) - MAX_BUTTONS} more" if len(buttons) > MAX_BUTTONS else ""
        there = (
            f"You can click: {', '.join(buttons[:MAX_BUTTONS])}{more}."
            if buttons
            else "This page has a search bar: write search[words]."
        )
        return StepResult(f"{why} {there}", valid=False, progress=self._session.best)

    def _page(self) -> str:
        return _joined(self._parts())

    def _parts(self) -> Iterator[str]:
        """The parts of the current page, in the published order."""
        now, task = self._session, self._task
        assert task is not None
        if now.at == "search":
            yield from ("WebShop", "Instruction:", task.instruction, "Search")
            return
        yield from ("Instruction:", task.instruction, "Back to Search")
        if now.at == "results":
            yield f"Page {now.page} (Total results: {len(self.store.search(now.query))})"
            if now.page > 1:
                yield "< Prev"
            yield "Next >"
            for row in self._results():
                product = self.store.product(row)
                yield from (product.asin, product.title, product.price_tag)
            return
        yield "< Prev"
        product = self.store.product(now.row)
        if now.at == "item":
            for name, values in product.options.items():
                yield from (name, *values)
            yield from (
                product.title,
                f"Price: {product.price_tag}",
                f"Rating: {product.rating}",
                "Description",
                "Features",
                "Reviews",
            )
            if self.show_attributes:
                yield "Attributes"
            yield "Buy Now"
        else:
            yield from _sub_page(now.sub, product, self.store.attributes(now.row))


def _joined(parts: Iterable[str]) -> str:
    """The text of a page: white space is normalised, and empty parts are dropped."""
    return SEP.join(part for part in (" ".join(part.split()) for part in parts) if part)


def _sub_page(sub: str, product: Product, attributes: Sequence[str]) -> Iterator[str]:
    if sub == "description":
        yield product.description.strip() or "No Description"
    elif sub == "features":
        yield from (
            product.bullets if any(line.strip() for line in product.bullets) else ("No Features",)
        )
    elif sub == "reviews":
        for review in product.reviews:
            yield from (f'"{review["title"]}"', review["score"], review["body"])
        if not product.reviews:
            yield "No reviews found"
    else:
        yield from (*attributes, product.category, product.query, product.product_category)


def _details(value: Worth, goal: Goal) -> str:
    options = (
        [f"{name}: {chosen}" for name, chosen in goal.options.items()]
        if isinstance(goal.options, Mapping)
        else goal.options
    )
    wanted = zip((*goal.attributes, *options), (*value.attributes, *value.options), strict=True)
    missed = [text for text, met in wanted if not met]
    missed += [] if value.price else ["price"]
    kind = {1.0: "the right type of product", 0.5: "hardly the right type of product"}.get(
        value.type, "the wrong type of product"
    )
    return f"{kind}; missed: {', '.join(missed) or 'nothing'}"


def _files(
    path: Path, instructions: str | None, human: str | None, goals: str, limit: int | None
) -> Source:
    """The published files at a path, and those beside it."""
    if path.is_dir():
        found = [path / name for name in _PRODUCT_FILES if (path / name).is_file()] or sorted(
            p for p in path.glob("documents*.jsonl*") if p.is_file()
        )
        if not found:
            raise UserError(
                f"The folder {path} holds no WebShop product file "
                f"({', '.join(_PRODUCT_FILES[:2])} or documents*.jsonl): give the option "
                "products."
            )
        path = found[0]
    if not path.is_file():
        raise UserError(f"There is no WebShop product file at {path}: correct the option products.")

    def beside(option: str, given: str | None, names: Sequence[str], needed: bool) -> Path | None:
        if given is not None:
            if not Path(given).is_file():
                raise UserError(
                    f"There is no WebShop instruction file at {given}: correct the option {option}."
                )
            return Path(given)
        there = next((path.parent / name for name in names if (path.parent / name).is_file()), None)
        if there is None and needed:
            raise UserError(
                f"There is no {' or '.join(names)} beside {path}: give the option {option}."
            )
        return there

    names = ["items_ins_v2.json", "items_ins_v2_1000.json"]
    small = path.name != "items_shuffle.json"
    return Source(
        products=path,
        instructions=beside(
            "instructions", instructions, names[::-1] if small else names, goals == "synthetic"
        ),
        human=beside("human", human, ["items_human_ins.json"], True) if goals == "human" else None,
        limit=limit,
    )
