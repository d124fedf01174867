"""leafe: post-train LLM agents from what their environment tells them (LEAFE, arXiv 2603.16843)."""

from leafe.core import Environment, StepResult, Task

__version__ = "0.1.0"
__all__ = ["Environment", "StepResult", "Task", "__version__"]
