"""Guest memory: what lies inside can be reached, what does not cannot."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox.errors import GuestError, HostError
from voidbox.memory import MMIO_HOLE_END_GPA, MMIO_HOLE_GPA, GuestMemory, layout

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(MIB) as memory:
        yield memory


@pytest.fixture(scope="module")
def split_memory() -> Iterator[GuestMemory]:
    with GuestMemory(4 * GIB) as memory:
        yield memory


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (256 * MIB, [(0, 256 * MIB)]),
        (3 * GIB, [(0, 3 * GIB)]),
        (4 * GIB, [(0, 3 * GIB), (MMIO_HOLE_END_GPA, GIB)]),
    ],
)
def test_layout_goes_around_the_hole(size: int, expected: list[tuple[int, int]]) -> None:
    assert layout(size) == expected


@pytest.mark.parametrize(
    ("gpa", "length"),
    [(MIB, 1), (MIB - 1, 2), (-1, 1), (0, MIB + 1), (0, -1), (1 << 64, 1), (0, 1 << 64), (-8, 16)],
)
def test_outside_is_refused(memory: GuestMemory, gpa: int, length: int) -> None:
    with pytest.raises(GuestError):
        memory.view(gpa, length)


def test_edges_are_inside(memory: GuestMemory) -> None:
    assert len(memory.view(0, MIB)) == MIB
    assert len(memory.view(MIB - 1, 1)) == 1
    assert len(memory.view(MIB, 0)) == 0


def test_the_hole_is_outside(split_memory: GuestMemory) -> None:
    for gpa, length in (
        (MMIO_HOLE_GPA, 1),
        (MMIO_HOLE_GPA - 1, 2),
        (MMIO_HOLE_END_GPA - 1, 1),
        (MMIO_HOLE_GPA - 1, GIB + 2),
    ):
        with pytest.raises(GuestError):
            split_memory.view(gpa, length)
    split_memory.write(MMIO_HOLE_END_GPA, b"high")
    assert split_memory.read(MMIO_HOLE_END_GPA, 4) == b"high"


@given(gpa=st.integers(-(2**65), 2**65), length=st.integers(-(2**65), 2**65))
def test_any_range_is_either_wholly_inside_or_refused(gpa: int, length: int) -> None:
    with GuestMemory(MIB) as memory:
        try:
            view = memory.view(gpa, length)
        except GuestError:
            assert not (gpa >= 0 and length >= 0 and gpa + length <= MIB)
        else:
            assert len(view) == length
            view.release()


def test_words_alias_the_bytes(memory: GuestMemory) -> None:
    words = memory.words(0x100, "H", 4)
    words[1] = 0xBEEF
    assert memory.read(0x102, 2) == b"\xef\xbe"
    memory.write(0x104, b"\x34\x12")
    assert words[2] == 0x1234
    words.release()


@pytest.mark.parametrize(("gpa", "code"), [(1, "H"), (2, "I"), (4, "Q"), (MIB, "H")])
def test_misaligned_or_outside_words_are_refused(memory: GuestMemory, gpa: int, code: str) -> None:
    with pytest.raises(GuestError):
        memory.words(gpa, code, 1)  # type: ignore[arg-type]


def test_files_are_loaded_in_place(memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDONLY)
    try:
        memory.load_file(fd, 2, 0x1000, 5)
        assert memory.read(0x1000, 6) == b"23456\0"
        with pytest.raises(HostError, match="1 bytes early"):
            memory.load_file(fd, 5, 0, 6)
    finally:
        os.close(fd)


def test_odd_sizes_are_refused() -> None:
    for size in (0, -4096, 100):
        with pytest.raises(ValueError, match="page"):
            GuestMemory(size)


def test_impossible_sizes_are_host_errors() -> None:
    with pytest.raises(HostError, match="map"):
        GuestMemory(1 << 60)
