"""Environments by name. An environment knows nothing of policies, prompts or training; this package
imports the core alone."""

from leafe.envs._registry import EnvInfo, describe, env_names, load_tasks, make_env
from leafe.envs.worker import ProcessEnv

__all__ = ["ProcessEnv", "EnvInfo", "describe", "load_tasks", "make_env", "env_names"]
