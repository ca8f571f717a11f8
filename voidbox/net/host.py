"""What the stack asks of the host: sockets, as far as it must know them. One adapter makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

RESET = -1  # recv_into(): the other side ended the connection by force


class Stream(Protocol):
    """The host's end of a TCP connection. No method blocks or raises.

    Attributes:
        is_connected: it is; else the owner hears of the end of connect().
    """

    @property
    def is_connected(self) -> bool: ...

    def recv_into(self, buffers: list[memoryview]) -> int | None:
        """Read what fits; None if there is nothing now, 0 after the last byte, or RESET."""
        ...

    def send(self, buffers: Sequence[memoryview | bytearray]) -> int | None:
        """Send what is taken at once, which may be 0; None if nothing is taken any more."""
        ...

    def shutdown_write(self) -> None:
        """The guest sends no more."""
        ...

    def watch(self, readable: bool, writable: bool) -> None:
        """Report to the owner when there is data (or the end), or room."""
        ...

    def is_broken(self) -> bool:
        """Whether it was ended by force; after its last byte recv_into() does not tell."""
        ...

    def keep_alive(self) -> None:
        """It was silent for long: see that a far end that is gone is noticed. Idempotent."""
        ...

    def close(self, is_reset: bool) -> None:
        """End it; with is_reset the far end gets a RST too."""
        ...


class StreamOwner(Protocol):
    """Whom a stream tells what happened to it."""

    def connected(self, error: int) -> None:
        """connect() has ended: with an errno, or 0 for success."""
        ...

    def ready(self, readable: bool, writable: bool) -> None:
        """There is something to read (or the end, or an error), or room to send."""
        ...


class Datagrams(Protocol):
    """A connected datagram socket: UDP, or ping. No method blocks or raises."""

    def send(self, buffers: Sequence[memoryview | bytes]) -> int:
        """Send one datagram; returns an errno, or 0."""
        ...

    def recv_into(self, buffer: memoryview) -> int | None:
        """Receive one datagram; its size, None if there is none now, or -errno."""
        ...

    def watch(self, readable: bool) -> None:
        """Report to the owner when there is a datagram or an error."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class DatagramOwner(Protocol):
    """Whom a datagram socket tells what happened to it."""

    def ready(self) -> None:
        """There is a datagram or an error to receive."""
        ...


class Host(Protocol):
    """Makes sockets. An errno in place of one: it could not be made. Addresses are integers."""

    def connect_tcp(self, address: int, port: int, owner: StreamOwner) -> Stream | int:
        """Begin to connect; the owner hears of the end, unless the stream is connected already."""
        ...

    def open_udp(self, address: int, port: int, owner: DatagramOwner) -> Datagrams | int:
        """A UDP socket that talks to one address."""
        ...

    def open_ping(self, address: int, owner: DatagramOwner) -> Datagrams | int:
        """An ICMP echo socket (ping socket) that talks to one address."""
        ...
