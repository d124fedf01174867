"""ScienceWorld: 30 tasks of elementary science, simulated in a JVM."""

from leafe.envs.scienceworld.env import ScienceWorld

__all__ = ["ScienceWorld"]
