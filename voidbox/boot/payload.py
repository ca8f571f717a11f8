"""The vmlinux packed inside a bzImage, unpacked by the host instead of by the guest.

A bzImage carries a compressed ELF vmlinux and a decompressor (Documentation/arch/x86/boot.rst,
payload_offset and payload_length). The host's libraries unpack it several times faster than the
kernel's own code does in a cold guest. Linux appends the unpacked size to every format but gzip,
which ends with it anyway.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
from collections.abc import Callable, Iterator

from voidbox import zstd

_GZIP_MAGIC = b"\x1f\x8b"
_XZ_MAGIC = b"\xfd7zXZ\x00"
_LZMA_MAGIC = b"\x5d\x00\x00"
_BZIP2_MAGIC = b"BZh"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"

_CHUNK_BYTES = 4 << 20
_LZ4_LEGACY_BLOCK_BYTES = 8 << 20  # LZ4 frame format, "legacy frame"
_SIZE_BYTES = 4
_UNPACKED_BYTES_MAX = 1 << 30


class Undecodable(Exception):
    """The payload is damaged, of a format unknown here, or its library is not installed."""


def unpacked_bytes(payload: bytes) -> int:
    """Return the size that the payload's last four bytes promise.

    Raises:
        Undecodable: it cannot be a kernel's.
    """
    if len(payload) < 2 * _SIZE_BYTES:
        raise Undecodable("empty")
    size = int.from_bytes(payload[-_SIZE_BYTES:], "little")
    if not 0 < size <= _UNPACKED_BYTES_MAX:
        raise Undecodable(f"an unpacked size of {size} bytes")
    return size


def unpack(payload: bytes) -> Iterator[bytes | memoryview]:
    """Yield the unpacked payload in pieces; each is valid until the next is asked for.

    Raises:
        Undecodable: see there; possibly after some pieces.
    """
    for magic, decoder in _DECODERS:
        if payload.startswith(magic):
            return decoder(payload)
    raise Undecodable(f"unknown compression {payload[:4].hex()}")


def _gzip(payload: bytes) -> Iterator[bytes]:
    import zlib

    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    rest = payload
    try:
        while rest and not decoder.eof:
            yield decoder.decompress(rest, _CHUNK_BYTES)
            rest = decoder.unconsumed_tail
    except zlib.error as error:
        raise Undecodable(str(error)) from error


def _xz(payload: bytes) -> Iterator[bytes]:
    import lzma

    yield from _stream(lzma.LZMADecompressor(), payload, lzma.LZMAError)


def _bzip2(payload: bytes) -> Iterator[bytes]:
    import bz2

    yield from _stream(bz2.BZ2Decompressor(), payload, OSError)


def _stream(decoder: object, payload: bytes, failure: type[Exception]) -> Iterator[bytes]:
    """Drive a decompressor object of the standard library, a bounded piece at a time."""
    data = payload[:-_SIZE_BYTES]
    try:
        while not decoder.eof:  # type: ignore[attr-defined]
            piece = decoder.decompress(data, _CHUNK_BYTES)  # type: ignore[attr-defined]
            if not piece and not data:
                raise Undecodable("it ends too early")
            yield piece
            data = b""
    except (failure, EOFError) as error:
        raise Undecodable(str(error)) from error


def _load_library(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise Undecodable(f"{name} is not installed") from error


def _lz4(payload: bytes) -> Iterator[memoryview]:
    """LZ4's legacy frame: blocks of up to 8 MiB, each behind its compressed size."""
    decompress = _load_library("liblz4.so.1").LZ4_decompress_safe
    decompress.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    decompress.restype = ctypes.c_int
    source = ctypes.cast(ctypes.c_char_p(payload), ctypes.c_void_p).value or 0
    block = ctypes.create_string_buffer(_LZ4_LEGACY_BLOCK_BYTES)
    offset, end = len(_LZ4_LEGACY_MAGIC), len(payload) - _SIZE_BYTES
    while offset + _SIZE_BYTES <= end:
        (length,) = struct.unpack_from("<I", payload, offset)
        offset += _SIZE_BYTES
        if length > end - offset:
            raise Undecodable("an LZ4 block reaches past the end")
        produced = decompress(source + offset, block, length, _LZ4_LEGACY_BLOCK_BYTES)
        if produced < 0:
            raise Undecodable("an LZ4 block is damaged")
        yield memoryview(block).cast("B")[:produced]
        offset += length


def _zstd(payload: bytes) -> Iterator[memoryview]:
    try:
        with contextlib.closing(zstd.Decoder(_CHUNK_BYTES)) as decoder:
            yield from decoder.decode(payload, len(payload) - _SIZE_BYTES, is_one_frame=True)
            if not decoder.is_between_frames:
                raise Undecodable("the Zstandard stream ends too early")
    except zstd.ZstdError as error:
        raise Undecodable(str(error)) from error


_Decoder = Callable[[bytes], Iterator[bytes | memoryview]]
_DECODERS: tuple[tuple[bytes, _Decoder], ...] = (
    (_LZ4_LEGACY_MAGIC, _lz4),
    (_ZSTD_MAGIC, _zstd),
    (_XZ_MAGIC, _xz),
    (_GZIP_MAGIC, _gzip),
    (_LZMA_MAGIC, _xz),
    (_BZIP2_MAGIC, _bzip2),
)
