"""Random batches of token sequences that share prefixes, some with teachers."""

from __future__ import annotations

from hypothesis import strategies as st

from leafe.distill import PARTS, Span, TokenSequence
from leafe.distill._pack import Row

WORDS = 11


@st.composite
def sequences(draw: st.DrawFn, longest: int = 12) -> TokenSequence:
    """One sequence over few words, so that prefixes meet; its spans do not overlap."""
    ids = tuple(draw(st.lists(st.integers(0, 2), min_size=2, max_size=longest)))
    cuts = sorted(draw(st.sets(st.integers(1, len(ids)), min_size=2, max_size=6)))
    if len(cuts) % 2:
        cuts.pop()
    teachers = (
        st.none()
        | st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple)
        | st.just(ids[: cuts[0]])
    )
    spans = [
        Span(a, b, draw(st.sampled_from([1.0, 0.25, 3.0])), draw(teachers))
        for a, b in zip(cuts[::2], cuts[1::2], strict=True)
    ]
    return TokenSequence(
        draw(st.sampled_from(PARTS)), draw(st.sampled_from(["t0", "t1"])), ids, spans
    )


batches = st.lists(sequences(), min_size=1, max_size=8)


def parents(row: Row) -> list[int]:
    """The node before each node in its own sequence; -1 for the first."""
    path: list[int] = []
    out = []
    for node, depth in enumerate(row.depths):
        del path[depth:]
        out.append(path[-1] if path else -1)
        path.append(node)
    return out
