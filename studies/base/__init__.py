"""The builder of the embedded base policy: `python -m studies.base`."""
