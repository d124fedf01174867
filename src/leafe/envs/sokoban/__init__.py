"""Sokoban: puzzles of irreversible mistakes, generated or read from the field's level files, told
as a text grid."""

from leafe.envs.sokoban._env import Sokoban

__all__ = ["Sokoban"]
