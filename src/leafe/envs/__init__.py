"""Worlds by name. A world knows nothing of policies, prompts or training; this package imports the core alone."""

from leafe.envs._registry import WorldInfo, describe, load_tasks, make_world, world_names

__all__ = ["WorldInfo", "describe", "load_tasks", "make_world", "world_names"]
