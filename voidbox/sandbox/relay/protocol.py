"""The relay's protocol: how a guest's program hands messages to the host and asks for its own.

The program connects to port RELAY_PORT of the host (CID 2). Both sides send frames,

    struct frame { char magic[4]; u32 length; u8 payload[]; }

whose payload is one MessagePack map (see packing.py). The program sends a request and gets one
reply; then it may send the next on the same connection.

    request ("op")              reply
    send       to, text         outcome
    broadcast  text             outcomes: a map of name to outcome
    receive    wait, count      messages: a list of maps from, text, at; waiting: how many are left
    taken                       an empty map
    peers                       name: the sandbox's own; peers: a list of names
    any of them                 error: one line, in place of the above

Messages that `receive` handed out are gone from the mailbox with the connection's next request,
which `taken` is for. Where the connection ends before, they go back: who is killed while it
receives loses none.

Sans-IO. This file runs on both sides: the image build packs it beside the guest's agent.
"""

from __future__ import annotations

import struct

RELAY_PORT = 5001
MAGIC = b"vbR1"  # the digit is the version
HEADER = struct.Struct("<4sI")

# A message's text, as UTF-8. Six times as much, in JSON, must fit into a line between two owners.
TEXT_BYTES_MAX = 8 << 10
REQUEST_BYTES_MAX = 12 << 10
REPLY_BYTES_MAX = 64 << 10
WAIT_S_MAX = 60  # of one `receive`; who wants to wait longer asks again
COUNT_MAX = 64  # messages in one reply

# What became of a message.
DELIVERED = "delivered"
FULL = "full"  # the mailbox has no room for a message of this sender
UNKNOWN = "unknown"  # no sandbox has this name
OTHER_TEAM = "other-team"
NOT_RUNNING = "not-running"
NO_ANSWER = "no-answer"  # the sandbox's process did not answer, so nobody knows
OUTCOMES = frozenset((DELIVERED, FULL, UNKNOWN, OTHER_TEAM, NOT_RUNNING, NO_ANSWER))

assert HEADER.size == 8


class ProtocolError(Exception):
    """The peer broke the protocol: the connection is of no further use."""


def encode(payload: bytes) -> bytes:
    """Return a frame's bytes."""
    return HEADER.pack(MAGIC, len(payload)) + payload


class Decoder:
    """Cuts a byte stream into payloads, one at a time.

    Args:
        payload_bytes_max: what the peer may send in one frame.
    """

    __slots__ = ("_buffer", "_payload_bytes_max")

    def __init__(self, payload_bytes_max: int) -> None:
        self._payload_bytes_max = payload_bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        self._buffer += data

    def next(self) -> bytes | None:
        """Return the next payload, or None while it is not whole.

        Raises:
            ProtocolError: not our protocol, another version, too long a payload.
        """
        buffer = self._buffer
        start = bytes(buffer[: len(MAGIC)])
        if not MAGIC.startswith(start):
            raise ProtocolError(f"no frame: it starts with {start!r}")
        if len(buffer) < HEADER.size:
            return None
        length = HEADER.unpack_from(buffer)[1]
        if length > self._payload_bytes_max:
            raise ProtocolError(f"a payload of {length} bytes: {self._payload_bytes_max} at most")
        end = HEADER.size + length
        if len(buffer) < end:
            return None
        payload = bytes(buffer[HEADER.size : end])
        del buffer[:end]
        return payload
