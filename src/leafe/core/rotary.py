"""Rotary variants whose factors depend on the longest row of a forward pass.

`transformers` computes LongRoPE (Phi-3, Phi-3.5, Phi-4-mini) with one set of factors up to a length
and another set past it, and picks the set by the longest row. Past that length the same tokens give
other logits beside a longer row, and cached keys belong to the other set. Reads a config alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rotary_switch(config: Any) -> int | None:
    """The most tokens that the rows of a forward pass may have without influencing each other.

    Args:
        config: A `transformers` config.

    Returns:
        Tokens; None where the rotary factors are the same for all lengths.
    """
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(found, Mapping):
        return None
    nested = [p for p in found.values() if isinstance(p, Mapping)]  # one for each kind of layer
    longest = int(getattr(config, "max_position_embeddings", 0) or 0)
    switches = []
    for parameters in nested or [found]:
        kind = str(parameters.get("rope_type", parameters.get("type", "")))
        if kind in ("longrope", "su"):
            original = parameters.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None)
            switches.append(int(original or longest))
        elif kind == "dynamic":
            switches.append(longest)
    return min(switches, default=None)
