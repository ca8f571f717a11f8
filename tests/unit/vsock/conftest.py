from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.vsock.machine import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A booted machine; closing it must leave no descriptor open and no slice of memory held."""
    before = len(os.listdir("/proc/self/fd"))
    machine = Machine(tmp_path / "v.sock")
    machine.boot()
    yield machine
    machine.close()
    assert len(os.listdir("/proc/self/fd")) <= before
