"""Unpack a layer into a temporary file, within limits: gzip, Zstandard, or not packed at all.

Everything here comes from a stranger: nothing is held in memory but a piece at a time, and a few
kilobytes that would become terabytes are noticed on the way.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO

from voidbox import zstd
from voidbox.images.errors import ImageError
from voidbox.images.limits import Limits
from voidbox.named_tuple import NamedTuple

# Short: what follows a member of gzip is copied, and there may be one every 20 bytes.
_READ_BYTES = 64 << 10
_PIECE_BYTES = 1 << 20
_GZIP_WBITS = zlib.MAX_WBITS | 16

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE_MAGIC = b"\x2a\x4d\x18"  # behind a first byte of 0x50 to 0x5f
_NOT_OURS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip", b"070701": "cpio"}
_MAGIC_BYTES = 6


class Unpacked(NamedTuple):
    """A layer as it lies in its temporary file.

    Attributes:
        size: in bytes.
        diff_id: "sha256:…" of it: what an image's configuration calls it.
    """

    size: int
    diff_id: str


class _Counted:
    """A stream that counts what was read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.count = 0

    def read(self, size: int = _READ_BYTES) -> bytes:
        data = self._stream.read(size)
        self.count += len(data)
        return data

    def read_start(self) -> bytes:
        """Return as many bytes as tell the format, fewer only at the end."""
        start = b""
        while len(start) < _MAGIC_BYTES:
            data = self.read()
            if not data:
                break
            start += data
        return start


def unpack(stream: BinaryIO, spool: IO[bytes], limits: Limits) -> Unpacked:
    """Copy a layer's tar archive to a file, unpacked.

    Args:
        limits: `total_bytes` is what this layer may have.
    Raises:
        ImageError: it is damaged, cut short, packed in another way or larger than the limits.
        OSError: reading or writing failed.
    """
    packed = _Counted(stream)
    digest = hashlib.sha256()
    size = 0
    for piece in _pieces(packed):
        size += len(piece)
        if size > limits.total_bytes:
            raise ImageError(f"a layer unpacks to more than {limits.total_bytes} bytes")
        if size > max(limits.ratio_from_bytes, limits.ratio * packed.count):
            raise ImageError(
                f"a layer unpacks to more than {limits.ratio} times its size: "
                f"{size} bytes from {packed.count} so far"
            )
        digest.update(piece)
        spool.write(piece)
    spool.flush()
    return Unpacked(size, f"sha256:{digest.hexdigest()}")


def _pieces(packed: _Counted) -> Iterator[bytes | memoryview]:
    start = packed.read_start()
    if start.startswith(_GZIP_MAGIC):
        return _gzip(packed, start)
    if start.startswith(_ZSTD_MAGIC) or start[1:4] == _ZSTD_SKIPPABLE_MAGIC:
        return _zstd(packed, start)
    for magic, name in _NOT_OURS.items():
        if start.startswith(magic):
            raise ImageError(f"a layer is packed by {name}: only gzip and zstd are known here")
    return _plain(packed, start)


def _plain(packed: _Counted, data: bytes) -> Iterator[bytes]:
    while data:
        yield data
        data = packed.read()


def _gzip(packed: _Counted, data: bytes) -> Iterator[bytes]:
    """Unpack members, one after another (RFC 1952, 2.2); zeros may follow the last one."""
    decoder = zlib.decompressobj(_GZIP_WBITS)
    is_padding = False
    try:
        while data:
            if is_padding:
                if data.strip(b"\0"):
                    raise ImageError("a layer's gzip stream is followed by something else")
                data = packed.read()
                continue
            yield decoder.decompress(data, _PIECE_BYTES)
            if decoder.eof:
                data = decoder.unused_data or packed.read()
                is_padding = data.startswith(b"\0")
                decoder = zlib.decompressobj(_GZIP_WBITS)
            else:
                data = decoder.unconsumed_tail or packed.read()
                if not data:
                    raise ImageError("a layer's gzip stream ends too early")
    except zlib.error as error:
        raise ImageError(f"a layer's gzip stream is damaged: {error}") from error


def _zstd(packed: _Counted, data: bytes) -> Iterator[memoryview]:
    try:
        with contextlib.closing(zstd.Decoder()) as decoder:
            while data:
                yield from decoder.decode(data)
                data = packed.read()
            if not decoder.is_between_frames:
                raise ImageError("a layer's Zstandard stream ends too early")
    except zstd.ZstdError as error:
        raise ImageError(f"a layer cannot be unpacked: {error}") from error
