"""Logs of other tools, read into trees: verified by replay, or taken as they are."""
