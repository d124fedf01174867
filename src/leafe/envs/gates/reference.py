"""The ceiling: a policy that knows all rules of the environment and guesses the ways.

It reads the current situation from the end of the prompt, whatever the wording, and answers n
samples at once: at a fork the counts are one multinomial draw over the four ways. In the setting
`random` there are no rules to know, and its choices at gates are guesses.
"""

from __future__ import annotations

import re

import numpy as np

from leafe.core import Completion, PolicyError, Request, UserError
from leafe.envs.gates.rules import RULES, WAYS

_SITUATION = re.compile(
    r"(?P<gate>\w+) gate\b|(?P<fork>\w+) fork\b|hold "
    r"(?P<hold>\w+)|(?P<path>path)\b|(?P<thing>\w+) here\b"
)


class GatesReference:
    """A policy for the settings easy and hard that knows their rules. It acts, and never reflects.

    Args:
        rules: 'target' or 'habit', as the environment's option.
    """

    name = "reference"

    def __init__(self, rules: str = "target") -> None:
        if rules not in RULES:
            raise UserError(
                f"The gates reference knows no rules {rules!r}: choose one of {', '.join(RULES)}."
            )
        self.rules = RULES[rules]

    async def complete(self, request: Request) -> list[Completion]:
        text = request.messages[-1].content
        situations = list(_SITUATION.finditer(text))
        if not situations or text.split()[-1] == "reflect":
            raise PolicyError(
                "The gates reference policy only acts in the environment gates: it does "
                "not reflect, and knows no other environment."
            )
        found = situations[-1]
        kind = found.lastgroup
        if kind == "fork":
            counts = np.random.default_rng(request.seed).multinomial(
                request.n, [1 / len(WAYS)] * len(WAYS)
            )
            return [
                Completion(f"go {way}", int(count))
                for way, count in zip(WAYS, counts, strict=True)
                if count
            ]
        what = found[kind] if kind else ""
        if kind == "gate":
            return [
                Completion(
                    f"take {self.rules[what]}" if what in self.rules else "walk on", request.n
                )
            ]
        return [
            Completion(
                {"hold": f"use {what}", "path": "walk on"}.get(str(kind), f"take {what}"), request.n
            )
        ]

    async def close(self) -> None:
        """Nothing to close."""
