"""leafe: environments explain failures; leafe trains LLM agents on the explanations.

The implementation of LEAFE (arXiv 2603.16843). Names of this package are loaded on first use, so
that `leafe --help` answers at once.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leafe.core import Environment, StepResult, Task

__version__ = "0.1.0"
__all__ = ["Environment", "StepResult", "Task", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'leafe' has no attribute {name!r}")
    from leafe import core

    return getattr(core, name)
