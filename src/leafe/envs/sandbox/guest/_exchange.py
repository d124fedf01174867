"""A call from one box to the other, and its answer.

Arguments go by value. So that a call can still change a list in place, the called box compares the
containers that came with the call before and after, and sends the changed ones back; the caller
refills its own. Both boxes use these functions: a test calls the program, and the program calls
back functions that a test passed to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leafe.envs.sandbox.guest._plain import Decoder, Encoder, Keep, Wrap


def outgoing(
    args: Sequence[Any], named: Mapping[str, Any], keep: Keep
) -> tuple[dict[str, Any], list[Any]]:
    """(the arguments as JSON, their containers)."""
    encoder = Encoder(keep)
    parts = {
        "args": [encoder.encode(a) for a in args],
        "named": [[n, encoder.encode(v)] for n, v in named.items()],
    }
    return parts, encoder.held


class Called:
    """A received call: its arguments, and the contents of their containers."""

    def __init__(self, request: Mapping[str, Any], wrap: Wrap) -> None:
        decoder = Decoder(wrap)
        self.args = [decoder.decode(v) for v in request["args"]]
        self.named = {str(name): decoder.decode(v) for name, v in request["named"]}
        self._containers = decoder.made
        self._before = [_items(container) for container in self._containers]

    def answer(self, name: str, value: Any, keep: Keep, subclasses: bool = False) -> dict[str, Any]:
        """`value` under `name` (`ok` or `raised`), and the containers that the call changed."""
        encoder = Encoder(keep, self._containers, subclasses)
        said = {name: encoder.encode(value)}
        changed = [
            n
            for n, before in enumerate(self._before)
            if not _same(before, _items(self._containers[n]))
        ]
        if changed:
            said["changed"] = [[n, encoder.contents(self._containers[n])] for n in changed]
        return said


def answered(answer: Mapping[str, Any], name: str, held: Sequence[Any], wrap: Wrap) -> Any:
    """The value under `name`, after `held`, the caller's containers, took the call's changes."""
    decoder = Decoder(wrap, held)
    value = decoder.decode(answer[name])
    for number, contents in answer.get("changed", ()):
        decoder.refill(held[number], contents)
    return value


def _items(container: Any) -> list[Any]:
    return (
        [x for pair in dict.items(container) for x in pair]
        if isinstance(container, dict)
        else list(container)
    )


def _same(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) and all(
        one is other for one, other in zip(before, after, strict=True)
    )
