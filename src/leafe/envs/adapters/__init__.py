"""Adapters for environments of other libraries, one module each. They import `leafe.core` alone."""
