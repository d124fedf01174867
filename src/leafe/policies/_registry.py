"""Policies by name: what a name refers to is imported when it is asked for.

Three kinds of name, as for environments: those of this package, those that an installed package
announces under the entry point group `leafe.policies`, and an import path `package.module:Class`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from leafe.core import Policy, UserError, find_named

GROUP = "leafe.policies"
"""The entry point group for policies of other packages: `name = "package.module:Class"`."""

_BUILTIN = {"hf": "leafe.policies.hf:HFPolicy", "http": "leafe.policies.http:HTTPPolicy"}


def _announced() -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group=GROUP)}


def policy_names() -> list[str]:
    """Every policy that a plain name can make, sorted."""
    return sorted({*_BUILTIN, *_announced()})


def make_policy(kind: str, **options: Any) -> Policy:
    """Make a policy.

    Args:
        kind: A name of `policy_names`, or package.module:Class.
        **options: Its options.

    Raises:
        UserError: The kind or an option is unknown, an option or a package is missing, or the
            policy refuses a value.
    """
    made: Policy = policy_factory(kind, options)(**options)
    return made


def policy_factory(kind: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """The class or function that makes the policy `kind`; makes nothing.

    Args:
        kind: A name of `policy_names`, or package.module:Class.
        options: The options that it must take.

    Raises:
        UserError: As `make_policy`.
    """
    factory = _load(kind)
    parameters = inspect.signature(factory).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for option in options:
            if option not in parameters:
                known = ", ".join(parameters) or "none"
                raise UserError(
                    f"The policy {kind!r} has no option {option!r}: its options are {known}."
                )
    for name, p in parameters.items():
        if (
            p.default is p.empty
            and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            and name not in options
        ):
            raise UserError(f"The policy {kind!r} needs the option {name!r}: set it.")
    return factory


def _load(kind: str) -> Callable[..., Any]:
    announced = _announced().get(kind)
    target = _BUILTIN.get(kind) or (announced.value if announced else kind)
    module, _, name = target.partition(":")
    if not name:
        raise UserError(
            f"There is no policy {kind!r}: choose one of {', '.join(policy_names())}, or "
            "give package.module:Class."
        )
    try:
        found: Callable[..., Any] = find_named(target)
    except ModuleNotFoundError as error:
        if kind in _BUILTIN:
            raise UserError(
                f"The policy {kind!r} needs the package {error.name!r}, which is not "
                "installed: pip install 'leafe[hf]'."
            ) from error
        raise UserError(f"The policy {kind!r} cannot be imported: {error}.") from error
    except AttributeError as error:
        raise UserError(
            f"The policy {kind!r} cannot be imported: the module {module} has no {name}."
        ) from error
    return found
