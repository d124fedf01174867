"""The command line: parse, call, print.

It may import every other part, inside the commands that need it, and none imports it.
"""

from leafe.cli._app import app, main

__all__ = ["app", "main"]
