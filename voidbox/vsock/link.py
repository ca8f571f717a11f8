"""What the muxer holds of a connection, and what it asks of the two sides it joins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from voidbox.named_tuple import NamedTuple
from voidbox.vsock.connection import Connection

Key = bytes  # packet.ENDS of what the guest sends


class RxBuffers(Protocol):
    """The guest's receive buffers."""

    def take(self, count: int) -> list[list[memoryview]]:
        """Return up to `count` buffers, each longer than a header; none if the guest has none."""
        ...

    def commit(self, written_bytes: Sequence[int]) -> None:
        """The first buffers taken hold packets of these sizes; the others go back untouched."""
        ...

    def take_one(self) -> list[memoryview] | None:
        """Return the next buffer, as take() does; it stays where it is, unless it is committed."""
        ...

    def commit_one(self, written_bytes: int) -> None:
        """The buffer of take_one() holds a packet of that size."""
        ...


class HostStream(Protocol):
    """A connection's end on the host. No method blocks or raises.

    Attributes:
        link: set by the muxer.
    """

    link: Link | None

    def recv_into(self, buffers: list[memoryview]) -> int | None:
        """Read what fits; None if there is nothing now, 0 if there will be nothing more."""
        ...

    def send(self, buffers: list[memoryview]) -> int | None:
        """Send what is taken at once, which may be 0; None if nothing is taken any more."""
        ...

    def shutdown(self, flags: int) -> None:
        """The guest sends no more (SEND), receives no more (RCV), or both."""
        ...

    def established(self, host_port: int) -> None:
        """The guest accepted the connection that the program opened."""
        ...

    def watch(self, readable: bool, writable: bool) -> None:
        """Report it to `Muxer.host_ready` when there is data, room, or the program is gone."""
        ...

    def close(self) -> None:
        """The connection is over."""
        ...


class Link:
    """A connection, its host stream, and what waits between the two.

    Args:
        key: how the guest's packets name it.
        front: packet.ENDS of what goes to the guest.
    """

    __slots__ = (
        "batch",
        "buffered",
        "connection",
        "front",
        "hung_up",
        "key",
        "queued",
        "readable",
        "stream",
        "watched",
    )

    def __init__(self, connection: Connection, stream: HostStream, key: Key, front: bytes) -> None:
        self.connection = connection
        self.key = key
        self.front = front
        self.stream: HostStream | None = stream  # None: the program is gone
        self.buffered = bytearray()  # the guest's data that the program did not take yet
        self.readable = False  # the stream has data or its end for us, as far as we know
        self.hung_up = False  # the program closed; what it wrote may still be there
        self.queued = False  # in the queue of those with something for the guest
        # What HostStream.watch was told last; None: it is to be told again.
        self.watched: tuple[bool, bool] | None = None
        self.batch = 1  # RX buffers for the next read: grows while reads fill them


class MuxerStatistics(NamedTuple):
    """Counters since the start; connections and buffered_bytes are of now."""

    connections: int = 0
    buffered_bytes: int = 0
    opened_by_guest: int = 0
    opened_by_host: int = 0
    refused: int = 0
    expired: int = 0
    violations: int = 0
    invalid_packets: int = 0
    resets_dropped: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
