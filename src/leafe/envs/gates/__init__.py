"""The embedded environment: gates and forks, its rules, and a reference policy that knows them."""

from leafe.envs.gates.env import SETTINGS, Gates
from leafe.envs.gates.reference import GatesReference

__all__ = ["SETTINGS", "Gates", "GatesReference"]
