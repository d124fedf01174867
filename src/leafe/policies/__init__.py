"""Policies by name. Each is imported only when it is asked for; this package imports the core
alone."""

from leafe.policies._registry import GROUP, make_policy, policy_factory, policy_names

__all__ = ["GROUP", "make_policy", "policy_factory", "policy_names"]
