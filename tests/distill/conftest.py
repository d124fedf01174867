"""The toy model and the samples of a few toy trees, once a module."""

from __future__ import annotations

from pathlib import Path

import pytest

from leafe.distill import Dataset, build, preset
from tests.distill.toy import PROMPTS, checkpoint, forest


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return build(forest(8), PROMPTS, preset("leafe+"), 0)
