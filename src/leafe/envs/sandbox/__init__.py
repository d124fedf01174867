"""The sandbox: the only place where model-written programs run.

No network, no writes, and bounded memory, processes, output and time. docs/sandbox.md says what
holds. The package imports `leafe.core`; `guest/` runs inside the box and imports the standard
library alone.
"""

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
