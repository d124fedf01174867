"""A playbook: short items with counts of how often each helped and misled, changed by small deltas
that code merges (ACE, arXiv 2510.04618).

Nothing but a delta changes it, and a delta changes at most one item, so that what was learnt does
not wear off by being written anew. An item leaves for a
reason, and stands with it in `gone`: nothing is lost in silence. Merging the same delta again
changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from leafe.core import UserError
from leafe.prompts import PromptSet, fill
from leafe.runs import atomic_write

Operation = Literal["ADD", "UPDATE", "REMOVE"]


@dataclass(frozen=True, slots=True)
class Item:
    """One lesson. Ids are given once, in order, and never again."""

    id: int
    section: str
    text: str
    helpful: int = 0
    harmful: int = 0

    @property
    def worth(self) -> int:
        return self.helpful - self.harmful


@dataclass(frozen=True, slots=True)
class Gone:
    """An item as it was when it left, or a text that another took the place of, and why."""

    item: Item
    why: str


@dataclass(frozen=True, slots=True)
class Delta:
    """One change. ADD needs section and text, UPDATE an item and a text, REMOVE an item."""

    operation: Operation
    item: int = 0
    section: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Playbook:
    """Plain values; every change gives a new one."""

    items: tuple[Item, ...] = ()
    """In the order of their ids."""
    gone: tuple[Gone, ...] = ()
    next_id: int = 1

    def __getitem__(self, item: int) -> Item:
        return next(i for i in self.items if i.id == item)

    def __contains__(self, item: object) -> bool:
        return any(i.id == item for i in self.items)

    def mark(self, helpful: Collection[int], harmful: Collection[int]) -> Playbook:
        """One more of each count for these items; ids that are not there are the caller's to count.
        An item in both is left as it is."""
        return replace(
            self,
            items=tuple(
                replace(
                    i,
                    helpful=i.helpful + (i.id in helpful and i.id not in harmful),
                    harmful=i.harmful + (i.id in harmful and i.id not in helpful),
                )
                for i in self.items
            ),
        )

    def merge(self, delta: Delta, *, most: int, similarity: float) -> tuple[Playbook, str]:
        """The playbook after the delta, and what became of the delta in one or two words.

        A text counts as said already where its words and an item's have a Jaccard index of at least
        `similarity`. An item too many (`most`) makes the one of
        the others go that has the lowest helpful - harmful, and of these the oldest.
        """
        text, section = " ".join(delta.text.split()), " ".join(delta.section.split())
        if delta.operation != "ADD" and delta.item not in self:
            return self, "unknown item"
        if delta.operation == "REMOVE":
            return self._without(self[delta.item], "removed"), "removed"
        if not text:
            return self, "empty text"
        same = self.said(text, similarity)
        if delta.operation == "ADD":
            if same is not None:
                return self, "said already"
            grown = replace(
                self,
                items=(*self.items, Item(self.next_id, section, text)),
                next_id=self.next_id + 1,
            )
            if len(grown.items) <= most:
                return grown, "added"
            worst = min(grown.items[:-1], key=lambda i: (i.worth, i.id), default=grown.items[-1])
            return grown._without(worst, "no room"), "added, another dropped"
        before = self[delta.item]
        if text == before.text:
            return self, "said already"
        if (
            same is not None and same.id != before.id
        ):  # two items have become one: the older stays, with the counts of both
            older, younger = sorted((before, same), key=lambda i: i.id)
            kept = replace(
                older,
                text=text,
                helpful=older.helpful + younger.helpful,
                harmful=older.harmful + younger.harmful,
            )
            joined = replace(
                self, items=tuple(kept if i.id == older.id else i for i in self.items)
            )._without(younger, f"joined with {older.id}")
            return (joined if older.text == text else joined._with_gone(older, "updated")), "joined"
        after = replace(before, text=text, section=section or before.section)
        return replace(
            self, items=tuple(after if i.id == before.id else i for i in self.items)
        )._with_gone(before, "updated"), "updated"

    def said(self, text: str, similarity: float) -> Item | None:
        """The item that says this most alike, if any does; of equals the oldest."""
        alike = max(self.items, key=lambda i: (jaccard(i.text, text), -i.id), default=None)
        return alike if alike is not None and jaccard(alike.text, text) >= similarity else None

    def render(self, words: PromptSet) -> str:
        """What stands in the prompt: the items by section, sections in the order of their oldest
        items; empty without items."""
        if not self.items:
            return ""
        return fill(words.playbook, {"items": self.listed(words)})

    def by_section(self) -> dict[str, str]:
        """Of each section the item that was confirmed most often, if more often than contradicted;
        of equals the newest."""
        best: dict[str, Item] = {}
        for item in self.items:
            if item.worth > 0 and (
                item.section not in best or item.worth >= best[item.section].worth
            ):
                best[item.section] = item
        return {section: item.text for section, item in best.items()}

    def listed(self, words: PromptSet) -> str:
        """The items alone."""
        first = {
            section: min(i.id for i in self.items if i.section == section)
            for section in {i.section for i in self.items}
        }
        ordered = sorted(self.items, key=lambda i: (first[i.section], i.id))
        return "".join(
            fill(words.item, {"id": i.id, "section": i.section, "text": i.text}) for i in ordered
        )

    def _without(self, item: Item, why: str) -> Playbook:
        return replace(self, items=tuple(i for i in self.items if i.id != item.id))._with_gone(
            item, why
        )

    def _with_gone(self, item: Item, why: str) -> Playbook:
        return replace(self, gone=(*self.gone, Gone(item, why)))

    def to_json(self) -> dict[str, Any]:
        return {
            "items": [asdict(i) for i in self.items],
            "gone": [asdict(g) for g in self.gone],
            "next_id": self.next_id,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Playbook:
        gone = tuple(Gone(Item(**g["item"]), g["why"]) for g in data["gone"])
        return Playbook(tuple(Item(**i) for i in data["items"]), gone, data["next_id"])

    def save(self, path: Path) -> None:
        """One JSON file, replaced as a whole."""
        atomic_write(path, json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n")

    @staticmethod
    def load(path: Path) -> Playbook:
        """What `save` wrote; UserError where there is none or it is damaged."""
        try:
            return Playbook.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is no playbook that leafe wrote ({type(error).__name__}: "
                f"{error}): grow one first."
            ) from error


def jaccard(a: str, b: str) -> float:
    """Words in common over words in either, whatever their order and case; 1 where neither has a
    word."""
    x, y = (set(re.findall(r"\w+", text.lower())) for text in (a, b))
    return len(x & y) / len(x | y) if x | y else 1.0
