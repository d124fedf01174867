"""The search index: built in bounded memory, in the file format of bm25s, which does the scoring.

bm25s itself builds an index from lists of all words of all products. Here the words are written to
disk as they are read, and sorted into the index block by block; a test compares both ways number by
number. BM25 has Pyserini's parameters (k1 = 0.9, b = 0.4) and Lucene's rounded lengths. Equal
scores are ordered by product.
"""

from __future__ import annotations

import json
import mmap
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leafe.envs.webshop._packages import package
from leafe.envs.webshop._terms import make_stemmer, words_of

K1, B = 0.9, 0.4
BLOCK = 1 << 20
"""Entries (word, product) in memory at a time."""


class IndexBuilder:
    """Indexes texts one by one; `finish` writes the index to `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.stem = make_stemmer()
        self.ids: dict[str, int] = {}
        """Stem -> number, in order of appearance."""
        self.known: dict[str, int] = {}
        """Word -> number of its stem, so that each word is stemmed once."""
        self.terms, self.counts = array("i"), array("i")
        self.lengths, self.sizes = array("i"), array("i")
        """Of each text: the number of words, and of different words."""
        self.term_file = (folder / "terms.part").open("wb")
        self.count_file = (folder / "counts.part").open("wb")

    def add(self, text: str) -> None:
        numbers = [self.number(word) for word in words_of(text)]
        counted = Counter(numbers)
        self.terms.extend(counted.keys())
        self.counts.extend(counted.values())
        self.lengths.append(len(numbers))
        self.sizes.append(len(counted))
        if len(self.terms) >= BLOCK:
            self.flush()

    def number(self, word: str) -> int:
        found = self.known.get(word)
        if found is None:
            found = self.known[word] = self.ids.setdefault(self.stem(word), len(self.ids))
        return found

    def flush(self) -> None:
        self.terms.tofile(self.term_file)
        self.counts.tofile(self.count_file)
        self.terms, self.counts = array("i"), array("i")

    def finish(self) -> None:
        self.flush()
        self.term_file.close()
        self.count_file.close()
        self.known.clear()
        rank = self.write_vocabulary()
        lengths, sizes = np.array(self.lengths, np.int32), np.array(self.sizes, np.int64)
        total, products = int(sizes.sum()), len(lengths)
        terms = _mapped(self.folder / "terms.part", total)
        counts = _mapped(self.folder / "counts.part", total)
        frequency = np.zeros(len(rank), np.int64)
        for start in range(0, total, BLOCK):
            frequency += np.bincount(rank[terms[start : start + BLOCK]], minlength=len(rank))
        starts = np.concatenate([[0], np.cumsum(frequency)]).astype(np.int64)
        np.save(self.folder / "indptr.csc.index.npy", starts)
        data = np.lib.format.open_memmap(
            self.folder / "data.csc.index.npy", "w+", np.float32, (total,)
        )
        indices = np.lib.format.open_memmap(
            self.folder / "indices.csc.index.npy", "w+", np.int32, (total,)
        )
        idf = np.log(1 + (products - frequency + 0.5) / (frequency + 0.5))
        weight = K1 * (1 - B + B * rounded(lengths) / max(float(lengths.mean()), 1e-9))
        ends, heads = np.cumsum(sizes), starts[:-1].copy()
        first = begin = 0
        while first < products:  # a block: whole products with about BLOCK entries
            last = max(first + 1, int(np.searchsorted(ends, begin + BLOCK, "right")))
            end = int(ends[last - 1])
            owner = np.repeat(np.arange(first, last, dtype=np.int32), sizes[first:last])
            term, count = rank[terms[begin:end]], counts[begin:end].astype(np.float64)
            order = np.argsort(term, kind="stable")
            term, owner, count = term[order], owner[order], count[order]
            found, place, how_many = np.unique(term, return_index=True, return_counts=True)
            to = np.arange(end - begin) + np.repeat(heads[found] - place, how_many)
            data[to] = idf[term] * count / (count + weight[owner])
            indices[to] = owner
            heads[found] += how_many
            first, begin = last, end
        data.flush()
        indices.flush()
        parameters = {
            "k1": K1,
            "b": B,
            "delta": 0.5,
            "method": "lucene",
            "idf_method": "lucene",
            "dtype": "float32",
            "int_dtype": "int32",
            "backend": "numpy",
        }
        (self.folder / "params.index.json").write_text(
            json.dumps(parameters | {"num_docs": products})
        )
        for name in ("terms.part", "counts.part"):
            (self.folder / name).unlink()

    def write_vocabulary(self) -> NDArray[np.int32]:
        """Write the stems sorted by their bytes, so that they can be searched on disk; returns
        number -> position."""
        stems = [stem.encode() for stem in self.ids]
        self.ids.clear()
        order = sorted(range(len(stems)), key=stems.__getitem__)
        with (self.folder / "vocabulary.bin").open("wb") as file:
            file.writelines(stems[number] for number in order)
        ends = np.cumsum([0, *(len(stems[number]) for number in order)], dtype=np.int64)
        np.save(self.folder / "vocabulary.npy", ends)
        rank = np.empty(len(stems), np.int32)
        rank[order] = np.arange(len(stems), dtype=np.int32)
        return rank


def rounded(lengths: NDArray[np.int32]) -> NDArray[np.int32]:
    """Lengths as Lucene keeps them in one byte each: exact up to 39 words, above it with four
    significant bits of the excess over 24."""
    above = np.maximum(lengths - 24, 0)
    shift = np.maximum(np.frexp(above)[1] - 4, 0)
    return np.where(lengths <= 24, lengths, 24 + (above >> shift << shift)).astype(np.int32)


def _mapped(path: Path, count: int) -> NDArray[np.int32]:
    return np.memmap(path, np.int32, "r", shape=(count,)) if count else np.zeros(0, np.int32)


def map_bytes(path: Path) -> mmap.mmap | bytes:
    """Map a file's bytes, shared by all processes that map it."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


class Index:
    """A memory-mapped index that `IndexBuilder` wrote."""

    def __init__(self, folder: Path) -> None:
        self.stem: Callable[[str], str] = make_stemmer()
        self.lock = threading.Lock()
        """For the stemmer, which all threads share."""
        self.vocabulary = map_bytes(folder / "vocabulary.bin")
        self.ends = np.load(folder / "vocabulary.npy", mmap_mode="r")
        self.bm25: Any = package("bm25s", "bm25s").BM25.load(folder, mmap=True, load_vocab=False)

    def search(self, query: str, count: int) -> list[int]:
        """The best products for a query, best first, each with at least one of its words."""
        numbers = [number for number in map(self.number, words_of(query)) if number is not None]
        if not numbers:
            return []
        scores: NDArray[np.float32] = self.bm25.get_scores_from_ids(numbers)
        hits = np.flatnonzero(scores)
        worth = scores[hits]
        if len(hits) > count:
            kept = worth >= np.partition(worth, len(hits) - count)[len(hits) - count]
            hits, worth = hits[kept], worth[kept]
        return [int(hit) for hit in hits[np.lexsort((hits, -worth))[:count]]]

    def number(self, word: str) -> int | None:
        with self.lock:
            wanted = self.stem(word).encode()
        low, high = 0, len(self.ends) - 1
        while low < high:
            middle = (low + high) // 2
            if self.vocabulary[self.ends[middle] : self.ends[middle + 1]] < wanted:
                low = middle + 1
            else:
                high = middle
        return (
            low
            if low < len(self.ends) - 1
            and self.vocabulary[self.ends[low] : self.ends[low + 1]] == wanted
            else None
        )


def search_text(
    title: str, description: str, bullets: Iterable[str], options: dict[str, tuple[str, ...]]
) -> str:
    """The text of a product that is searched: title, description, first bullet point, options."""
    choices = ", and ".join(f"{name}: {', '.join(values)}" for name, values in options.items())
    return " ".join([title, description, next(iter(bullets), ""), choices])
