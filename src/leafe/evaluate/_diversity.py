"""How widely a policy samples: the entropy of its actions, and how many of a task's samples are not
the same episode again.

Both are read off the evaluation's own trees. Entropy is the mean of -log p over the sampled tokens,
which is without bias the policy's entropy on its own
histories at the temperature of the sampling; tokens and turns weigh by their counts. Two samples
are one episode where they gave the environment the same actions,
whatever they thought beside it. The share of distinct episodes falls with the number of samples:
compare it between rows of equal n alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from leafe.core import LOST, Kind, Tree
from leafe.evaluate._measures import generated_tokens


@dataclass(frozen=True, slots=True)
class Diversity:
    """None where there is nothing to tell it from."""

    entropy: float | None
    """Nats a token. None where the engine gives no log-probabilities; at temperature 0 it is what
    the most likely tokens' probabilities at 1 say."""
    entropy_turn: float | None
    """Nats an action."""
    distinct: float | None
    """Distinct episodes of a task over its samples, mean over tasks; 1 over the samples: always the
    same episode."""
    largest: float | None
    """The share of a task's samples that are its most frequent episode, mean over tasks."""

    def to_json(self) -> dict[str, Any]:
        return {
            name: None if value is None else round(value, 6) for name, value in asdict(self).items()
        }


def diversity(trees: Iterable[Tree]) -> Diversity:
    """Of the samples that these trees hold; those that were lost to an error are left out of the
    episodes."""
    surprise = tokens = 0.0
    turns = 0
    distinct: list[float] = []
    largest: list[float] = []
    for tree in trees:
        for turn in tree:
            if turn.kind is Kind.act and turn.logprob is not None:
                surprise -= turn.count * turn.logprob
                turns += turn.count
                tokens += turn.count * generated_tokens(turn)
        samples = _episodes(tree)
        if samples:
            n = sum(samples.values())
            distinct.append(len(samples) / n)
            largest.append(max(samples.values()) / n)
    return Diversity(
        surprise / tokens if tokens else None,
        surprise / turns if turns else None,
        sum(distinct) / len(distinct) if distinct else None,
        sum(largest) / len(largest) if largest else None,
    )


def _episodes(tree: Tree) -> Counter[int]:
    """How many samples each distinct sequence of actions has; a sequence is a number."""
    known: dict[tuple[int, str], int] = {}
    at: dict[str | None, int] = {None: 0}
    out: Counter[int] = Counter()
    for episode in tree.episodes:
        here = at[episode.start]
        for turn in episode.acts:
            here = at[turn.id] = known.setdefault((here, turn.action), len(known) + 1)
        if episode.stop not in LOST:
            out[here] += episode.count
    return out
