"""A call from one box into the other, and its answer: how arguments go out, how the answer comes
back, and what the call changed in its arguments.

Arguments go by value. So that a call can still change a list in place, the box that was called
looks, when the call is over, which of the containers that came
with it have other contents than before, and sends these along; the caller fills its own containers
anew. Both boxes use these functions: a test calls the
program, and a program calls back a function that a test handed to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leafe.envs.sandbox.guest._plain import Decoder, Encoder, Keep, Wrap


def outgoing(
    args: Sequence[Any], named: Mapping[str, Any], keep: Keep
) -> tuple[dict[str, Any], list[Any]]:
    """(the arguments as JSON, the containers among them)."""
    encoder = Encoder(keep)
    parts = {
        "args": [encoder.encode(a) for a in args],
        "named": [[n, encoder.encode(v)] for n, v in named.items()],
    }
    return parts, encoder.held


class Called:
    """A call that came in: its arguments, and what was in their containers."""

    def __init__(self, request: Mapping[str, Any], wrap: Wrap) -> None:
        decoder = Decoder(wrap)
        self.args = [decoder.decode(v) for v in request["args"]]
        self.named = {str(name): decoder.decode(v) for name, v in request["named"]}
        self._containers = decoder.made
        self._before = [_held(container) for container in self._containers]

    def answer(self, name: str, value: Any, keep: Keep, subclasses: bool = False) -> dict[str, Any]:
        """`value` under `name` (`ok` or `raised`), and the containers that the call changed."""
        encoder = Encoder(keep, self._containers, subclasses)
        said = {name: encoder.encode(value)}
        other = [
            n
            for n, before in enumerate(self._before)
            if not _same(before, _held(self._containers[n]))
        ]
        if other:
            said["changed"] = [[n, encoder.contents(self._containers[n])] for n in other]
        return said


def answered(answer: Mapping[str, Any], name: str, held: Sequence[Any], wrap: Wrap) -> Any:
    """The value under `name`, after the caller's containers `held` were filled with what the call
    left in them."""
    decoder = Decoder(wrap, held)
    value = decoder.decode(answer[name])
    for number, contents in answer.get("changed", ()):
        decoder.refill(held[number], contents)
    return value


def _held(container: Any) -> list[Any]:
    return (
        [x for pair in dict.items(container) for x in pair]
        if isinstance(container, dict)
        else list(container)
    )


def _same(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) and all(
        one is other for one, other in zip(before, after, strict=True)
    )
