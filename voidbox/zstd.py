"""Zstandard by the system's libzstd, a piece at a time: Python 3.11 has no decoder of its own."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

_LIBRARY = "libzstd.so.1"
_PIECE_BYTES = 1 << 20


class ZstdError(Exception):
    """The stream is damaged, or there is no libzstd."""


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer, which have the same layout (zstd.h)."""

    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("pos", ctypes.c_size_t)]


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise ZstdError(f"{_LIBRARY} is not installed (Debian: libzstd1)") from error
    library.ZSTD_createDStream.restype = ctypes.c_void_p
    library.ZSTD_freeDStream.argtypes = [ctypes.c_void_p]
    step = library.ZSTD_decompressStream
    step.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Buffer), ctypes.POINTER(_Buffer)]
    step.restype = ctypes.c_size_t
    library.ZSTD_isError.argtypes = [ctypes.c_size_t]
    library.ZSTD_getErrorName.argtypes = [ctypes.c_size_t]
    library.ZSTD_getErrorName.restype = ctypes.c_char_p
    return library


class Decoder:
    """One stream of frames, one after another.

    Attributes:
        is_between_frames: so far nothing is missing: the stream may end here.

    Raises:
        ZstdError: there is no libzstd.
    """

    def __init__(self, piece_bytes: int = _PIECE_BYTES) -> None:
        self.is_between_frames = True
        self._library = _load()
        self._stream = self._library.ZSTD_createDStream()
        self._target = ctypes.create_string_buffer(piece_bytes)

    def close(self) -> None:
        """Free the decoder; as often as one likes."""
        stream, self._stream = self._stream, None
        if stream:
            self._library.ZSTD_freeDStream(stream)

    def decode(
        self, data: bytes, length: int | None = None, *, is_one_frame: bool = False
    ) -> Iterator[memoryview]:
        """Yield what the next bytes unpack to; each piece is valid until the next is asked for.

        Args:
            length: how many bytes of the data to take; all if None.
            is_one_frame: leave what comes after the first frame alone.
        Raises:
            ZstdError: it is damaged.
        """
        start = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p)
        packed = _Buffer(start, len(data) if length is None else length, 0)
        room = len(self._target)
        piece = _Buffer(ctypes.addressof(self._target), room, room)
        # A full piece means that there may be more, even where all has been read.
        while packed.pos < packed.size or (piece.pos == room and not self.is_between_frames):
            piece.pos = 0
            hint = self._library.ZSTD_decompressStream(
                self._stream, ctypes.byref(piece), ctypes.byref(packed)
            )
            if self._library.ZSTD_isError(hint):
                why = self._library.ZSTD_getErrorName(hint).decode()
                raise ZstdError(f"the Zstandard stream is damaged: {why}")
            self.is_between_frames = hint == 0
            if piece.pos:
                yield memoryview(self._target).cast("B")[: piece.pos]
            if is_one_frame and self.is_between_frames:
                return
