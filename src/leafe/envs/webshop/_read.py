"""Reads the published product and instruction files as a stream: none is held in memory whole.

There are three forms, plain or gzip: an array of products (`items_shuffle*.json`), one search
engine document a line (`documents*.jsonl`, each with the product inside), and an object of
instructions by product number (`items_ins_v2*.json`, `items_human_ins.json`). An error names line
and column.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from leafe.core import UserError

CHUNK = 1 << 20
"""Characters read at a time."""
MAX_VALUE = 1 << 24
"""Characters of one product or instruction; a longer one is an error."""

Json = Any


@dataclass(frozen=True, slots=True)
class Product:
    """The parts of a product that pages and reward need."""

    asin: str
    """The product number: ten capital letters and digits."""
    title: str
    category: str
    query: str
    """The search with which the shop's authors found it, in lower case."""
    product_category: str
    """A path such as 'Beauty › Hair Care › Shampoo'."""
    description: str
    bullets: tuple[str, ...]
    pricing: tuple[float, ...]
    """Dollars: one price, or the lowest and the highest."""
    options: dict[str, tuple[str, ...]]
    """Option name -> its values, all in lower case."""
    rating: str
    reviews: tuple[dict[str, Any], ...]
    """Each with title, score and body."""

    @property
    def price_tag(self) -> str:
        return " to ".join(f"${price}" for price in self.pricing[:2])

    def to_bytes(self) -> bytes:
        return json.dumps(
            {name: getattr(self, name) for name in self.__slots__},
            ensure_ascii=False,
            separators=(",", ":"),
        ).encode("utf-8", "replace")

    @staticmethod
    def from_bytes(raw: bytes) -> Product:
        row = json.loads(raw)
        row |= {name: tuple(row[name]) for name in ("bullets", "pricing", "reviews")}
        return Product(
            **row | {"options": {name: tuple(values) for name, values in row["options"].items()}}
        )


class _Scanner:
    """Reads JSON values one after another from a text file of any size."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.path, self.file = path, file
        self.text, self.at = "", 0
        self.line, self.column = 1, 1
        """The position of `text` in the file."""
        self.decode = json.JSONDecoder().raw_decode

    def more(self) -> bool:
        """Read on and drop what was consumed; False at the end of the file."""
        try:
            chunk = self.file.read(CHUNK)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.path}, after line {self.line}: this is no UTF-8 text "
                f"({error.reason}): get the file again."
            ) from error
        except (OSError, EOFError) as error:  # EOFError: a truncated gzip file
            raise UserError(f"{self.path} cannot be read: {error}: get the file again.") from error
        self.line, self.column = self.place(self.at)
        self.text, self.at = self.text[self.at :] + chunk, 0
        return bool(chunk)

    def place(self, at: int) -> tuple[int, int]:
        """Line and column of a position in `text`."""
        newlines = self.text.count("\n", 0, at)
        return self.line + newlines, at - self.text.rfind(
            "\n", 0, at
        ) if newlines else self.column + at

    def error(self, why: str, at: int | None = None) -> UserError:
        line, column = self.place(self.at if at is None else at)
        return UserError(f"{self.path}, line {line}, column {column}: {why}: get the file again.")

    def peek(self) -> str:
        """The next character that is no white space; "" at the end of the file."""
        while True:
            rest = len(self.text)
            while self.at < rest and self.text[self.at] in " \t\r\n\ufeff":
                self.at += 1
            if self.at < rest:
                return self.text[self.at]
            if not self.more():
                return ""

    def expect(self, characters: str) -> str:
        found = self.peek()
        if not found or found not in characters:
            shown = " or ".join(repr(c) for c in characters)
            raise self.error(
                f"{shown} expected, not {found!r}"
                if found
                else f"the file ends where {shown} is expected (half-downloaded?)"
            )
        self.at += 1
        return found

    def value(self) -> Json:
        if not self.peek():
            raise self.error("the file ends where a value is expected (half-downloaded?)")
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except json.JSONDecodeError as error:
                ahead = error.pos - self.at
                if len(self.text) - self.at < MAX_VALUE and self.more():
                    continue
                why = f"this is no JSON ({error.msg})"
                if len(self.text) - self.at >= MAX_VALUE:
                    why = (
                        f"no product or instruction that begins here ends within {MAX_VALUE} "
                        f"characters ({error.msg})"
                    )
                elif self.at + ahead >= len(self.text.rstrip()) or error.msg.startswith(
                    "Unterminated"
                ):
                    why = "the file ends inside a value (half-downloaded?)"
                raise self.error(why, self.at + ahead) from error
            except RecursionError as error:
                raise self.error("this is no JSON (nested too deeply)") from error
            if end == len(self.text) and self.more():
                continue
            self.at = end
            return value


def _open(path: Path) -> IO[str]:
    try:
        return (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig")
        )
    except OSError as error:
        raise UserError(
            f"The WebShop file {path} cannot be read ({error.strerror or error}): check the path."
        ) from error


def read_items(path: Path) -> Iterator[tuple[Json, str]]:
    """Each item of an array, or of a file with one value a line, and its position."""
    with _open(path) as file:
        scan = _Scanner(path, file)
        array = scan.peek() == "["
        if array:
            scan.at += 1
            if scan.peek() == "]":
                return
        elif scan.peek() not in ("{", ""):
            raise scan.error(
                "a product file begins with '[' (products) or '{' (one document a line)"
            )
        while array or scan.peek():
            scan.peek()
            line, column = scan.place(scan.at)
            yield scan.value(), f"{path}, line {line}, column {column}"
            if array and scan.expect(",]") == "]":
                return


def read_pairs(path: Path) -> Iterator[tuple[str, Json]]:
    """Each (key, value) of an object."""
    with _open(path) as file:
        scan = _Scanner(path, file)
        if scan.peek() != "{":
            raise scan.error(
                "an instruction file begins with '{': an object of instructions by product number"
            )
        scan.at += 1
        if scan.peek() == "}":
            return
        while True:
            if scan.peek() != '"':
                scan.expect('"')
            key = scan.value()
            scan.expect(":")
            yield key, scan.value()
            if scan.expect(",}") == "}":
                return


def product_of(item: Json, where: str) -> tuple[Product, list[str] | None] | None:
    """A product from either form, and its attributes if the file has them (documents).

    None if it has no proper number, as published. UserError if a column is missing or of the wrong
    type.
    """
    row = item.get("product", item) if isinstance(item, dict) else None
    if not isinstance(row, dict):
        raise UserError(
            f"{where}: a product is an object, not {str(item)[:40]!r}: is this a WebShop "
            "product file?"
        )
    asin = row.get("asin")
    if not isinstance(asin, str) or asin == "nan" or not 1 <= len(asin) <= 10 or not asin.isascii():
        return None
    for column in ("name", "category", "query", "product_category"):
        if not isinstance(row.get(column), str):
            raise UserError(
                f"{where}: the product has no text {column!r}: is this a WebShop product file?"
            )
    try:
        reviews = [_review(review) for review in row.get("Reviews") or []]
        product = Product(
            asin=asin,
            title=row["name"],
            category=row["category"],
            query=row["query"].lower().strip(),
            product_category=row["product_category"],
            description=str(row.get("full_description") or ""),
            bullets=_bullets(row.get("small_description")),
            pricing=_pricing(row.get("pricing")),
            options=_documented_options(row["options"])
            if "options" in row
            else _options(row.get("customization_options")),
            rating=str(row.get("Rating") or "N.A."),
            reviews=tuple(reviews),
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{where}: the product {asin} has a column of a wrong kind ({error!r}): is "
            "this a WebShop product file?"
        ) from error
    attributes = row.get("Attributes")
    return product, [str(a) for a in attributes] if isinstance(attributes, list) else None


def _bullets(raw: Json) -> tuple[str, ...]:
    return (
        tuple(str(line) for line in raw if line is not None)
        if isinstance(raw, list)
        else (str(raw or ""),)
    )


def _pricing(raw: Json) -> tuple[float, ...]:
    """`'$1,299.00'`, `'$5.99 $8.50'` or numbers; 100 dollars if there is none."""
    if isinstance(raw, str):
        raw = [re.sub(r"[^\d.]", "", part) for part in raw.split("$")[1:]]
    return tuple(float(price) for price in (raw or [])[:2]) or (100.0,)


def _options(raw: Json) -> dict[str, tuple[str, ...]]:
    found = {}
    for name, values in (raw or {}).items():
        if values is not None:
            found[name.lower()] = tuple(
                value["value"].strip().replace("/", " | ").lower() for value in values
            )
    return found


def _documented_options(raw: Json) -> dict[str, tuple[str, ...]]:
    return {name.lower(): tuple(str(value) for value in values) for name, values in raw.items()}


def _review(raw: Json) -> dict[str, Any]:
    score, body = raw.get("score", raw.get("stars", "")), raw.get("body", raw.get("review", ""))
    return {"title": str(raw.get("title") or ""), "score": str(score), "body": str(body or "")}
