"""The guest's end of vsock, written apart from the host's: sockets with credit, as Linux has them.

It checks the host as it goes: a packet without credit, out of place or wrongly addressed is an
AssertionError.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

HDR = struct.Struct("<QQIIIHHIII")
INVALID, REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(8)
RCV, SEND, BOTH = 1, 2, 3
HOST_CID, GUEST_CID = 2, 42
PACKET_BYTES = 64 << 10


def raw(op: int, src_port: int, dst_port: int, payload: bytes = b"", **fields: int) -> bytes:
    """A packet of the guest; keyword arguments replace header fields."""
    values = {
        "src_cid": GUEST_CID, "dst_cid": HOST_CID, "src_port": src_port, "dst_port": dst_port,
        "length": len(payload), "type": 1, "op": op, "flags": 0,
        "buf_alloc": 256 << 10, "fwd_cnt": 0,
    }  # fmt: skip
    assert fields.keys() <= values.keys()
    return HDR.pack(*(values | fields).values()) + payload


class GuestSocket:
    """One stream socket of the guest."""

    def __init__(self, guest: Guest, port: int, host_port: int) -> None:
        self.guest = guest
        self.port = port
        self.host_port = host_port
        self.connected = False
        self.gone = False  # RST came or went
        self.host_shutdown = 0
        self.sent_shutdown = 0
        self.unread = bytearray()
        self.data = bytearray()  # what the guest's program has read
        self.unsent = bytearray()
        self.reading = True
        self.buf_alloc = guest.buf_alloc
        self.fwd_cnt = self.rx_cnt = self.tx_cnt = guest.first_cnt
        self.told_fwd_cnt = self.fwd_cnt
        self.host_buf_alloc = 0
        self.host_fwd_cnt = guest.first_cnt
        self.ops: list[int] = []

    def packet(self, op: int, payload: bytes = b"", flags: int = 0) -> None:
        self.told_fwd_cnt = self.fwd_cnt
        self.guest.transmit(
            raw(
                op, self.port, self.host_port, payload,
                flags=flags, buf_alloc=self.buf_alloc, fwd_cnt=self.fwd_cnt % (1 << 32),
            )
        )  # fmt: skip

    def send(self, data: bytes) -> None:
        self.unsent += data
        self.push()

    @property
    def credit(self) -> int:
        return self.host_buf_alloc - (self.tx_cnt - self.host_fwd_cnt) % (1 << 32)

    def push(self) -> None:
        while self.connected and not self.gone and self.unsent and self.guest.can_transmit():
            size = min(self.credit, PACKET_BYTES, len(self.unsent))
            if size <= 0:
                return
            payload = bytes(self.unsent[:size])
            del self.unsent[:size]
            self.tx_cnt += size
            self.packet(RW, payload)

    def read(self) -> None:
        """The guest's program reads all there is; credit is given back as Linux does."""
        self.data += self.unread
        self.fwd_cnt += len(self.unread)
        self.unread.clear()
        if self.buf_alloc - (self.fwd_cnt - self.told_fwd_cnt) < min(
            PACKET_BYTES, self.buf_alloc // 2 + 1
        ):
            self.packet(CREDIT_UPDATE)

    def shutdown(self, flags: int) -> None:
        self.sent_shutdown |= flags
        self.packet(SHUTDOWN, flags=flags)

    def close(self) -> None:
        if not self.gone:
            self.shutdown(BOTH)

    def receive(self, header: tuple[int, ...], payload: bytes) -> None:
        *_, op, flags, buf_alloc, fwd_cnt = header
        assert not self.gone or op in (RST, SHUTDOWN, CREDIT_UPDATE), "the host spoke to the dead"
        self.ops.append(op)
        self.host_buf_alloc, self.host_fwd_cnt = buf_alloc, fwd_cnt
        if op == RST:
            self.gone = True
            self.guest.forget(self)
        elif op == RESPONSE:
            assert not self.connected
            self.connected = True
        elif op == SHUTDOWN:
            assert flags & ~self.host_shutdown, "a SHUTDOWN that says nothing new"
            self.host_shutdown |= flags
            if self.host_shutdown == BOTH and not self.unread:
                self.packet(RST)
                self.gone = True
                self.guest.forget(self)
        elif op == RW:
            assert self.connected and not self.host_shutdown & SEND
            self.rx_cnt += len(payload)
            assert self.rx_cnt - self.fwd_cnt <= self.buf_alloc, "the host exceeds its credit"
            self.unread += payload
            if self.reading:
                self.read()
        elif op == CREDIT_REQUEST:
            self.packet(CREDIT_UPDATE)
        else:
            assert op == CREDIT_UPDATE
        self.push()


class Guest:
    """All sockets of the guest, over any way to transmit a packet."""

    def __init__(self, transmit: Callable[[bytes], None]) -> None:
        self.transmit = transmit
        self.can_transmit: Callable[[], bool] = lambda: True
        self.buf_alloc = 256 << 10
        self.first_cnt = 0  # of the byte counters of new sockets
        self.sockets: dict[tuple[int, int], GuestSocket] = {}
        self.listening: set[int] = set()
        self.answers = True
        self.accepted: list[GuestSocket] = []
        self.stray: list[tuple[int, ...]] = []  # packets for no socket
        self.next_port = 50000

    def connect(self, host_port: int) -> GuestSocket:
        self.next_port += 1
        sock = GuestSocket(self, self.next_port, host_port)
        self.sockets[sock.port, host_port] = sock
        sock.packet(REQUEST)
        return sock

    def forget(self, sock: GuestSocket) -> None:
        self.sockets.pop((sock.port, sock.host_port), None)

    def deliver(self, data: bytes) -> None:
        """Take one packet of the host."""
        header, payload = HDR.unpack(data[:44]), data[44:]
        src_cid, dst_cid, host_port, port, length, type_, op, *_ = header
        assert (src_cid, dst_cid, length) == (HOST_CID, GUEST_CID, len(payload))
        assert length <= PACKET_BYTES and (op == RW or not length)
        sock = self.sockets.get((port, host_port))
        if sock is not None:
            assert type_ == 1
            sock.receive(header, payload)
        elif op == REQUEST and self.answers and port in self.listening:
            sock = self.sockets[port, host_port] = GuestSocket(self, port, host_port)
            sock.connected = True
            sock.host_buf_alloc, sock.host_fwd_cnt = header[8], header[9]
            self.accepted.append(sock)
            sock.packet(RESPONSE)
        else:
            self.stray.append(header)
            if op != RST and self.answers:
                self.transmit(raw(RST, port, host_port))
