"""UDP and ICMP echo of the guest, and their sockets on the host.

One connected socket for each (guest's port, remote address and port), so that only the far end that
was spoken to may answer, and the host's kernel reports its ICMP errors to us: they go to the guest.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

from voidbox.buffers import write_bytes
from voidbox.net.host import Datagrams
from voidbox.net.line import Line, RxFrames
from voidbox.net.wire import (
    ETH_BYTES,
    ICMP_BYTES,
    ICMP_ECHOREPLY,
    ICMP_FRAG_NEEDED,
    ICMP_HOST_UNREACH,
    ICMP_NET_UNREACH,
    ICMP_PKT_FILTERED,
    ICMP_PORT_UNREACH,
    IP_BYTES,
    IPPROTO_UDP,
    MTU,
    icmp_message,
    udp_header,
)

DATAGRAM_BYTES_MAX = 65535 - IP_BYTES
UDP_IDLE_NS = 180_000_000_000
PING_IDLE_NS = 60_000_000_000

_UNREACHABLE_CODES = {
    errno.ECONNREFUSED: ICMP_PORT_UNREACH,
    errno.ENETUNREACH: ICMP_NET_UNREACH,
    errno.EHOSTUNREACH: ICMP_HOST_UNREACH,
    errno.EACCES: ICMP_PKT_FILTERED,
    errno.EPERM: ICMP_PKT_FILTERED,
    errno.EMSGSIZE: ICMP_FRAG_NEEDED,
}


def unreachable_code(error: int) -> int:
    """Return the code of ICMP_DEST_UNREACH that says what an errno does."""
    return _UNREACHABLE_CODES.get(error, ICMP_HOST_UNREACH)


class DatagramFlow:
    """One flow: the DatagramOwner of its socket. Thread: loop.

    Args:
        key: (protocol, guest's port or echo identifier, remote address, remote port or 0).
        on_ready: there is something for the guest.
        on_error: takes the flow and an errno that the socket reported.
    """

    __slots__ = (
        "_line", "_on_error", "_on_ready", "datagrams", "is_queued", "key", "last_ns", "quote",
        "readable",
    )  # fmt: skip

    def __init__(
        self,
        line: Line,
        key: tuple[int, int, int, int],
        on_ready: Callable[[DatagramFlow], None],
        on_error: Callable[[DatagramFlow, int], None],
    ) -> None:
        self.key = key
        self.datagrams: Datagrams | None = None
        self.last_ns = 0
        self.quote = b""  # the start of the guest's last packet, for errors about it
        self.readable = False
        self.is_queued = False
        self._line = line
        self._on_ready = on_ready
        self._on_error = on_error

    @property
    def idle_ns(self) -> int:
        """How long it lives without traffic."""
        return UDP_IDLE_NS if self.key[0] == IPPROTO_UDP else PING_IDLE_NS

    @property
    def has_pending(self) -> bool:
        """Whether transmit() may have something."""
        return self.readable

    def ready(self) -> None:
        """See DatagramOwner."""
        self.readable = True
        self._on_ready(self)

    def transmit(
        self, rx: RxFrames, scratch: memoryview, more: Callable[[bytes], None], now_ns: int
    ) -> bool:
        """Send the next datagram to the guest; False if it has no buffer.

        Args:
            scratch: where a datagram fits.
            more: takes the further frames of one that is longer than the MTU.
        """
        if self.datagrams is None:
            self.readable = False
            return True
        buffers = rx.reserve(ETH_BYTES + MTU)
        if buffers is None:
            return False
        size = self.datagrams.recv_into(scratch)
        if size is None or size < 0:
            rx.cancel()
            if size is None:
                self.readable = False
            else:
                self._on_error(self, -size)
            return True
        self.last_ns = now_ns
        protocol, payload = self._payload(scratch[:size])
        first, *others = self._line.packet_frames(self.key[2], protocol, payload)
        write_bytes(buffers, first)
        rx.commit(len(first))
        self._line.sent(buffers, len(first))
        for frame in others:
            more(frame)
        return True

    def _payload(self, data: memoryview) -> tuple[int, bytes]:
        protocol, guest_port, remote, remote_port = self.key
        if protocol == IPPROTO_UDP:
            ends = (remote, remote_port), (self._line.guest_ip, guest_port)
            return protocol, udp_header(*ends, [data], len(data)) + data
        # The kernel put an identifier of its own; the guest knows its own only.
        (sequence,) = struct.unpack_from("!H", data, 6) if len(data) >= ICMP_BYTES else (0,)
        rest = guest_port << 16 | sequence
        return protocol, icmp_message(ICMP_ECHOREPLY, 0, rest, bytes(data[ICMP_BYTES:]))

    def close(self) -> None:
        """Close the socket."""
        if self.datagrams is not None:
            self.datagrams.close()
            self.datagrams = None
        self.readable = False
