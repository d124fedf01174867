"""Where code that a model wrote runs, and the only place: no network, no writes, bounded memory,
processes, output and time."""

from leafe.envs.sandbox._guarantees import guarantees
from leafe.envs.sandbox._sandbox import NOT_THE_PROGRAM, Run, Sandbox, Verdict, restarts
from leafe.envs.sandbox._watch import Limits, Outcome

__all__ = [
    "NOT_THE_PROGRAM",
    "Limits",
    "Outcome",
    "Run",
    "Sandbox",
    "Verdict",
    "guarantees",
    "restarts",
]
