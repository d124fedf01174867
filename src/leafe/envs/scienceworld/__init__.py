"""ScienceWorld, played in a JVM of its own."""

from leafe.envs.scienceworld.env import ScienceWorld

__all__ = ["ScienceWorld"]
