"""A playbook: short items with counts of how often each helped and misled, changed by small deltas
that code merges (ACE, arXiv 2510.04618).

Only a delta changes it, and a delta changes at most one item: so what was learnt is not lost when
a list is rewritten. A removed item is kept in `gone` with the reason. Merging the same delta again
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
class PlaybookItem:
    """One lesson (a bullet, in ACE's words). Ids are given in order and never reused."""

    id: int
    section: str
    text: str
    helpful: int = 0
    harmful: int = 0

    @property
    def worth(self) -> int:
        """How much more often it helped than misled."""
        return self.helpful - self.harmful


@dataclass(frozen=True, slots=True)
class RemovedItem:
    """An item as it was when it was removed or its text was replaced, and why."""

    item: PlaybookItem
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
    """An immutable list of items; every change gives a new playbook."""

    items: tuple[PlaybookItem, ...] = ()
    """In the order of their ids."""
    gone: tuple[RemovedItem, ...] = ()
    """In the order of their removal."""
    next_id: int = 1

    def __getitem__(self, item: int) -> PlaybookItem:
        return next(i for i in self.items if i.id == item)

    def __contains__(self, item: object) -> bool:
        return any(i.id == item for i in self.items)

    def mark(self, helpful: Collection[int], harmful: Collection[int]) -> Playbook:
        """Count one more for these items, by id; unknown ids are ignored. An item in both is left
        as it is."""
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

    def merge(self, delta: Delta, *, max_items: int, similarity: float) -> tuple[Playbook, str]:
        """Apply a delta.

        Args:
            delta: The change.
            max_items: Where an added item makes more than these, the one of the others with the
                lowest helpful - harmful is removed, and of equals the oldest.
            similarity: The Jaccard index of their words from which on two texts say the same.

        Returns:
            The playbook after the delta, and what became of the delta in one or two words.
        """
        text, section = " ".join(delta.text.split()), " ".join(delta.section.split())
        if delta.operation != "ADD" and delta.item not in self:
            return self, "unknown item"
        if delta.operation == "REMOVE":
            return self._without(self[delta.item], "removed"), "removed"
        if not text:
            return self, "empty text"
        same = self.most_similar(text, similarity)
        if delta.operation == "ADD":
            if same is not None:
                return self, "said already"
            grown = replace(
                self,
                items=(*self.items, PlaybookItem(self.next_id, section, text)),
                next_id=self.next_id + 1,
            )
            if len(grown.items) <= max_items:
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

    def most_similar(self, text: str, similarity: float) -> PlaybookItem | None:
        """The item that is most similar to the text, if its Jaccard index is at least `similarity`;
        of equals the oldest."""
        item = max(self.items, key=lambda i: (jaccard(i.text, text), -i.id), default=None)
        return item if item is not None and jaccard(item.text, text) >= similarity else None

    def render(self, words: PromptSet) -> str:
        """The text for the prompt: the items by section, sections in the order of their oldest
        items; empty without items."""
        if not self.items:
            return ""
        return fill(words.playbook, {"items": self.list_items(words)})

    def by_section(self) -> dict[str, str]:
        """Of each section the text of the item with the highest `worth`, if above 0; of equals the
        newest."""
        best: dict[str, PlaybookItem] = {}
        for item in self.items:
            if item.worth > 0 and (
                item.section not in best or item.worth >= best[item.section].worth
            ):
                best[item.section] = item
        return {section: item.text for section, item in best.items()}

    def list_items(self, words: PromptSet) -> str:
        """The items alone, as `render` orders them."""
        first = {
            section: min(i.id for i in self.items if i.section == section)
            for section in {i.section for i in self.items}
        }
        ordered = sorted(self.items, key=lambda i: (first[i.section], i.id))
        return "".join(
            fill(words.item, {"id": i.id, "section": i.section, "text": i.text}) for i in ordered
        )

    def _without(self, item: PlaybookItem, why: str) -> Playbook:
        return replace(self, items=tuple(i for i in self.items if i.id != item.id))._with_gone(
            item, why
        )

    def _with_gone(self, item: PlaybookItem, why: str) -> Playbook:
        return replace(self, gone=(*self.gone, RemovedItem(item, why)))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "items": [asdict(i) for i in self.items],
            "gone": [asdict(g) for g in self.gone],
            "next_id": self.next_id,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Playbook:
        """What `to_json` gave."""
        gone = tuple(RemovedItem(PlaybookItem(**g["item"]), g["why"]) for g in data["gone"])
        return Playbook(tuple(PlaybookItem(**i) for i in data["items"]), gone, data["next_id"])

    def save(self, path: Path) -> None:
        """One JSON file, replaced as a whole."""
        atomic_write(path, json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n")

    @staticmethod
    def load(path: Path) -> Playbook:
        """What `save` wrote. Raises UserError where there is none or it is damaged."""
        try:
            return Playbook.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is no playbook that leafe wrote ({type(error).__name__}: {error}): "
                "build one first."
            ) from error


def jaccard(a: str, b: str) -> float:
    """The Jaccard index of two texts' words, in 0 .. 1, whatever their order and case; 1 where
    neither has a word."""
    x, y = (set(re.findall(r"\w+", text.lower())) for text in (a, b))
    return len(x & y) / len(x | y) if x | y else 1.0
