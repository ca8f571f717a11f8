"""The floor of free space: what would go below it is refused, what needs no room is not."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from voidbox import free_space
from voidbox.block.host_file import HostFile
from voidbox.free_space import FLOOR_BYTES, FreeSpace

BLOCK = 4096


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A file of which the first megabyte has data."""
    fd = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"x" * (1 << 20), 0)
    os.ftruncate(fd, 1 << 30)
    os.fsync(fd)
    yield fd
    os.close(fd)


def say_free(monkeypatch: pytest.MonkeyPatch, free: int, total: int = 100 << 30) -> list[int]:
    """Have the host say that so much is free; returns how often it was asked."""
    asked: list[int] = []

    def fstatvfs(fd: int) -> SimpleNamespace:
        asked.append(fd)
        return SimpleNamespace(f_bavail=free // BLOCK, f_blocks=total // BLOCK, f_frsize=BLOCK)

    monkeypatch.setattr(free_space.os, "fstatvfs", fstatvfs)
    return asked


def test_room_is_looked_for_each_16_mib(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = say_free(monkeypatch, 50 << 30)
    room = FreeSpace()
    for index in range(64):
        room.take(file, index << 20, 1 << 20)
    assert 3 <= len(asked) <= 5


def test_nothing_is_written_below_the_floor(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    room = FreeSpace()
    say_free(monkeypatch, FLOOR_BYTES + (2 << 20))
    room.take(file, 512 << 20, 1 << 20)
    say_free(monkeypatch, FLOOR_BYTES + 1000)
    room.take(file, 600 << 20, 1 << 20)  # of what was there at the last look
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            room.take(file, 700 << 20, 1 << 20)
        assert caught.value.errno == errno.ENOSPC
    room.take(file, 0, 1 << 20)  # there is data: it takes no room
    with pytest.raises(OSError):
        room.take(file, (1 << 20) - BLOCK, 2 * BLOCK)
    say_free(monkeypatch, 50 << 30)
    room.take(file, 700 << 20, 1 << 20)  # somebody has made room


def test_a_small_file_system_has_a_small_floor(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    say_free(monkeypatch, 2 << 20, 20 << 20)
    FreeSpace().take(file, 1 << 29, 1 << 19)
    with pytest.raises(OSError):
        FreeSpace().take(file, 1 << 29, 2 << 20)


def test_a_disk_does_not_fill_the_host(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    say_free(monkeypatch, FLOOR_BYTES)
    disk = HostFile(os.dup(file))
    data = bytearray(BLOCK)
    disk.write([data], 0, BLOCK)
    with pytest.raises(OSError) as caught:
        disk.write([data], 1 << 29, BLOCK)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError):
        disk.zero(1 << 29, BLOCK, may_unmap=False)
    assert disk.discard(0, BLOCK)
    disk.close()
