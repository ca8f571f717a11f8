"""All connections of one guest: who sends next, limits and time-outs. No I/O of its own, no clock.

The muxer stands between the guest's packets and the host's programs, and pulls rather than queues:
data stays in the program's socket until the guest has an RX buffer and credit for it, and is then
read straight into that buffer. The guest's data goes to the program straight from guest memory;
only what the program does not take at once is kept, at most `buf_alloc` bytes a connection.

Connections with something for the guest wait in one queue, each once, and take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from voidbox.buffers import write_bytes
from voidbox.vsock import packet
from voidbox.vsock.connection import Connection, State
from voidbox.vsock.data_path import DataPath
from voidbox.vsock.link import HostStream, Link, MuxerStatistics, RxBuffers
from voidbox.vsock.packet import (
    ENDS,
    HDR_BYTES,
    SHUTDOWN_MASK,
    VIRTIO_VSOCK_OP_REQUEST,
    VIRTIO_VSOCK_OP_RST,
    VIRTIO_VSOCK_OP_RW,
    VIRTIO_VSOCK_SHUTDOWN_RCV,
    VIRTIO_VSOCK_SHUTDOWN_SEND,
    VIRTIO_VSOCK_TYPE_STREAM,
    VMADDR_CID_HOST,
    Header,
    PacketError,
)
from voidbox.vsock.packet_writer import PacketWriter

CONNECTIONS_MAX = 1024
# The first connections get a window that keeps a fast stream going; the rest, one that keeps the
# memory behind all of them bounded: 64 MiB and 240 MiB if no program reads at all.
LARGE_WINDOW_CONNECTIONS = 64
LARGE_BUF_ALLOC = 1 << 20
BUF_ALLOC = 256 << 10
# RSTs that wait for RX buffers. Beyond it they are dropped: a guest that leaves so many unread has
# its own time-outs.
RESETS_MAX = 1024
# For the guest's RESPONSE to our REQUEST, and its RST to our SHUTDOWN.
ANSWER_TIMEOUT_NS = 2_000_000_000
# RX buffers filled in one turn of one connection, by one read.
RX_BATCH_MAX = 64
# What a flush offers at once; a Unix socket takes some 200 KiB.
FLUSH_BYTES = 256 << 10

_REQUESTED, _ESTABLISHED, _ORPHANED = State.REQUESTED, State.ESTABLISHED, State.ORPHANED

FIRST_HOST_PORT = 1 << 30  # ports of connections that the host's programs open, as Firecracker's
_HOST_PORTS = (1 << 31) - FIRST_HOST_PORT


class Muxer(DataPath):
    """The connections of one guest. Thread: loop.

    Args:
        guest_cid: the guest's address.
        connect: opens the host's end of a connection that the guest asks for; None refuses it.
        next_port: where ports are given out from: after a restore the guest may still know those
            that were given before.

    Attributes:
        has_new_deadline: next_deadline_ns() may have become earlier; for the owner to clear.
    """

    def __init__(
        self, guest_cid: int, connect: Callable[[int], HostStream | None], next_port: int = 0
    ) -> None:
        super().__init__()
        self.guest_cid = guest_cid
        self.has_new_deadline = False
        self._connect = connect
        # When the guest must have answered. All time-outs are alike, so the order is that of time.
        self._deadlines: dict[Link, int] = {}
        self._next_port = next_port % _HOST_PORTS
        self._writer = PacketWriter(guest_cid)
        self._opened_by_guest = self._opened_by_host = self._refused = self._expired = 0
        self._violations = self._invalid_packets = self._resets_dropped = 0

    # From the guest.

    def send_pkt(self, buffers: Sequence[memoryview], now_ns: int) -> None:
        """Take one packet of the guest; whatever it holds, no exception leaves.

        Args:
            buffers: the packet in guest memory.
        """
        try:
            header, payload = packet.parse(buffers, self.guest_cid)
        except PacketError:
            self._invalid_packets += 1
            return
        link = self._links.get(self._key(header.dst_port, header.src_port))
        if header.type != VIRTIO_VSOCK_TYPE_STREAM:
            self._refuse(header)
        elif link is None:
            if header.op == VIRTIO_VSOCK_OP_REQUEST:
                self._accept(header)
            else:
                self._refuse(header)
        elif link.connection.state is _ORPHANED:
            # The guest begins anew with ports whose last data is still on its way.
            self._refuse(header)
        else:
            self._receive(link, header, payload, now_ns)

    def _refuse(self, header: Header) -> None:
        """Answer a packet that belongs to no connection; never an RST by an RST."""
        if header.op != VIRTIO_VSOCK_OP_RST:
            self._refused += 1
            self._owe_reset(header.dst_port, header.src_port, header.type)

    def _accept(self, request: Header) -> None:
        stream = None
        if len(self._links) < CONNECTIONS_MAX:
            stream = self._connect(request.dst_port)
        if stream is None:
            self._refuse(request)
            return
        self._opened_by_guest += 1
        link = self._add(Connection.accept(request, self._buf_alloc()), stream)
        self._enqueue(link)
        self.update_watch(link)

    def _receive(self, link: Link, header: Header, payload: list[memoryview], now_ns: int) -> None:
        connection = link.connection
        was_requested = connection.state is _REQUESTED
        try:
            connection.receive(header)
        except PacketError:
            self._violations += 1
            connection.abort()
        else:
            if header.op == VIRTIO_VSOCK_OP_RW:
                self._tx_bytes += header.length
                self._to_host(link, payload, header.length)
                if not (link.buffered or link.readable or connection.owed):
                    return  # as for most packets, nothing follows from it
            elif was_requested and connection.state is _ESTABLISHED:
                self._deadlines.pop(link, None)
                if link.stream is not None:
                    link.stream.established(connection.local_port)
        self._settle(link, now_ns)
        self.update_watch(link)

    # To the guest.

    def recv_pkt(self, rx: RxBuffers, now_ns: int) -> int:
        """Fill RX buffers with what is next: one control packet, or data by one read.

        Returns:
            The number of packets; 0 if the guest has no buffer or nothing was pending after all.
        """
        while self._pending or self._resets:
            if self._resets:
                return self._send_reset(rx)
            link = self._pending[0]
            connection = link.connection
            credit_bytes = 0 if connection.owed else connection.credit_bytes
            buffers = rx.take(min(link.batch, 1 + credit_bytes // self._writer.room_bytes))
            if not buffers:
                return 0
            self._pending.popleft()
            link.queued = False
            written = self._fill(link, buffers, credit_bytes)
            rx.commit(written)
            if link.readable or link.buffered or not connection.is_at_rest:
                self._settle(link, now_ns)
            self.update_watch(link)
            if written:
                return len(written)
        return 0

    def _send_reset(self, rx: RxBuffers) -> int:
        """Send one of the RSTs that are owed; returns the number of packets, as recv_pkt."""
        buffers = rx.take(1)
        if not buffers:
            return 0
        local_port, peer_port, type_ = self._resets.popleft()
        header = Header(
            VMADDR_CID_HOST, self.guest_cid, local_port, peer_port,
            type=type_, op=VIRTIO_VSOCK_OP_RST,
        )  # fmt: skip
        write_bytes(buffers[0], header.pack())
        rx.commit([HDR_BYTES])
        return 1

    def _fill(self, link: Link, buffers: list[list[memoryview]], credit_bytes: int) -> list[int]:
        """Write one control packet, or as much data as there is; returns the packets' sizes."""
        connection = link.connection
        if connection.owed:
            write_bytes(buffers[0], self._writer.header(connection, connection.next_op()))
            connection.sent()
            return [HDR_BYTES]
        if link.stream is None or not link.readable or not connection.sends_data:
            return []
        if not credit_bytes:
            return []
        writer = self._writer
        iov, rooms, room_bytes = writer.payload_room(buffers, credit_bytes)
        count = link.stream.recv_into(iov)
        if not count:
            link.readable = False
            if count == 0:
                self._host_ended(link)
            return []
        self._rx_bytes += count
        written = writer.write_headers(connection, buffers, rooms, count)
        if count == room_bytes:
            link.batch = min(2 * link.batch, RX_BATCH_MAX)
        else:
            # A short read left the socket empty; if not, level-triggered epoll says so.
            link.readable = False
            link.batch = max(len(written), link.batch // 2)
        return written

    # From the host's programs.

    def open(self, stream: HostStream, guest_port: int, now_ns: int) -> Link | None:
        """A program wants a connection to a port of the guest; None if there are too many."""
        if len(self._links) >= CONNECTIONS_MAX:
            self._refused += 1
            return None
        self._opened_by_host += 1
        local_port = self._allocate_port(guest_port)
        link = self._add(Connection(local_port, guest_port, self._buf_alloc()), stream)
        self._start_timer(link, now_ns)
        self._enqueue(link)
        self.update_watch(link)
        return link

    @property
    def next_port(self) -> int:
        """What a muxer that goes on in this one's place is to begin with."""
        return self._next_port

    def _allocate_port(self, guest_port: int) -> int:
        """Take turns, so that a port comes again as late as possible."""
        while True:
            port = FIRST_HOST_PORT + self._next_port
            self._next_port = (self._next_port + 1) % _HOST_PORTS
            if self._key(port, guest_port) not in self._links:
                return port

    def _key(self, local_port: int, peer_port: int) -> bytes:
        return ENDS.pack(self.guest_cid, VMADDR_CID_HOST, peer_port, local_port)

    def host_ready(
        self, link: Link, *, readable: bool, writable: bool, hung_up: bool, now_ns: int
    ) -> None:
        """The stream has data (or its end), room, or its program is gone altogether.

        Afterwards see has_pending_rx(), serve the guest's RX queue, and then call update_watch(),
        unless nothing but data was ready and has been taken.
        """
        connection = link.connection
        if hung_up:
            link.hung_up = True
            link.watched = None  # it may leave the loop now
        if writable and link.buffered:
            self._flush(link)
        if connection.sends_data:
            link.readable |= readable or hung_up
        elif hung_up and connection.state not in (State.RESET, State.CLOSED):
            connection.host_shutdown(SHUTDOWN_MASK)
        self._settle(link, now_ns)

    def _host_ended(self, link: Link) -> None:
        """The program sends no more; if it hung up as well, it receives no more either."""
        link.connection.host_shutdown(SHUTDOWN_MASK if link.hung_up else VIRTIO_VSOCK_SHUTDOWN_SEND)

    def _flush(self, link: Link) -> None:
        stream = link.stream
        if stream is None:
            return
        with memoryview(link.buffered) as view, view[:FLUSH_BYTES] as part:
            sent = stream.send([part])
        if sent is None:
            link.connection.host_shutdown(VIRTIO_VSOCK_SHUTDOWN_RCV)
            sent = len(link.buffered)
        del link.buffered[:sent]
        link.connection.forwarded(sent)

    # Life and death.

    def _buf_alloc(self) -> int:
        return LARGE_BUF_ALLOC if len(self._links) < LARGE_WINDOW_CONNECTIONS else BUF_ALLOC

    def _add(self, connection: Connection, stream: HostStream) -> Link:
        key = self._key(connection.local_port, connection.peer_port)
        front = ENDS.pack(
            VMADDR_CID_HOST, self.guest_cid, connection.local_port, connection.peer_port
        )
        link = self._links[key] = Link(connection, stream, key, front)
        stream.link = link
        return link

    def _settle(self, link: Link, now_ns: int) -> None:
        """Draw the consequences of whatever has just happened to a connection."""
        connection = link.connection
        if connection.state is not _ESTABLISHED or connection.peer_shutdown:
            self._settle_closing(link, now_ns)
        self._serve_soon(link)

    def _settle_closing(self, link: Link, now_ns: int) -> None:
        """Do so for one that is not, or not in both directions, open."""
        connection = link.connection
        if connection.state in (State.DRAINING, State.ORPHANED):
            if not link.buffered:
                connection.delivered()
        elif connection.peer_shutdown and link.stream is not None:
            held_back = VIRTIO_VSOCK_SHUTDOWN_SEND if link.buffered else 0
            link.stream.shutdown(connection.peer_shutdown & ~held_back)
        state = connection.state
        if state in (State.RESET, State.CLOSED):
            self._remove(link)
        elif state is State.CLOSING and link.stream is not None:
            self._drop_stream(link)
            self._start_timer(link, now_ns)

    def _start_timer(self, link: Link, now_ns: int) -> None:
        self.has_new_deadline = True
        # Never there already: an answer takes it out, and so the newest is always the last.
        self._deadlines[link] = now_ns + ANSWER_TIMEOUT_NS

    def next_deadline_ns(self) -> int | None:
        """When `expire` has to be called next."""
        return next(iter(self._deadlines.values()), None)

    def expire(self, now_ns: int) -> None:
        """End the connections whose guest did not answer in time."""
        while self._deadlines:
            link, deadline_ns = next(iter(self._deadlines.items()))
            if deadline_ns > now_ns:
                return
            del self._deadlines[link]
            self._expired += 1
            link.connection.expire()
            self._settle(link, now_ns)

    def _remove(self, link: Link) -> None:
        if self._links.pop(link.key, None) is None:
            return
        self._deadlines.pop(link, None)
        if link.queued:
            self._pending.remove(link)
            link.queued = False
        connection = link.connection
        if connection.state is State.RESET:
            self._owe_reset(connection.local_port, connection.peer_port, VIRTIO_VSOCK_TYPE_STREAM)
        self._drop_stream(link)

    def _drop_stream(self, link: Link) -> None:
        link.buffered = bytearray()
        link.readable = False
        if link.stream is not None:
            link.stream.link = None
            link.stream.close()
            link.stream = None

    def _owe_reset(self, local_port: int, peer_port: int, type_: int) -> None:
        if len(self._resets) < RESETS_MAX:
            self._resets.append((local_port, peer_port, type_))
        else:
            self._resets_dropped += 1

    def reset(self) -> None:
        """Forget every connection, without a word to the guest, which forgot them too."""
        for link in list(self._links.values()):
            self._drop_stream(link)
        self._links.clear()
        self._pending.clear()
        self._resets.clear()
        self._deadlines.clear()

    def statistics(self) -> MuxerStatistics:
        """Return the counters."""
        return MuxerStatistics(
            connections=len(self._links),
            buffered_bytes=sum(len(link.buffered) for link in self._links.values()),
            opened_by_guest=self._opened_by_guest,
            opened_by_host=self._opened_by_host,
            refused=self._refused,
            expired=self._expired,
            violations=self._violations,
            invalid_packets=self._invalid_packets,
            resets_dropped=self._resets_dropped,
            rx_bytes=self._rx_bytes,
            tx_bytes=self._tx_bytes,
        )
