"""A model server that leafe starts, watches and ends, by the command in the recipe.

`_launch` starts and restarts it, `_guard` is the process that ends it with leafe, `_adapters` loads
LoRA adapters into it. It imports `leafe.core` alone.
"""

from leafe.policies.server._adapters import load_adapter
from leafe.policies.server._launch import Launched, check_command, deaths, serve, stop_all

__all__ = ["Launched", "check_command", "deaths", "load_adapter", "serve", "stop_all"]
