"""Seeds name their work: a sample's seed is a hash of the run's seed and of what the sample is for.

So a result does not depend on the order or the number of things in flight, and a resumed run draws
what the unbroken one would have.
Stable across processes and machines (unlike `hash`).
"""

from hashlib import blake2b


def derive_seed(*names: str | int) -> int:
    """A seed in 0 .. 2**63 - 1 from any names, order-sensitive: `derive_seed(run_seed, task.id,
    episode, step)`."""
    text = "\x1f".join(f"{type(n).__name__[0]}{n}" for n in names)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
