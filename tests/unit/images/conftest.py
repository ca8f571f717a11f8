"""A store of images in a folder of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.images.made import StoreFolder


@pytest.fixture
def stored(tmp_path: Path) -> StoreFolder:
    """Return a state folder with images."""
    return StoreFolder(tmp_path / "state")
