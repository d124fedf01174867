"""The embedded environment: gates and forks, its rules, and the reference policy that knows them."""

from leafe.envs.gates.reference import GatesReference
from leafe.envs.gates.env import SETTINGS, Gates

__all__ = ["SETTINGS", "Gates", "GatesReference"]
