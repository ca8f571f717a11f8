from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.vsock.machine import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A booted machine; closing it must leave no descriptor open and no slice of memory held."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    machine = Machine(tmp_path / "v.sock")
    machine.boot()
    yield machine
    machine.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
