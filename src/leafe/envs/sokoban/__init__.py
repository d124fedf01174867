"""Sokoban, told as a text grid: generated rooms or level files."""

from leafe.envs.sokoban._env import Sokoban

__all__ = ["Sokoban"]
