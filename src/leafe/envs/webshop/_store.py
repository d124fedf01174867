"""The shop's data on disk: products, attributes, goals and search index, built once and mapped.

A build streams the files, and keeps hardly more than the number of each product in memory. It is
made in a folder of its own under a file lock and renamed when it is complete: a kill leaves nothing
that looks complete, and workers that start together build once. The folder's name follows from the
files' paths, sizes and times, and from the format, so that other files or another version of leafe
never use an old build.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import random
import shutil
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from leafe.core import UserError, derive_seed
from leafe.envs.webshop._catalogue import catalogue
from leafe.envs.webshop._index import Index, IndexBuilder, map_bytes, search_text
from leafe.envs.webshop._read import Json, Product, product_of, read_items, read_pairs
from leafe.envs.webshop._reward import NO_CAP, Goal

log = logging.getLogger(__name__)

FORMAT = 1
"""To be changed when old builds cannot be used: new layout, words of the index, or catalogue."""
LOG_EVERY = 100_000
"""A build logs its progress after this many products."""
MAX_RESULTS = 50
"""The most results of a search, as published."""
SHUFFLE_SEED = 233
"""The published seed for the order of goals."""


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a store: files, or the embedded catalogue of `size` products drawn by
    `seed`."""

    products: Path | None = None
    instructions: Path | None = None
    human: Path | None = None
    limit: int | None = None
    """Use only the first products of the file."""
    size: int = 0
    seed: int = 0

    def key(self) -> str:
        """Twenty hex digits that change with everything that the build depends on."""
        files = [
            None if path is None else _file_identity(path)
            for path in (self.products, self.instructions, self.human)
        ]
        return blake2b(
            json.dumps([FORMAT, files, self.limit, self.size, self.seed]).encode(), digest_size=10
        ).hexdigest()

    def items(self) -> Iterator[tuple[Json, str]]:
        if self.products is not None:
            return read_items(self.products)
        return (
            (item, f"product {n} of the catalogue")
            for n, (item, _) in enumerate(catalogue(self.size, self.seed))
        )

    def goals(self) -> Iterable[tuple[str, Json]]:
        if self.products is None:
            return (
                (item["asin"], instruction) for item, instruction in catalogue(self.size, self.seed)
            )
        return read_pairs(self.instructions) if self.instructions else ()


def _file_identity(path: Path) -> list[Any]:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(
            f"The WebShop file {path} cannot be read ({error.strerror}): check the path."
        ) from error
    if path.is_dir():
        raise UserError(f"{path} is a folder and not a WebShop file: name the file.")
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


class Store:
    """The memory-mapped data of one source. Reading is thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about: dict[str, Any] = json.loads((folder / "about.json").read_text())
        products, self._product_ends = _load(folder, "products")
        self._extras, self._extra_spans = _load(folder, "extras")
        self._human, self._human_spans = _load(folder, "human")
        self._asins = np.load(folder / "asins.npy", mmap_mode="r")
        self._asin_rows = np.load(folder / "asin_rows.npy", mmap_mode="r")
        self._combinations = np.load(folder / "combinations.npy", mmap_mode="r")
        self.order = {
            kind: np.load(folder / f"order-{kind}.npy", mmap_mode="r")
            for kind in ("synthetic", "human")
        }
        """The numbers of the goals, in the published order."""
        self.index = Index(folder / "index")
        # these functions do not hold this object, so that it is freed with the last environment
        # that uses it
        self.product = lru_cache(maxsize=4096)(partial(_product, products, self._product_ends))
        self.search = lru_cache(maxsize=1024)(partial(_search, self.index))

    def __len__(self) -> int:
        return len(self._product_ends) - 1

    def row_of(self, asin: str) -> int | None:
        """The row of a product, or None."""
        return find_row(self._asins, self._asin_rows, asin)

    def extra(self, row: int) -> dict[str, Any]:
        """The attributes and the synthetic instruction of a product."""
        start, end = self._extra_spans[row]
        return json.loads(self._extras[start:end]) if end > start else {}

    def attributes(self, row: int) -> tuple[str, ...]:
        return tuple(self.extra(row).get("attributes", ("DUMMY_ATTR",)))

    def price(self, row: int) -> float:
        """Dollars. From a range the price is drawn, always the same."""
        product = self.product(row)
        if len(product.pricing) == 1:
            return product.pricing[0]
        return random.Random(derive_seed("webshop", "price", product.asin)).uniform(
            *product.pricing
        )

    def goal(self, kind: str, number: int) -> tuple[str, str, Goal]:
        """(name, instruction, goal) of a goal, by its number before the shuffle."""
        if kind == "human":
            start, end, row, nth = (int(n) for n in self._human_spans[number])
            written = json.loads(self._human[start:end])
            name, text, attributes = (
                f"human-{nth}",
                written["instruction"].strip("."),
                written["instruction_attributes"],
            )
            options: dict[str, str] | tuple[str, ...] = written["instruction_options"]
            options = options if isinstance(options, dict) else tuple(options)
        else:
            row = int(np.searchsorted(self._combinations, number, "right")) - 1
            nth = number - int(self._combinations[row])
            extra = self.extra(row)
            name, attributes = f"{nth}", extra["instruction_attributes"]
            options = self._combination(self.product(row).options, nth)
            text = extra["instruction"] + (
                " with " + ", and ".join(f"{k}: {v}" for k, v in options.items()) if options else ""
            )
        product = self.product(row)
        cap = self._cap(row, name if kind == "human" else "")
        text += f", and price lower than {cap:.2f} dollars" if cap < NO_CAP else ""
        goal = Goal(
            product.asin,
            product.title,
            product.query,
            product.product_category,
            tuple(attributes),
            options,
            cap,
        )
        return f"{product.asin}-{name}", text, goal

    def _combination(self, options: dict[str, tuple[str, ...]], nth: int) -> dict[str, str]:
        """The nth combination of option values; the last name's values change fastest."""
        chosen = {}
        for name in sorted(options, reverse=True):
            nth, at = divmod(nth, len(options[name]))
            chosen[name] = options[name][at]
        return dict(sorted(chosen.items()))

    def _cap(self, row: int, which: str) -> float:
        """The price cap: the greater of two drawn from the next four multiples of ten dollars above
        the price, always the same; none from 980 dollars on."""
        above = [10.0 * n for n in range(1, 100) if 10.0 * n > self.price(row)][:4]
        if len(above) < 2:
            return NO_CAP
        return max(
            random.Random(derive_seed("webshop", "cap", self.product(row).asin, which)).sample(
                above, 2
            )
        )


def find_row(asins: NDArray[np.bytes_], rows: NDArray[np.int32], asin: str) -> int | None:
    """The row of a product number, from the sorted numbers and their rows."""
    wanted = asin.encode("utf-8", "replace")
    at = int(np.searchsorted(asins, np.array(wanted, asins.dtype)))
    return int(rows[at]) if at < len(asins) and asins[at] == wanted else None


def _product(products: Any, ends: NDArray[np.int64], row: int) -> Product:
    return Product.from_bytes(products[ends[row] : ends[row + 1]])


def _search(index: Index, query: str) -> tuple[int, ...]:
    return tuple(index.search(query, MAX_RESULTS))


_stores: WeakValueDictionary[str, Store] = WeakValueDictionary()
_stores_lock = threading.Lock()


def open_store(source: Source, cache: Path) -> Store:
    """The store of a source, shared within this process; built first if the cache has no complete
    one."""
    folder = cache / f"webshop-{source.key()}"
    with _stores_lock:
        store = _stores.get(str(folder))
        if store is None:
            store = _stores[str(folder)] = _open_or_build(source, folder)
    return store


def _open_or_build(source: Source, folder: Path) -> Store:
    if _is_complete(folder):
        return Store(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(folder.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_complete(folder):  # no other process built it meanwhile
                shutil.rmtree(folder, ignore_errors=True)
                partial_build = folder.with_name(folder.name + ".making")
                shutil.rmtree(partial_build, ignore_errors=True)
                try:
                    _build(source, partial_build)
                except BaseException:
                    shutil.rmtree(partial_build, ignore_errors=True)
                    raise
                partial_build.rename(folder)
    except OSError as error:
        free = shutil.disk_usage(next(p for p in folder.parents if p.exists())).free >> 20
        raise UserError(
            f"The WebShop index cannot be written to {folder.parent} ({error}; {free} MiB "
            "free): set the option cache or LEAFE_CACHE to another folder."
        ) from error
    return Store(folder)


def _is_complete(folder: Path) -> bool:
    """Whether there is a complete build of this format, with all files of the recorded size."""
    try:
        about = json.loads((folder / "about.json").read_text())
        return bool(
            about["format"] == FORMAT
            and all((folder / name).stat().st_size == size for name, size in about["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _load(folder: Path, name: str) -> tuple[Any, NDArray[np.int64]]:
    return map_bytes(folder / f"{name}.bin"), np.load(folder / f"{name}.npy", mmap_mode="r")


def _build(source: Source, folder: Path) -> None:
    folder.mkdir(parents=True)
    digest = blake2b(digest_size=8)
    asins, extras, counts, skipped = _build_products(source, folder, digest)
    order = np.argsort(asins, kind="stable").astype(np.int32)
    sorted_asins = asins[order]
    np.save(folder / "asins.npy", sorted_asins)
    np.save(folder / "asin_rows.npy", order)
    row_of = partial(find_row, sorted_asins, order)
    unknown = _build_extras(source, folder, row_of, extras, counts, digest)
    human, unknown_human = _build_human(source.human, folder, row_of, digest)
    np.save(folder / "combinations.npy", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    goals = {"synthetic": int(counts.sum()), "human": human}
    for kind, count in goals.items():
        numbers = array("I", range(count))
        random.Random(SHUFFLE_SEED).shuffle(numbers)
        np.save(folder / f"order-{kind}.npy", np.array(numbers, copy=False))
    about = {
        "format": FORMAT,
        "source": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(source).items()
        },
        "digest": digest.hexdigest(),
        "products": len(asins),
        "skipped_products": skipped,
        "goals": goals,
        "unknown_instructions": unknown,
        "unknown_human_instructions": unknown_human,
        "files": {
            str(path.relative_to(folder)): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }
    (folder / "about.json").write_text(json.dumps(about, indent=1))


def _build_products(
    source: Source, folder: Path, digest: Any
) -> tuple[NDArray[np.bytes_], dict[int, list[str]], NDArray[np.int64], int]:
    """Write products and index.

    Returns:
        The product numbers, the attributes that the file itself has (documents), how many option
        combinations each product has, and how many products were skipped (no number, or one that
        came before).
    """
    index = IndexBuilder(folder / "index")
    asins, ends, counts = dict[str, None](), array("q", [0]), array("q")
    attributes: dict[int, list[str]] = {}
    skipped = 0
    with (folder / "products.bin").open("wb") as file:
        for nth, (item, where) in enumerate(source.items()):
            if source.limit is not None and nth >= source.limit:
                break
            found = product_of(item, where)
            if found is None or found[0].asin in asins:
                skipped += 1
                continue
            product, own = found
            if own is not None:
                attributes[len(asins)] = own
            asins[product.asin] = None
            if len(asins) % LOG_EVERY == 0:
                log.warning(
                    "WebShop: %d products of %s read; the index is built once and kept.",
                    len(asins),
                    source.products or "the catalogue",
                )
            raw = product.to_bytes()
            digest.update(raw)
            file.write(raw)
            ends.append(ends[-1] + len(raw))
            counts.append(prod(len(values) for values in product.options.values()))
            index.add(
                search_text(product.title, product.description, product.bullets, product.options)
            )
    if not asins:
        raise UserError(
            f"{source.products} holds no product: give a WebShop product file "
            "(items_shuffle_1000.json, items_shuffle.json or documents.jsonl)."
        )
    np.save(folder / "products.npy", np.array(ends, np.int64))
    index.finish()
    return (
        np.array([asin.encode() for asin in asins]),
        attributes,
        np.array(counts, np.int64),
        skipped,
    )


def _build_extras(
    source: Source,
    folder: Path,
    row_of: Callable[[str], int | None],
    attributes: dict[int, list[str]],
    counts: NDArray[np.int64],
    digest: Any,
) -> int:
    """Write attributes and synthetic instructions; a product without an instruction gets a count of
    0. Returns how many instructions name no product."""
    spans = np.zeros((len(counts), 2), np.int64)
    with_goal = np.zeros(len(counts), bool)
    at = unknown = 0
    with (folder / "extras.bin").open("wb") as file:

        def write(row: int, extra: dict[str, Any]) -> None:
            nonlocal at
            raw = json.dumps(extra, ensure_ascii=False).encode("utf-8", "replace")
            digest.update(raw)
            file.write(raw)
            spans[row] = at, at + len(raw)
            at += len(raw)

        for row, own in attributes.items():
            write(row, {"attributes": own})
        for asin, entry in source.goals():
            found = row_of(asin)
            if (
                not isinstance(entry, dict)
                or not _texts(entry.get("attributes", []))
                or not _texts(entry.get("instruction_attributes") or [])
            ):
                raise UserError(
                    f"{source.instructions}: the entry {asin!r} is no WebShop instruction: "
                    "give items_ins_v2_1000.json or items_ins_v2.json."
                )
            if found is None:
                unknown += 1
                continue
            extra = (
                {"attributes": entry["attributes"]}
                if "attributes" in entry
                else {"attributes": attributes[found]}
                if found in attributes
                else {}
            )
            if entry.get("instruction") and entry.get("instruction_attributes"):
                extra |= {
                    "instruction": str(entry["instruction"]),
                    "instruction_attributes": entry["instruction_attributes"],
                }
                with_goal[found] = True
            write(found, extra)
    counts[~with_goal] = 0
    np.save(folder / "extras.npy", spans)
    return unknown


def _build_human(
    path: Path | None, folder: Path, row_of: Callable[[str], int | None], digest: Any
) -> tuple[int, int]:
    """Write the instructions by people, in the order of the products. Returns their number, and how
    many name no product."""
    spans: list[tuple[int, int, int, int]] = []
    at = unknown = 0
    with (folder / "human.bin").open("wb") as file:
        for asin, entries in read_pairs(path) if path else ():
            for nth, entry in enumerate(entries if isinstance(entries, list) else [entries]):
                columns = ("instruction", "instruction_attributes", "instruction_options")
                text, attributes, options = (
                    entry.get(column) if isinstance(entry, dict) else None for column in columns
                )
                if (
                    not isinstance(text, str)
                    or not _texts(attributes)
                    or not (_texts(options) or isinstance(options, dict))
                ):
                    raise UserError(
                        f"{path}: an entry of {asin!r} is no WebShop instruction written "
                        "by a person: give items_human_ins.json."
                    )
                row = row_of(asin)
                if row is None:
                    unknown += 1
                elif attributes:
                    kept = {column: entry[column] for column in columns}
                    raw = json.dumps(kept, ensure_ascii=False).encode("utf-8", "replace")
                    digest.update(raw)
                    file.write(raw)
                    spans.append((at, at + len(raw), row, nth))
                    at += len(raw)
    spans.sort(key=lambda span: span[2:])
    np.save(folder / "human.npy", np.array(spans, np.int64).reshape(-1, 4))
    return len(spans), unknown


def _texts(raw: Any) -> bool:
    return isinstance(raw, list) and all(isinstance(text, str) for text in raw)


def default_cache() -> Path:
    """The folder for builds, unless the option `cache` names one."""
    return Path(os.environ.get("LEAFE_CACHE") or Path.home() / ".cache" / "leafe")
