"""LZ4 blocks by the system's liblz4, which looks for the shortest ones that it can find."""

from __future__ import annotations

import ctypes

_LIBRARY = "liblz4.so.1"
LEVEL_MAX = 12  # LZ4HC_CLEVEL_MAX (lz4hc.h)


class Lz4Error(Exception):
    """There is no liblz4."""


class Compressor:
    """Compresses blocks. Thread: any, several at a time; the interpreter's lock is not held.

    Raises:
        Lz4Error: there is no liblz4.
    """

    def __init__(self, level: int = LEVEL_MAX) -> None:
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise Lz4Error(f"{_LIBRARY} is not installed (Debian: liblz4-1)") from error
        self._level = level
        self._compress = library.LZ4_compress_HC
        self._compress.argtypes = [ctypes.c_char_p, ctypes.c_char_p, *[ctypes.c_int] * 3]
        self._compress.restype = ctypes.c_int

    def compress(self, data: bytes, bytes_max: int) -> bytes | None:
        """Return a block, or None if it would be longer than so many bytes."""
        target = ctypes.create_string_buffer(bytes_max)
        length = self._compress(data, target, len(data), bytes_max, self._level)
        return target.raw[:length] if length > 0 else None
