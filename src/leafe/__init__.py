"""leafe: post-train LLM agents from what their environment tells them (LEAFE, arXiv 2603.16843)."""

__version__ = "0.1.0.dev0"
