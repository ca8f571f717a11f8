"""Packed layers: cut short, damaged, and larger than they look."""

from __future__ import annotations

import gzip
import io
import random
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.images import archives
from voidbox import zstd
from voidbox.images.errors import ImageError
from voidbox.images.limits import DEFAULT_LIMITS, Limits
from voidbox.images.unpack import unpack

DATA = random.Random(1).randbytes(50_000) + bytes(3_000_000)


def unpacked(data: bytes, limits: Limits = DEFAULT_LIMITS) -> bytes:
    spool = io.BytesIO()
    result = unpack(io.BytesIO(data), spool, limits)
    assert result.size == len(spool.getvalue())
    return spool.getvalue()


@pytest.mark.parametrize("pack", archives.PACKERS)
def test_every_way_of_packing(pack: object) -> None:
    for size in (0, 1, 5, 1000, len(DATA)):
        assert unpacked(pack(DATA[:size])) == DATA[:size]  # type: ignore[operator]


def test_zstd_frames_one_after_another() -> None:
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"note"
    frames = (
        skippable + archives.zstd(DATA) + archives.zstd(b"") + skippable + archives.zstd(b"end")
    )
    assert unpacked(frames) == DATA + b"end"


SHORT = DATA[40_000:60_000]
SHORT_PACKED = {"gzip": gzip.compress(SHORT), "two": archives.two_members(SHORT)}


@pytest.mark.parametrize("name", ["gzip", "two", "zstd"])
@settings(deadline=None)
@given(where=st.floats(0, 0.999), bit=st.integers(0, 7))
def test_damage_is_an_error_of_ours(name: str, where: float, bit: int) -> None:
    if name not in SHORT_PACKED:
        SHORT_PACKED[name] = archives.zstd(SHORT)
    packed = bytearray(SHORT_PACKED[name])
    packed[int(where * len(packed))] ^= 1 << bit
    try:
        assert len(unpacked(bytes(packed))) >= 0
    except ImageError as error:
        assert "layer" in str(error)


@pytest.mark.parametrize("pack", [gzip.compress, archives.zstd])
def test_cut_short(pack: object) -> None:
    packed = pack(DATA)  # type: ignore[operator]
    for length in (6, 100, len(packed) // 2, len(packed) - 5, len(packed) - 1):
        with pytest.raises(ImageError, match="ends too early"):
            unpacked(packed[:length])


def test_what_follows_gzip() -> None:
    packed = gzip.compress(b"x")
    assert unpacked(packed + bytes(70_000)) == b"x"
    for rest in (b"garbage", bytes(100) + b"garbage", bytes(70_000) + packed):
        with pytest.raises(ImageError, match="damaged|followed by something else"):
            unpacked(packed + rest)


def test_a_wrong_checksum() -> None:
    packed = bytearray(gzip.compress(DATA))
    packed[-5] ^= 1
    with pytest.raises(ImageError, match="damaged"):
        unpacked(bytes(packed))


@pytest.mark.parametrize(
    ("start", "name"), [(b"BZh91AY", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"PK\3\4__", "zip")]
)
def test_other_formats_are_called_by_name(start: bytes, name: str) -> None:
    with pytest.raises(ImageError, match=f"packed by {name}"):
        unpacked(start + bytes(100))


@pytest.mark.parametrize("pack", [gzip.compress, archives.zstd])
def test_bombs(pack: object) -> None:
    bomb = pack(bytes(20 << 20))  # type: ignore[operator]
    assert len(bomb) < 25_000
    limits = Limits(ratio=100, ratio_from_bytes=4 << 20)
    with pytest.raises(ImageError, match="more than 100 times its size"):
        unpacked(bomb, limits)
    with pytest.raises(ImageError, match="more than 5000000 bytes"):
        unpacked(bomb, Limits(total_bytes=5_000_000))
    assert len(unpacked(bomb)) == 20 << 20  # short enough to be honest


def test_nothing_more_is_unpacked_than_the_limit() -> None:
    spool = io.BytesIO()
    with pytest.raises(ImageError):
        unpack(io.BytesIO(gzip.compress(bytes(64 << 20))), spool, Limits(total_bytes=1 << 20))
    assert len(spool.getvalue()) <= 1 << 20


def test_many_members_take_no_time() -> None:
    compressor = zlib.compressobj(wbits=31)
    empty = compressor.compress(b"") + compressor.flush()
    started = time.process_time()
    assert unpacked(empty * 20_000 + gzip.compress(b"end")) == b"end"
    assert time.process_time() - started < 2


def test_without_libzstd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zstd, "_LIBRARY", "libnot.so.9")
    with pytest.raises(ImageError, match=r"libnot.so.9 is not installed \(Debian: libzstd1\)"):
        unpacked(b"\x28\xb5\x2f\xfd" + bytes(50))
