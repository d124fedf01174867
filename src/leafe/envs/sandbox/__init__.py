"""Where code that a model wrote runs, and the only place: no network, no writes, bounded memory, processes, output and time."""

from leafe.envs.sandbox._box import Limits, Outcome, Sandbox, Verdict

__all__ = ["Limits", "Outcome", "Sandbox", "Verdict"]
