"""Contents are copied by the kernel where it can, and by hand where it cannot."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from voidbox.images.contents import Copier, part
from voidbox.images.errors import ImageError
from voidbox.images.tree import Extent, SpoolSource

SIZE = 3_000_001


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(SIZE))
    return path


def copy(source: Path, extent: Extent, position: int) -> bytes:
    target = source.with_name("target")
    with open(source, "rb") as reading, open(target, "wb") as writing:
        Copier(writing.fileno()).copy(reading.fileno(), extent, position)
    return target.read_bytes()


def extent_of(offset: int, length: int) -> Extent:
    with open(os.devnull, "rb") as file:
        return Extent(0, length, SpoolSource(file), offset)


@pytest.mark.parametrize("code", [0, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP])
def test_any_part_to_any_place(source: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    calls: list[int] = []
    real = os.copy_file_range

    def refuse(*arguments: int) -> int:
        calls.append(arguments[2])
        if code:
            raise OSError(code, "not here")
        return min(real(*arguments), 1_000_000)  # fewer than asked for is no error

    monkeypatch.setattr(os, "copy_file_range", refuse)
    copied = copy(source, extent_of(77, SIZE - 77), 4096)
    assert copied == bytes(4096) + source.read_bytes()[77:]
    assert len(calls) == (1 if code else 3)
    assert copy(source, extent_of(5, 10), 0) == source.read_bytes()[5:15]


def test_other_failures_are_failures(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", fail)
    with pytest.raises(OSError, match="No space left"):
        copy(source, extent_of(0, SIZE), 0)


def test_a_source_with_fewer_bytes(source: Path) -> None:
    for length in (SIZE + 1, SIZE + 100_000):
        with pytest.raises(ImageError, match="shorter"):
            copy(source, extent_of(0, length), 0)


def test_parts_of_extents() -> None:
    first = extent_of(1000, 10)
    second = first._replace(position=20, offset=2000)
    found = [(piece.position, piece.length, piece.offset) for piece in part((first, second), 5, 25)]
    assert found == [(5, 5, 1005), (20, 5, 2000)]
