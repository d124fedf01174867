"""Hypothesis on shared machines: no test asserts a time, so no example has a deadline. CI draws the same examples every time."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("leafe", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.register_profile("ci", settings.get_profile("leafe"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "leafe")
