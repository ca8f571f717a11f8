"""Packets for the guest, in its receive buffers: where data may go, and the headers before it."""

from __future__ import annotations

from voidbox.buffers import clip, write_bytes
from voidbox.vsock import packet
from voidbox.vsock.connection import Connection
from voidbox.vsock.packet import (
    HDR_BYTES,
    VIRTIO_VSOCK_HDR,
    VIRTIO_VSOCK_MAX_PKT_BUF_SIZE,
    VIRTIO_VSOCK_OP_RW,
    VIRTIO_VSOCK_OP_SHUTDOWN,
    VIRTIO_VSOCK_TYPE_STREAM,
    VMADDR_CID_HOST,
)


class PacketWriter:
    """Thread: loop.

    Args:
        guest_cid: the guest's address.

    Attributes:
        room_bytes: for data in the last buffer that was looked at; Linux's are all alike.
    """

    def __init__(self, guest_cid: int) -> None:
        self.room_bytes = 4096
        self._guest_cid = guest_cid

    def payload_room(
        self, buffers: list[list[memoryview]], credit_bytes: int
    ) -> tuple[list[memoryview], list[int], int]:
        """Return where data may go, all buffers in one list; how much in each, and in all."""
        if len(buffers) == 1:  # as for requests and replies
            parts = buffers[0]
            if len(parts) == 2 and len(parts[0]) == HDR_BYTES:
                size = len(parts[1])
                if size <= credit_bytes and size <= VIRTIO_VSOCK_MAX_PKT_BUF_SIZE:
                    self.room_bytes = size
                    return parts[1:], [size], size
        # As Linux up to 6.2 lays them out. All at once: a stream has thousands a second.
        iov = [buffer[1] for buffer in buffers if len(buffer) == 2 and len(buffer[0]) == HDR_BYTES]
        if len(iov) == len(buffers):
            rooms = list(map(len, iov))
            room_bytes = sum(rooms)
            if room_bytes <= credit_bytes and max(rooms) <= VIRTIO_VSOCK_MAX_PKT_BUF_SIZE:
                self.room_bytes = rooms[-1]
                return iov, rooms, room_bytes
        return self._clipped_room(buffers, credit_bytes)

    def _clipped_room(
        self, buffers: list[list[memoryview]], credit_bytes: int
    ) -> tuple[list[memoryview], list[int], int]:
        """Return the same of any buffers, and where the credit is less."""
        iov: list[memoryview] = []
        rooms: list[int] = []
        left_bytes = credit_bytes
        for buffer in buffers:
            if not left_bytes:
                break
            pieces = packet.payload_buffers(buffer)
            room_bytes = size = sum(map(len, pieces))
            if size > left_bytes or size > VIRTIO_VSOCK_MAX_PKT_BUF_SIZE:
                size = min(left_bytes, VIRTIO_VSOCK_MAX_PKT_BUF_SIZE)
                pieces = clip(pieces, size)
            iov += pieces
            rooms.append(size)
            left_bytes -= size
        self.room_bytes = room_bytes
        return iov, rooms, credit_bytes - left_bytes

    def write_headers(
        self,
        connection: Connection,
        buffers: list[list[memoryview]],
        rooms: list[int],
        count: int,
    ) -> list[int]:
        """Write a header before each part of `count` bytes; returns the packets' sizes.

        They count as sent. Most buffers of a driver are of one size, and most headers the same.
        """
        connection.sent(count)
        first = buffers[0][0]
        if count <= rooms[0] and len(first) >= HDR_BYTES:
            first[:HDR_BYTES] = self.header(connection, VIRTIO_VSOCK_OP_RW, count)
            return [HDR_BYTES + count]
        written: list[int] = []
        last, header = 0, b""
        for buffer, size in zip(buffers, rooms, strict=False):
            length = size if size < count else count
            if length != last:
                last, header = length, self.header(connection, VIRTIO_VSOCK_OP_RW, length)
            if len(buffer[0]) >= HDR_BYTES:
                buffer[0][:HDR_BYTES] = header
            else:
                write_bytes(buffer, header)
            written.append(HDR_BYTES + length)
            count -= length
            if not count:
                break
        return written

    def header(self, connection: Connection, op: int, length: int = 0) -> bytes:
        """Return the header of a packet of `length` bytes of data."""
        return VIRTIO_VSOCK_HDR.pack(
            VMADDR_CID_HOST, self._guest_cid, connection.local_port, connection.peer_port,
            length, VIRTIO_VSOCK_TYPE_STREAM, op,
            connection.local_shutdown if op == VIRTIO_VSOCK_OP_SHUTDOWN else 0,
            connection.buf_alloc, connection.fwd_cnt,
        )  # fmt: skip
