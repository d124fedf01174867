"""Seeds name their work: a sample's seed is a hash of the run's seed and of what the sample is for.

So a result depends neither on the order nor on the number of calls in flight, and a resumed run
draws what the unbroken one would have drawn. Stable across processes and machines (unlike `hash`).
"""

from hashlib import blake2b


def derive_seed(*names: str | int) -> int:
    """A seed from names, for instance `derive_seed(run_seed, task.id, episode, step)`.

    Args:
        *names: What the seed is for. Order and type matter: 1 and "1" differ.

    Returns:
        A whole number in 0 .. 2**63 - 1.
    """
    text = "\x1f".join(f"{type(n).__name__[0]}{n}" for n in names)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
