"""Policy calls whose answers are checked for their number."""

from __future__ import annotations

from leafe.core import Completion, Policy, PolicyError, Request


async def complete_one(policy: Policy, request: Request) -> Completion:
    """The answer to a request for one sample. Raises PolicyError where there is none."""
    answers = await policy.complete(request)
    if not answers:
        raise PolicyError(f"The policy {policy.name} returned no completion.")
    return answers[0]


async def complete_all(policy: Policy, request: Request) -> list[Completion]:
    """The answers to a request for n samples. Raises PolicyError where their counts do not sum to
    n."""
    answers = await policy.complete(request)
    given = sum(answer.count for answer in answers)
    if given != request.n:
        raise PolicyError(
            f"The policy {policy.name} gave {given} samples where {request.n} were asked for."
        )
    return answers
