"""A file of the host, read in pieces, each with its checksum. Thread: one of the pool's."""

from __future__ import annotations

import hashlib
import os
from typing import BinaryIO

from voidbox.agent import protocol
from voidbox.agent.core import printable
from voidbox.errors import ConfigError, HostError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.transfer.extents import Extent, Holes, Piece


class SourcePiece(NamedTuple):
    """A piece that is to be sent."""

    piece: Piece
    checksum: bytes
    is_last: bool


def checksum_of(data: bytes) -> bytes:
    """Return the checksum that goes with a piece."""
    return hashlib.blake2b(data, digest_size=protocol.CHECKSUM_BYTES).digest()


def read_piece(source: BinaryIO, size: int, holes: Holes | None) -> SourcePiece:
    """Return the next piece, of `size` bytes of data; the last one has fewer, perhaps none.

    Raises:
        ConfigError, HostError: it cannot be read.
    """
    name = printable(str(getattr(source, "name", "the source")))
    try:
        if holes is None:
            data, extents = _read(source, size, name), None
            is_last = len(data) < size
        else:
            data, extents, is_last = _read_between(source, size, holes, name)
    except OSError as error:
        raise HostError(f"cannot read {name}: {error.strerror}", error.errno or 0) from error
    return SourcePiece(Piece(data, extents), checksum_of(data), is_last)


def _read_between(
    source: BinaryIO, size: int, holes: Holes, name: str
) -> tuple[bytes, list[Extent], bool]:
    """Read what is between holes; also return where it belongs, and whether the end has come."""
    parts: list[bytes] = []
    extents: list[Extent] = []
    while size and len(extents) < protocol.EXTENTS_MAX:
        hole, run = holes.next(source.tell())
        source.seek(hole, os.SEEK_CUR)
        data = _read(source, min(size, run), name)
        if hole or data:
            extents.append((hole, len(data)))
        if not data:
            return b"".join(parts), extents, True
        parts.append(data)
        size -= len(data)
    return b"".join(parts), extents, False


def _read(source: BinaryIO, size: int, name: str) -> bytes:
    """Read so many bytes; fewer at the end."""
    parts: list[bytes] = []
    while size and (data := source.read(size)) != b"":
        if not isinstance(data, bytes):
            why = "it has nothing yet and does not wait" if data is None else "it gives no bytes"
            raise ConfigError(f"cannot read {name}: {why}: open it for blocking, binary reading")
        parts.append(data)
        size -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)
