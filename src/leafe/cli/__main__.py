"""`python -m leafe.cli`."""

from leafe.cli._app import main

main()
