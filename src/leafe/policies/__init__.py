"""Policies by name, imported only when they are asked for.

`hf` samples in this process, `http` from servers, `server` starts such a server; `scripted` is a
function and `smollm2` a builder of small test models. The registry imports `leafe.core` alone.
"""

from leafe.policies._registry import GROUP, make_policy, policy_factory, policy_names

__all__ = ["GROUP", "make_policy", "policy_factory", "policy_names"]
