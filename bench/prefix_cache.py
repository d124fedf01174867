"""A model of an inference server's prefix cache: how many tokens of each prompt it would compute.

It follows the design pages of vLLM's automatic prefix caching. Tokens are in blocks of 16. A block
is identified by its own tokens and all before them, through the hash of the block before it; only
full blocks are cached. A prompt finds its longest run of cached blocks from the start; its last
token is always computed. A request takes the least recently used blocks for what it does not find,
and at its end returns all of its blocks, the last one first: so a tail is evicted before its
prefix. Generated tokens are cached like read ones; the last token's keys and values never existed.

Left out: requests are served one after another, so that none holds blocks against another, and a
block that is not full is free at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise


class PrefixCache:
    """`capacity` in tokens, rounded down to blocks; None: unlimited. `serve` raises ValueError for
    a request that alone needs more."""

    def __init__(self, capacity: int | None, block: int = 16) -> None:
        self.block = block
        self.blocks = None if capacity is None else capacity // block
        self._known: OrderedDict[int, None] = OrderedDict()
        """Hashes of the cached blocks, the next to be evicted first."""

    def serve(self, prompt: Sequence[int], answer: Sequence[int]) -> int:
        """How many tokens of the prompt were cached; then caches prompt and answer, as far as there
        is room."""
        tokens = (*prompt, *answer[:-1])
        needed = -(-len(tokens) // self.block)
        if self.blocks is not None and needed > self.blocks:
            raise ValueError(
                f"a request of {len(tokens)} tokens does not fit {self.blocks} blocks of "
                f"{self.block}"
            )
        hashes: list[int] = []
        for begin, end in pairwise(range(0, len(tokens) + 1, self.block)):
            hashes.append(hash((hashes[-1] if hashes else None, tokens[begin:end])))
        usable = (len(prompt) - 1) // self.block
        hits = next(
            (i for i, h in enumerate(hashes[:usable]) if h not in self._known),
            min(usable, len(hashes)),
        )
        for h in hashes:
            self._known.pop(h, None)
        while self.blocks is not None and len(self._known) + needed > self.blocks:
            self._known.popitem(last=False)
        self._known.update((h, None) for h in reversed(hashes))
        return hits * self.block
