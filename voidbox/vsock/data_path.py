"""The way of nearly all packets: data of an open connection, taken or there at once.

`send_data` and `recv_data` do what the muxer's `send_pkt` and `recv_pkt` would, for what needs no
more than that; they do nothing, and say so, for all else. A request and its reply pass both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from voidbox.buffers import skip
from voidbox.vsock.connection import Connection
from voidbox.vsock.link import Key, Link, RxBuffers
from voidbox.vsock.packet import (
    DATA_HDR,
    HDR_BYTES,
    STREAM_DATA,
    VIRTIO_VSOCK_MAX_PKT_BUF_SIZE,
    VIRTIO_VSOCK_SHUTDOWN_RCV,
)

_unpack_data_header, _pack_data_header = DATA_HDR.unpack_from, DATA_HDR.pack_into
_FOR_DATA_ALONE = (True, False)  # what a stream is watched for, mostly


class DataPath:
    """The connections of one guest, as far as data concerns them. Thread: loop."""

    def __init__(self) -> None:
        self._links: dict[Key, Link] = {}
        self._pending: deque[Link] = deque()  # those with something for the guest, in turn
        self._resets: deque[tuple[int, int, int]] = deque()  # RSTs owed: both ports, and type
        self._rx_bytes = self._tx_bytes = 0

    # From the guest.

    def send_data(self, buffers: Sequence[memoryview]) -> bool:
        """Take a packet of the guest, if it is data for a program that waits for it.

        Returns:
            False: nothing was done; it is for send_pkt().
        """
        if not buffers or len(head := buffers[0]) < HDR_BYTES:
            return False
        key, length, kind, _, buf_alloc, fwd_cnt = _unpack_data_header(head)
        link = self._links.get(key)
        if link is None or kind != STREAM_DATA or link.buffered or (stream := link.stream) is None:
            return False
        # Linux: header and payload apart (up to 6.2), or in one buffer (since).
        if len(buffers) == 1:
            payload = head[HDR_BYTES : HDR_BYTES + length]
        elif len(buffers) == 2 and len(head) == HDR_BYTES:
            payload = buffers[1][:length]
        else:
            return False
        connection = link.connection
        if (
            len(payload) != length
            or not 0 < length <= VIRTIO_VSOCK_MAX_PKT_BUF_SIZE
            or not connection.receive_expected(length, buf_alloc, fwd_cnt)
        ):
            return False
        self._tx_bytes += length
        sent = stream.send([payload])
        if sent == length:
            connection.forwarded(length)
        else:
            self._keep_rest(link, [payload], length, sent)
        if link.buffered or link.readable or connection.owed:
            self._serve_soon(link)
            self.update_watch(link)
        return True

    def _to_host(self, link: Link, payload: list[memoryview], length: int) -> None:
        """Hand the guest's data on; keep what is not taken at once."""
        if link.buffered:
            sent: int | None = 0  # in order
        elif link.stream is not None and link.connection.takes_data:
            sent = link.stream.send(payload)
        else:
            sent = length  # nobody wants it
        self._keep_rest(link, payload, length, sent)

    def _keep_rest(
        self, link: Link, payload: list[memoryview], length: int, sent: int | None
    ) -> None:
        """`sent` bytes of the payload went on; None: the program takes no more."""
        if sent is None:
            link.connection.host_shutdown(VIRTIO_VSOCK_SHUTDOWN_RCV)
            sent = length
        if sent:
            link.connection.forwarded(sent)
        if sent < length:
            for piece in skip(payload, sent) if sent else payload:
                link.buffered += piece

    # To the guest.

    def has_pending_rx(self) -> bool:
        """Whether recv_pkt may have something."""
        return bool(self._pending or self._resets)

    def recv_data(self, rx: RxBuffers) -> bool:
        """Fill one RX buffer with data, if that is what is next.

        Returns:
            False: nothing was done; see recv_pkt().
        """
        if self._resets or not self._pending:
            return False
        link = self._pending[0]
        connection, stream = link.connection, link.stream
        if link.batch != 1 or not link.readable or stream is None or not connection.is_at_rest:
            return False
        buffers = rx.take_one()
        if buffers is None:
            return False
        head = buffers[0]
        if len(buffers) == 2 and len(head) == HDR_BYTES:
            area = buffers[1]
        elif len(buffers) == 1:
            area = head[HDR_BYTES:]
        else:
            return False
        room = len(area)
        if not 0 < room <= VIRTIO_VSOCK_MAX_PKT_BUF_SIZE or room > connection.credit_bytes:
            return False
        count = stream.recv_into([area])
        if not count:
            return False
        self._rx_bytes += count
        connection.sent(count)
        _pack_data_header(
            head, 0, link.front, count, STREAM_DATA, 0, connection.buf_alloc, connection.fwd_cnt
        )
        rx.commit_one(HDR_BYTES + count)
        self._pending.popleft()
        link.queued = False
        if count == room:
            link.batch = 2
            self._serve_soon(link)
        else:
            # A short read left the socket empty; if not, level-triggered epoll says so.
            link.readable = False
        if link.watched != _FOR_DATA_ALONE or link.readable:
            self.update_watch(link)
        return True

    # What waits, and for whom.

    def host_has_data(self, link: Link) -> bool:
        """The stream has data, and nothing else is new; as host_ready(), for what is most frequent.

        Returns:
            False: nothing was done, for more has to be seen to: see host_ready().
        """
        connection = link.connection
        if link.readable or not (connection.is_at_rest and connection.credit_bytes):
            return False
        link.readable = True
        self._enqueue(link)
        return True

    def _serve_soon(self, link: Link) -> None:
        """See that the guest gets what there is for it, or is asked for room."""
        connection: Connection = link.connection
        if link.readable and connection.sends_data:
            if connection.credit_bytes:
                self._enqueue(link)
            else:
                connection.request_credit()
        if connection.owed:
            self._enqueue(link)

    def _enqueue(self, link: Link) -> None:
        if not link.queued:
            link.queued = True
            self._pending.append(link)

    def update_watch(self, link: Link) -> None:
        """Have the stream report what is of use now.

        Data that is known to be there is not reported again while the guest has no room for it:
        a level-triggered loop would spin.
        """
        if link.stream is not None:
            wanted = not link.readable and link.connection.sends_data, bool(link.buffered)
            if wanted != link.watched:
                link.watched = wanted
                link.stream.watch(*wanted)
