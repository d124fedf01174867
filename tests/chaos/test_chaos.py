"""Thousands of episodes while everything breaks; and that the test would notice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.storm import Storm


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_journal_of_a_run_under_fire_is_that_of_a_run_in_peace(tmp_path: Path) -> None:
    """LEAFE_CHAOS_SECONDS: how long things are broken, default 180; LEAFE_CHAOS_SEED: how."""
    storm = Storm(
        tmp_path,
        float(os.environ.get("LEAFE_CHAOS_SECONDS", "180")),
        int(os.environ.get("LEAFE_CHAOS_SEED", "0")),
    )
    try:
        storm.run()
    finally:
        print("\n" + storm.table())
    found = storm.verdict
    assert not found.problems, "\n".join(found.problems[:20])
