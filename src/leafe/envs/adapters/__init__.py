"""Environments that users already have, behind leafe's contract: one module for each library."""
