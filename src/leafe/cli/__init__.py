"""The command line. Thin: parse, call, print."""

from leafe.cli._app import app, main

__all__ = ["app", "main"]
