"""A data set of a family in the folder of a test."""

import pytest
from family_rows import FAMILIES


@pytest.fixture
def make(tmp_path):
    """A data set on `tmp_path`, whose cache lies beside it."""
    return lambda family, path=tmp_path, **options: FAMILIES[family](path, cache_dir=tmp_path / "cache", **options)
