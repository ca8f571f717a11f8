"""A client's half of RFC 6455, as far as a stream of bytes needs it. No I/O.

Frames of the server may come in any pieces. What is sent is one binary frame a piece of data.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from enum import IntEnum
from typing import NamedTuple

from voidbox.errors import AgentError

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # §1.3
_HEADER_BYTES_MAX = 16 << 10
_PAYLOAD_BYTES_MAX = 1 << 20
_FIN, _MASKED = 0x80, 0x80
_SHORT_MAX, _U16, _U64 = 125, 126, 127  # §5.2, "Payload length"
_LENGTH_U16, _LENGTH_U64 = struct.Struct("!H"), struct.Struct("!Q")


class Opcode(IntEnum):
    """§5.2."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class Frame(NamedTuple):
    """A frame of the server's."""

    opcode: Opcode
    payload: bytes


class Refused(AgentError):
    """The server does not open a WebSocket.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"the server refuses the connection: {status}")
        self.status = status
        self.body = body


class Opening:
    """The handshake, §4.1."""

    def __init__(self) -> None:
        self._key = base64.b64encode(os.urandom(16))
        self._data = b""

    def request(self, host: str, path: str, headers: dict[str, str]) -> bytes:
        """Return what to send."""
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: {host}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {self._key.decode()}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join((*lines, "", "")).encode("latin-1")

    def feed(self, data: bytes) -> bytes | None:
        """Take what came; return what follows the answer, once that is whole.

        Raises:
            Refused: the server does not open it.
            AgentError: it is no answer.
        """
        self._data += data
        head, end, rest = self._data.partition(b"\r\n\r\n")
        if not end:
            if len(self._data) > _HEADER_BYTES_MAX:
                raise AgentError("the server's answer has no end")
            return None
        status, *lines = head.split(b"\r\n")
        words = status.split(b" ")
        if len(words) < 2 or not words[1].isdigit():
            raise AgentError("the server answers no HTTP")
        if int(words[1]) != 101:
            raise Refused(int(words[1]), rest)
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in lines)
        }
        digest = hashlib.sha1(self._key + _MAGIC, usedforsecurity=False).digest()
        if headers.get(b"sec-websocket-accept") != base64.b64encode(digest):
            raise AgentError("the server's answer opens no WebSocket")
        return rest


class Frames:
    """Takes the server's bytes apart."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take what came; return the frames that are whole.

        Raises:
            AgentError: the server breaks the protocol.
        """
        self._data += data
        found = []
        while (frame := self._next()) is not None:
            found.append(frame)
        return found

    def _next(self) -> Frame | None:
        data = self._data
        if len(data) < 2:
            return None
        length, at = data[1] & 0x7F, 2
        if data[1] & _MASKED or data[0] & 0x70:  # §5.1, and no extension was asked for
            raise AgentError("the server breaks the WebSocket protocol")
        if length > _SHORT_MAX:
            form = _LENGTH_U16 if length == _U16 else _LENGTH_U64
            if len(data) < at + form.size:
                return None
            (length,) = form.unpack_from(data, at)
            at += form.size
        if length > _PAYLOAD_BYTES_MAX:
            raise AgentError(f"the server sends a frame of {length} bytes")
        if len(data) < at + length:
            return None
        try:
            opcode = Opcode(data[0] & 0x0F)
        except ValueError:
            raise AgentError("the server breaks the WebSocket protocol") from None
        frame = Frame(opcode, bytes(data[at : at + length]))
        del data[: at + length]
        return frame


def encode(opcode: Opcode, payload: bytes) -> bytes:
    """Return a frame to the server, masked as §5.3 wants it."""
    size, mask = len(payload), os.urandom(4)
    first = bytes((_FIN | opcode,))
    if size <= _SHORT_MAX:
        head = bytes((_MASKED | size,))
    elif size <= 0xFFFF:
        head = bytes((_MASKED | _U16,)) + _LENGTH_U16.pack(size)
    else:
        head = bytes((_MASKED | _U64,)) + _LENGTH_U64.pack(size)
    pattern = (mask * (size // 4 + 1))[:size]
    # As one number: a loop over the bytes takes a hundred times as long.
    masked = int.from_bytes(payload, "little") ^ int.from_bytes(pattern, "little")
    return first + head + mask + masked.to_bytes(size, "little")
