"""The protocol between the host and the guest's agent: frames, and who may send how much.

One connection carries many frames until either side leaves. A frame is

    struct frame { char magic[4]; u8 version, type; u16 flags; u32 request, length; u8 payload[]; }

The host numbers its requests; whatever belongs to one carries its number, so that many run at the
same time. A request is answered by any number of EVENT and DATA frames and exactly one RESULT or
ERROR, which ends it. CANCEL asks for that end. DATA is raw bytes; all other payloads are one
MessagePack map (see packing.py).

Nobody is flooded: in each direction a request may have WINDOW_BYTES of DATA and EVENT frames under
way, headers counted. CREDIT gives back what the receiver has used up. Who sends more than it may is
cut off. An ERROR for request 0 says why the connection is about to end.

Sans-IO. This file runs on both sides: the image build packs it beside the guest's agent. Imports
are few because they count into the start of every sandbox.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = 1
MAGIC = b"vbxA"
AGENT_PORT = 1234
SECRET_BYTES = 32
SECRET_PATH = "/etc/voidbox/secret"
# Lines "name value": address (with its prefix), gateway, dns, search (domains, with commas between
# them; perhaps). Without the file no network.
NETWORK_PATH = "/etc/voidbox/network"
# Lines "name value": user, workdir, of an image that is the root. Without the file it is our own.
IMAGE_PATH = "/etc/voidbox/image"
# Lines "kind access source target", of what is to be mounted; see guest_agent/mounts.py.
MOUNTS_PATH = "/etc/voidbox/mounts"
HANDSHAKE_S = 10  # a client that has not shown the secret by then is sent away

HEADER = struct.Struct("<4sBBHII")
PAYLOAD_BYTES_MAX = 1 << 20
# Of DATA that we send at a time, and of frames that wait for the connection: little enough that
# requests take turns. A serial line carries a few bytes a millisecond.
CHUNK_BYTES, OUTGOING_BYTES_MAX = 64 << 10, 256 << 10
SERIAL_CHUNK_BYTES, SERIAL_OUTGOING_BYTES_MAX = 1 << 10, 4 << 10
WINDOW_BYTES = 1 << 20
REQUESTS_MAX = 1024  # at a time on one connection
# Of a file with holes, in one request: pairs of bytes without data, and with data after them.
EXTENTS_MAX = 4096
CHECKSUM_BYTES = 32  # BLAKE2b-256 of a file's bytes
# Beginnings of files whose client is gone: how long they wait for it, and how many at a time.
PART_KEPT_S, PARTS_MAX = 600, 64

assert HEADER.size == 16

# Handshake. The agent answers a PING at any time and serves nothing before one with the secret.
PING, PONG = 1, 2
# Answers.
RESULT, ERROR, EVENT = 3, 4, 5
# Streams of a request.
DATA, END, CREDIT, CANCEL = 6, 7, 8, 9
# Requests. The numbers of the groups leave room for more.
EXEC, ATTACH, PROCESSES, KILL, RESIZE = 16, 17, 18, 19, 20
FILE_READ, FILE_WRITE, FILE_LIST, FILE_STAT = 32, 33, 34, 35
FILE_MKDIR, FILE_REMOVE, FILE_RENAME, FILE_WATCH, FILE_LINK = 36, 37, 38, 39, 40
METRICS, SET_CLOCK, SHUTDOWN, QUIESCE, RELEASE, ADOPT = 48, 49, 50, 51, 52, 53
DIAL = 64

REQUESTS = frozenset((*range(EXEC, RESIZE + 1), *range(FILE_READ, FILE_LINK + 1)))
REQUESTS |= frozenset((*range(METRICS, ADOPT + 1), DIAL))
FROM_HOST = REQUESTS | {PING, DATA, END, CREDIT, CANCEL}
FROM_GUEST = frozenset((PONG, RESULT, ERROR, EVENT, DATA, CREDIT))

# Flags of DATA from a command: which of its streams. 0 is what the request has only one of.
STDOUT, STDERR = 1, 2

# ERROR codes, beside the names of errno ("ENOENT").
BAD_REQUEST, CANCELLED, BUSY, CHECKSUM = "bad-request", "cancelled", "busy", "checksum"
GONE = "gone"  # the beginning of a file, to which more was to come

# What an agent that can do it lists in its PONG.
CAN_RESUME, CAN_LINK, CAN_ADOPT, CAN_HOLES = "resume", "links", "adopt", "holes"
# EXEC's "keep", DIAL, and "details" and "attributes" of files.
CAN_KEEP, CAN_DIAL, CAN_DETAIL = "keep", "dial", "details"
# That all is mounted which the host names; or, with a source and an errno's name, why one is not.
CAN_MOUNT, CANNOT_MOUNT = "mounts", "mounts:"

_CREDIT = struct.Struct("<I")


class ProtocolError(Exception):
    """The peer broke the protocol: the connection is of no further use."""


class Frame:
    """One frame.

    Attributes:
        type: one of the numbers above.
        request: the host's number of the request; 0 for PING and PONG.
        flags: of DATA: the stream.
    """

    __slots__ = ("flags", "payload", "request", "type")

    def __init__(self, type: int, request: int, payload: bytes, flags: int) -> None:
        self.type = type
        self.request = request
        self.payload = payload
        self.flags = flags

    def __repr__(self) -> str:
        size = len(self.payload)
        return f"Frame(type={self.type}, request={self.request}, flags={self.flags}, {size} bytes)"


def encode(type: int, request: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """Return a frame's bytes."""
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise ValueError(f"a payload of {len(payload)} bytes: {PAYLOAD_BYTES_MAX} at most")
    return HEADER.pack(MAGIC, VERSION, type, flags, request, len(payload)) + payload


def encode_credit(request: int, amount: int) -> bytes:
    """Return a CREDIT frame: `amount` more bytes may be sent."""
    return encode(CREDIT, request, _CREDIT.pack(amount))


def decode_credit(payload: bytes) -> int:
    """Return the amount of a CREDIT frame.

    Raises:
        ProtocolError: not four bytes.
    """
    if len(payload) != _CREDIT.size:
        raise ProtocolError("a CREDIT that is not four bytes long")
    amount: int = _CREDIT.unpack(payload)[0]
    return amount


class Decoder:
    """Cuts a byte stream into frames.

    Args:
        allowed: the types that this peer may send.
    """

    __slots__ = ("_allowed", "_buffer")

    def __init__(self, allowed: frozenset[int]) -> None:
        self._allowed = allowed
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take bytes; yield the frames that are whole now. Exhaust it before the next call.

        Raises:
            ProtocolError: not our protocol, another version, an unknown type, too long a payload.
        """
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= HEADER.size:
            magic, version, type, flags, request, length = HEADER.unpack_from(buffer, at)
            self._check(magic, version, type, length)
            start = at + HEADER.size
            if len(buffer) - start < length:
                break
            at = start + length
            yield Frame(type, request, bytes(memoryview(buffer)[start:at]), flags)
        del buffer[:at]

    def _check(self, magic: bytes, version: int, type: int, length: int) -> None:
        if magic != MAGIC:
            raise ProtocolError(f"no frame: it starts with {magic!r}")
        if version != VERSION:
            raise ProtocolError(f"protocol version {version}: this side speaks {VERSION}")
        if type not in self._allowed:
            raise ProtocolError(f"unknown type of frame: {type}")
        if length > PAYLOAD_BYTES_MAX:
            raise ProtocolError(f"a payload of {length} bytes: {PAYLOAD_BYTES_MAX} at most")


class SendWindow:
    """How much DATA may still be sent on a request."""

    __slots__ = ("available",)

    def __init__(self) -> None:
        self.available = WINDOW_BYTES

    @property
    def room(self) -> int:
        """How long a payload may be sent now."""
        return max(0, self.available - HEADER.size)

    def spend(self, payload_bytes: int) -> None:
        """Note that a frame with such a payload is sent; the caller has looked at `room`."""
        self.available -= HEADER.size + payload_bytes

    def grant(self, amount: int) -> None:
        """Take a CREDIT.

        Raises:
            ProtocolError: the peer gives back what was never sent.
        """
        self.available += amount
        if self.available > WINDOW_BYTES:
            raise ProtocolError("more CREDIT than was used")


class ReceiveWindow:
    """How much DATA the peer may still send on a request, and what is to be given back."""

    __slots__ = ("_available", "_used")

    def __init__(self) -> None:
        self._available = WINDOW_BYTES
        self._used = 0

    def receive(self, payload_bytes: int) -> None:
        """Note that a frame with such a payload came.

        Raises:
            ProtocolError: more than was granted.
        """
        self._available -= HEADER.size + payload_bytes
        if self._available < 0:
            raise ProtocolError("more DATA than the window allows")

    def use(self, payload_bytes: int) -> int:
        """Note that such a frame is worked off; return the credit to send now, often 0.

        Credit is given back in quarters of the window: fewer frames, and the sender never stalls.
        """
        self._used += HEADER.size + payload_bytes
        if self._used < WINDOW_BYTES // 4:
            return 0
        credit, self._used = self._used, 0
        self._available += credit
        return credit
