"""Overlays against a plain array of bytes, with the power cut at every point."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.block.fake_file import FakeFile, Stopped
from voidbox.block.overlay import OverlayBackend
from voidbox.block.overlay_format import BITMAP_OFFSET, BaseIdentity, Header, header_for

SECTOR = 512
CLUSTER = 4096
SECTORS = 5 * 8 + 3  # the last cluster is cut short
SIZE = SECTORS * SECTOR
BASE = bytes((7 * (at // SECTOR) + at) % 251 + 1 for at in range(SIZE))  # no zero in it
HEADER = header_for(BaseIdentity(SIZE, 0, bytes(32)))


class Op(NamedTuple):
    kind: str
    sector: int = 0
    count: int = 0
    seed: int = 0


def fresh_content(header: Header = HEADER) -> bytes:
    return header.pack().ljust(header.file_bytes, b"\0")


def open_overlay(content: bytes, stop_at: int | None = None) -> tuple[OverlayBackend, FakeFile]:
    file = FakeFile(content, stop_at)
    bits = bytearray(content[BITMAP_OFFSET : BITMAP_OFFSET + HEADER.bitmap_bytes])
    return OverlayBackend(FakeFile(BASE, is_base=True), file, HEADER, bits, False), file


def read(backend: OverlayBackend, sector: int = 0, count: int = SECTORS) -> bytes:
    """Into buffers of odd sizes, as a guest's may be."""
    data = bytearray(count * SECTOR)
    view = memoryview(data)
    cut = len(data) // 3
    buffers = [view[:cut], view[cut : cut + 700], view[cut + 700 :]]
    backend.read([buffer for buffer in buffers if buffer], sector * SECTOR, len(data))
    return bytes(data)


def payload(op: Op) -> bytes:
    return bytes((op.seed * 37 + at) % 255 + 1 for at in range(op.count * SECTOR))


def apply(backend: OverlayBackend, op: Op) -> None:
    offset, length = op.sector * SECTOR, op.count * SECTOR
    if op.kind == "write":
        data = memoryview(payload(op))
        backend.write([data[:300], data[300:]], offset, length)
    elif op.kind == "discard":
        backend.discard(offset, length)
    elif op.kind == "zero":
        backend.zero(offset, length, bool(op.seed & 1))
    else:
        backend.flush()


class Model:
    """What each sector may hold: now, and after a crash."""

    def __init__(self) -> None:
        self.now = [BASE[at : at + SECTOR] for at in range(0, SIZE, SECTOR)]
        self.allowed = [{data} for data in self.now]

    def begin(self, op: Op) -> None:
        """It may be done in part from here on."""
        for sector, data in self._effect(op):
            self.allowed[sector].add(data)

    def end(self, op: Op) -> None:
        for sector, data in self._effect(op):
            self.now[sector] = data
        if op.kind == "flush":
            self.allowed = [{data} for data in self.now]

    @staticmethod
    def _effect(op: Op) -> Iterator[tuple[int, bytes]]:
        data = payload(op) if op.kind == "write" else bytes(op.count * SECTOR)
        first, end = op.sector, op.sector + op.count
        if op.kind == "discard":  # of whole clusters
            first = -(-first // 8) * 8
            end = end if end == SECTORS else end // 8 * 8
        for sector in range(first, end):
            at = (sector - op.sector) * SECTOR
            yield sector, data[at : at + SECTOR]

    def check_now(self, content: bytes) -> None:
        assert content == b"".join(self.now)

    def check_crashed(self, content: bytes) -> None:
        for sector, allowed in enumerate(self.allowed):
            assert content[sector * SECTOR : (sector + 1) * SECTOR] in allowed, sector


@st.composite
def spans(draw: st.DrawFn) -> Op:
    kind = draw(st.sampled_from(["write", "write", "write", "discard", "zero"]))
    sector = draw(st.integers(0, SECTORS - 1))
    count = draw(st.integers(1, min(SECTORS - sector, 20)))
    return Op(kind, sector, count, draw(st.integers(0, 50)))


OPS = st.lists(spans() | st.just(Op("flush")), max_size=12)


@settings(deadline=None)
@given(OPS)
def test_it_reads_as_it_was_written(ops: list[Op]) -> None:
    backend, file = open_overlay(fresh_content())
    model = Model()
    for op in ops:
        apply(backend, op)
        model.end(op)
        model.check_now(read(backend))
        model.check_now(b"".join(read(backend, sector, 1) for sector in range(SECTORS)))
    backend.close()
    model.check_now(read(open_overlay(bytes(file.now))[0]))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(OPS, st.integers(0, 1 << 20))
def test_what_was_flushed_survives_a_crash_at_every_point(ops: list[Op], seed: int) -> None:
    """The VMM killed, and the host's power cut, in the middle of every call of every run."""
    stop_at = 0
    is_over = False
    while not is_over:
        backend, file = open_overlay(fresh_content(), stop_at)
        model = Model()
        try:
            for op in ops:
                model.begin(op)
                apply(backend, op)
                model.end(op)
            is_over = True
        except Stopped:
            pass
        model.check_crashed(read(open_overlay(bytes(file.now))[0]))
        for attempt in range(4):
            content = file.after_power_cut(seed + attempt)
            again, _ = open_overlay(content)
            model.check_crashed(read(again))
        stop_at += 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(OPS, st.booleans(), st.integers(0, 99)), max_size=4))
def test_one_life_after_another(lives: list[tuple[list[Op], bool, int]]) -> None:
    """What a crash left behind is not taken for something later."""
    content = fresh_content()
    model = Model()
    for ops, is_power_cut, seed in lives:
        backend, file = open_overlay(content)
        for op in ops:
            model.begin(op)
            apply(backend, op)
            model.end(op)
        content = file.after_power_cut(seed) if is_power_cut else bytes(file.now)
        found = read(open_overlay(content)[0])
        model.check_crashed(found)
        model.now = [found[at : at + SECTOR] for at in range(0, SIZE, SECTOR)]
        # What is there now was perhaps never flushed: another power cut may bring more back.
        for sector, data in enumerate(model.now):
            model.allowed[sector].add(data)


def test_a_part_of_a_cluster_gets_the_rest_from_the_base() -> None:
    backend, file = open_overlay(fresh_content())
    backend.write([b"x" * SECTOR], 9 * SECTOR, SECTOR)
    at = HEADER.data_offset + CLUSTER
    assert file.now[at : at + CLUSTER] == (
        BASE[CLUSTER : CLUSTER + SECTOR] + b"x" * SECTOR + BASE[CLUSTER + 2 * SECTOR : 2 * CLUSTER]
    )
    assert not any(file.now[at + CLUSTER :])
    calls = file.calls
    backend.write([b"y" * SECTOR], 10 * SECTOR, SECTOR)
    assert file.calls == calls + 1
    assert file.now[at + 2 * SECTOR : at + 3 * SECTOR] == b"y" * SECTOR


def test_bits_come_after_clusters_and_only_once() -> None:
    backend, file = open_overlay(fresh_content())
    backend.write([b"x" * CLUSTER], 0, CLUSTER)
    assert not any(file.now[BITMAP_OFFSET : HEADER.data_offset])
    backend.flush()
    assert file.now[BITMAP_OFFSET] == 1
    assert file.calls == 4  # write, sync, bits, sync
    backend.flush()
    assert file.calls == 5


@pytest.mark.parametrize("fails_at", ["sync", "bits"])
def test_a_flush_that_failed_leaves_its_bits_for_the_next(fails_at: str) -> None:
    backend, file = open_overlay(fresh_content())
    backend.write([b"x" * CLUSTER], 0, CLUSTER)
    if fails_at == "sync":
        file.fail_next = OSError(errno.EIO, "I/O error")
    else:
        file.sync = lambda: setattr(file, "fail_next", OSError(errno.ENOSPC, "full"))  # type: ignore[method-assign]
    with pytest.raises(OSError):
        backend.flush()
    assert file.now[BITMAP_OFFSET] == 0
    file.__dict__.pop("sync", None)
    backend.flush()
    assert file.durable[BITMAP_OFFSET] == 1


def test_close_keeps_what_was_not_flushed(caplog: pytest.LogCaptureFixture) -> None:
    backend, file = open_overlay(fresh_content())
    backend.write([b"x" * CLUSTER], 0, CLUSTER)
    backend.close()
    backend.close()
    assert file.durable[BITMAP_OFFSET] == 1
    backend, file = open_overlay(fresh_content())
    backend.write([b"x" * CLUSTER], 0, CLUSTER)
    file.fail_next = OSError(errno.ENOSPC, "No space left on device")
    backend.close()
    assert "lost what was not flushed: No space left" in caplog.text


def test_clusters_grow_with_the_disk() -> None:
    def header(size_bytes: int) -> Header:
        return header_for(BaseIdentity(size_bytes, 0, bytes(32)))

    assert header(512).cluster_bytes == header(64 << 30).cluster_bytes == 4096
    assert header((64 << 30) + 512).cluster_bytes == 8192
    for size_bytes in (512, 1 << 20, 8 << 30, 1 << 40, 16 << 40):
        made = header(size_bytes)
        assert made.bitmap_bytes <= 2 << 20
        assert made.clusters <= 8 * made.bitmap_bytes
        assert made.data_offset % made.cluster_bytes == 0
        assert made.data_offset >= BITMAP_OFFSET + made.bitmap_bytes
