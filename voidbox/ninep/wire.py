"""What 9P messages are made of: little-endian numbers, and strings behind their u16 length.

A message is `size[4] type[1] tag[2]`, the size its own included, and then its fields.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Any, NamedTuple

HEADER = struct.Struct("<IBH")
assert HEADER.size == 7
# Twrite's fields before its data, and Rread's: size type tag, then fid offset count, or count.
WRITE_HEADER = struct.Struct("<IBHIQI")
READ_HEADER = struct.Struct("<IBHI")
assert (WRITE_HEADER.size, READ_HEADER.size) == (23, 11)
LERROR = struct.Struct("<IBHI")
QID = struct.Struct("<BIQ")  # type version path
QID_BYTES = QID.size

_U16 = struct.Struct("<H")


class Qid(NamedTuple):
    """The server's name of a file: the same for the same file, and for no other."""

    type: int
    version: int
    path: int

    def pack(self) -> bytes:
        """Return its 13 bytes."""
        return QID.pack(*self)


def refused(number: int) -> OSError:
    """Return what a handler raises for an Rlerror of this errno."""
    return OSError(number, os.strerror(number))


class Fields:
    """Takes a request's fields one after the other.

    Raises:
        OSError: EPROTO, for a message that ends before its fields do, or after.
    """

    __slots__ = ("_at", "_message")

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._at = HEADER.size

    def take(self, fields: struct.Struct) -> tuple[Any, ...]:
        """Take numbers."""
        start = self._at
        self._at = start + fields.size
        if self._at > len(self._message):
            raise refused(errno.EPROTO)
        return fields.unpack_from(self._message, start)

    def text(self) -> bytes:
        """Take a string."""
        (length,) = self.take(_U16)
        start = self._at
        self._at = start + length
        if self._at > len(self._message):
            raise refused(errno.EPROTO)
        return self._message[start : self._at]

    def end(self) -> None:
        """Nothing may be left."""
        if self._at != len(self._message):
            raise refused(errno.EPROTO)


def text(value: bytes) -> bytes:
    """Return a string as messages have it."""
    return _U16.pack(len(value)) + value
