"""Environments where an action is a whole program: it is run on tests, and the answer is a judge's
verdict."""
