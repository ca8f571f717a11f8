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
        # As Linux up to 6.2 lays them out. All at once: a stream has thousands a second.
        if set(map(len, buffers)) == {2}:
            headers, areas = zip(*buffers, strict=True)
            rooms = list(map(len, areas))
            room_bytes = sum(rooms)
            if (
                set(map(len, headers)) == {HDR_BYTES}
                and room_bytes <= credit_bytes
                and max(rooms) <= VIRTIO_VSOCK_MAX_PKT_BUF_SIZE
            ):
                self.room_bytes = rooms[-1]
                return list(areas), rooms, room_bytes
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
        written: list[int] = []
        done = 0
        while count:
            size = rooms[done]
            length = size if size < count else count
            # How many more are full to the same size, if all are alike: mostly they are.
            alike = count // size if length == size and rooms.count(size) == len(rooms) else 1
            header = self.header(connection, VIRTIO_VSOCK_OP_RW, length)
            for buffer in buffers[done : done + alike]:
                first = buffer[0]
                if len(first) >= HDR_BYTES:
                    first[:HDR_BYTES] = header
                else:
                    write_bytes(buffer, header)
            written += [HDR_BYTES + length] * alike
            count -= length * alike
            done += alike
        return written

    def header(self, connection: Connection, op: int, length: int = 0) -> bytes:
        """Return the header of a packet of `length` bytes of data."""
        return VIRTIO_VSOCK_HDR.pack(
            VMADDR_CID_HOST, self._guest_cid, connection.local_port, connection.peer_port,
            length, VIRTIO_VSOCK_TYPE_STREAM, op,
            connection.local_shutdown if op == VIRTIO_VSOCK_OP_SHUTDOWN else 0,
            connection.buf_alloc, connection.fwd_cnt,
        )  # fmt: skip
