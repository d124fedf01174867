"""Environments, found by name.

The package holds the built-in environments, the adapters for other libraries, the process wrapper
(`ProcessEnv`) and the registry. It imports `leafe.core` alone: an environment knows nothing of
policies, prompts or training.
"""

from leafe.envs._registry import EnvInfo, describe, env_names, load_tasks, make_env
from leafe.envs.worker import ProcessEnv

__all__ = ["ProcessEnv", "EnvInfo", "describe", "load_tasks", "make_env", "env_names"]
