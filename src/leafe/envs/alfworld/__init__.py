"""ALFWorld, on the official games or on fresh ones of our own making."""

from leafe.envs.alfworld._env import AlfWorld
from leafe.envs.alfworld._make import make_games

__all__ = ["AlfWorld", "make_games"]
