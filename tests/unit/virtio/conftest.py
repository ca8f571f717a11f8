from __future__ import annotations

from collections.abc import Iterator

import pytest

from voidbox.memory import GuestMemory


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """1 MiB of RAM. Closing it fails if a slice of it is still held somewhere."""
    with GuestMemory(1 << 20) as memory:
        yield memory
