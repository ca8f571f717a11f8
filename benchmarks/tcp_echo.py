"""What a round trip over TCP costs the machine, without a VM: a byte and its echo, a connection.

One thread plays all parts in turns: a guest that works the rings and speaks TCP, the machine's
event loop with the network device and the stack, a server on the loopback. So only what the loop
does is timed and counted: its callbacks and their system calls, bytecodes, calls of functions. A
connection is six segments of the guest (SYN, ACK, a byte, another, FIN, ACK) and three of ours
(SYN, the reply, FIN). Its socket is made in this process: the question to a keeper is not in it.

    python benchmarks/tcp_echo.py [--round-trips N] [--runs N]
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import statistics
import struct
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from types import FrameType

import driver

from voidbox.event_loop import EventLoop
from voidbox.memory import GuestMemory
from voidbox.nat.backend import NatBackend
from voidbox.nat.config import NatConfig
from voidbox.net.tcp_wire import TCP_ACK, TCP_FIN, TCP_PSH, TCP_SYN, Headers, syn_options
from voidbox.net.wire import Link
from voidbox.virtio.descriptors import VRING_DESC_F_WRITE
from voidbox.virtio.device import TRANSPORT_FEATURES
from voidbox.virtio.mmio import MmioTransport
from voidbox.virtio.net import NET_FEATURES, TX_QUEUE, VirtioNet
from voidbox.virtio.net_header import HDR, HDR_BYTES, VIRTIO_NET_HDR_F_NEEDS_CSUM
from voidbox.virtio.queue import vring_need_event

SIZE, BUFFER_BYTES = 256, 2048
TX_GPA = 0x100000
TCP_AT = 34  # in a frame
WARM_UP, TRACED = 200, 100
_DESC = struct.Struct("<QIHH")
_TCP = struct.Struct("!HHIIBBH")


class Ring:
    """The driver's end of a queue with one buffer a chain."""

    def __init__(self, memory: GuestMemory, base_gpa: int, flags: int) -> None:
        self._memory, self._base_gpa, self._flags = memory, base_gpa, flags
        self._avail = memory.words(base_gpa + 0x2000, "H", 3 + SIZE)
        self._used = memory.words(base_gpa + 0x3000, "H", 3 + 4 * SIZE)
        self._used_ring = memory.words(base_gpa + 0x3004, "I", 2 * SIZE)
        self._seen = 0
        data_gpa = base_gpa + 0x10000
        self._gpas = [data_gpa + BUFFER_BYTES * idx for idx in range(SIZE)]
        for idx in range(SIZE):
            self._describe(idx, BUFFER_BYTES)

    def _describe(self, idx: int, length: int) -> None:
        desc = _DESC.pack(self._gpas[idx], length, self._flags, 0)
        self._memory.write(self._base_gpa + 16 * idx, desc)

    def offer(self, idx: int, data: bytes = b"") -> bool:
        """Add a chain, with data for the device; True if it wants a kick."""
        if data:
            self._memory.write(self._gpas[idx], data)
            self._describe(idx, len(data))
        avail_idx = self._avail[1]
        self._avail[2 + avail_idx % SIZE] = idx
        self._avail[1] = (avail_idx + 1) & 0xFFFF
        return vring_need_event(self._used[2 + 4 * SIZE], avail_idx + 1, avail_idx)

    def close(self) -> None:
        """Let go of the memory."""
        for view in (self._avail, self._used, self._used_ring):
            view.release()

    def take(self) -> tuple[int, bytes] | None:
        """Return what the device returned next, and its data; then ask for an interrupt."""
        if self._used[1] == self._seen:
            self._avail[2 + SIZE] = self._seen
            return None
        slot = self._seen % SIZE * 2
        idx, length = self._used_ring[slot], self._used_ring[slot + 1]
        self._seen = (self._seen + 1) & 0xFFFF
        return idx, self._memory.read(self._gpas[idx], length)


class SteppedLoop(EventLoop):
    """An event loop on the caller's thread, which runs until nothing is ready."""

    def __init__(self) -> None:
        super().__init__(self._fail)
        self.ns = self.bytecodes = self.calls = 0
        self.is_traced = False

    @staticmethod
    def _fail(error: BaseException) -> None:
        traceback.print_exception(error)
        os._exit(1)

    def work(self) -> None:
        """Do what there is to do, and count it."""
        while True:
            sys.settrace(self._trace if self.is_traced else None)
            sys.setprofile(self._count_call if self.is_traced else None)
            started_ns = time.thread_time_ns()
            is_done = not self._pass()
            self.ns += time.thread_time_ns() - started_ns
            sys.setprofile(None)
            sys.settrace(None)
            if is_done:
                return

    def _pass(self) -> bool:
        """As _run(), once."""
        ready_fds = self._epoll.poll(0)
        for fd, ready in ready_fds:
            self._callbacks[fd](ready)
        if self._timers:
            self._run_timers()
        return bool(ready_fds)

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Callable[..., object]:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self.bytecodes += event == "opcode"
        return self._trace

    def _count_call(self, _frame: FrameType, event: str, _argument: object) -> None:
        self.calls += event in ("call", "c_call")


class Guest:
    """The machine, its server, and the guest in it with one connection at a time."""

    def __init__(self, memory: GuestMemory) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.loop = SteppedLoop()
        config = NatConfig(allow_host_ports=(self.port,))
        self._network = config.network
        self._backend = NatBackend(config, self.loop)
        device = VirtioNet(self._backend, config.network.guest_mac, call_later=self.loop.call_later)
        self._kick_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._rx = Ring(memory, 0, VRING_DESC_F_WRITE)
        self._tx = Ring(memory, TX_GPA, 0)
        for idx in range(SIZE):
            self._rx.offer(idx)
        page = memoryview(bytearray(4096))
        transport = MmioTransport(device, memory, lambda: None, self.loop.call_soon, page)
        events = select.EPOLLIN | select.EPOLLET
        self.loop.watch(self._kick_fd, events, partial(transport.notify, TX_QUEUE))
        self._transport = transport
        rings = [
            driver.Rings(SIZE, base_gpa, base_gpa + 0x2000, base_gpa + 0x3000)
            for base_gpa in (0, TX_GPA)
        ]
        driver.start(transport, NET_FEATURES | TRANSPORT_FEATURES, rings)
        self.loop.work()
        self._sent, self._source_port = 0, 20000
        self._headers: Headers
        self._seq = self._ack = 0

    def _send(self, flags: int, data: bytes = b"", options: bytes = b"") -> None:
        header = self._headers.pack(self._seq, self._ack, flags, 0x1000, len(data), None, options)
        self._seq += len(data) + bool(flags & (TCP_SYN | TCP_FIN))
        idx = self._sent % SIZE
        self._sent += 1
        net_header = HDR.pack(VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 0, 0, TCP_AT, 16, 0)
        if self._tx.offer(idx, net_header + header + data):
            os.eventfd_write(self._kick_fd, 1)

    def _receive(self) -> bytes:
        """Take the segments that are there; return their data."""
        while self._tx.take() is not None:
            pass
        received = b""
        while (taken := self._rx.take()) is not None:
            idx, buffer = taken
            segment = buffer[HDR_BYTES + TCP_AT :]
            _, _, seq, _, offset, flags, _ = _TCP.unpack_from(segment)
            data = segment[(offset >> 4) * 4 :]
            self._ack = seq + len(data) + bool(flags & (TCP_SYN | TCP_FIN))
            received += data
            self._rx.offer(idx)
        return received

    def connect(self) -> socket.socket:
        """Open a connection, and send a byte with it; return the server's end."""
        self._source_port += 1
        network = self._network
        self._headers = Headers(
            Link(network.gateway_mac, network.guest_mac),
            (network.guest_ip, self._source_port),
            (network.gateway_ip, self.port),
        )
        self._seq, self._ack = 1000, 0
        self._send(TCP_SYN, options=syn_options(1460, 7))
        self.loop.work()
        self._receive()
        self._send(TCP_ACK)
        self._send(TCP_ACK | TCP_PSH, b"e")
        self.loop.work()
        sock, _ = self.server.accept()
        assert sock.recv(1) == b"e"
        return sock

    def echo(self, sock: socket.socket) -> None:
        """Send a byte, and have it come back."""
        self._send(TCP_ACK | TCP_PSH, b"x")
        self.loop.work()
        sock.send(sock.recv(1))
        self.loop.work()
        assert self._receive() == b"x"

    def close(self, sock: socket.socket) -> None:
        """End the connection, from the guest's side."""
        self._send(TCP_ACK | TCP_FIN)
        self.loop.work()
        assert sock.recv(1) == b""
        sock.close()
        self.loop.work()
        self._receive()
        self._send(TCP_ACK)
        self.loop.work()

    def end(self) -> None:
        """Let go of everything."""
        self._transport.close()
        self._backend.close()
        self.loop.close()
        self.server.close()
        for ring in (self._rx, self._tx):
            ring.close()

    def connection(self) -> None:
        """A whole one, with an echo."""
        sock = self.connect()
        self.echo(sock)
        self.close(sock)


def measure(name: str, guest: Guest, work: Callable[[], None], count: int, runs: int) -> None:
    """Print what one `work` costs the loop."""
    loop = guest.loop

    def repeat(times: int) -> None:
        loop.ns = loop.bytecodes = loop.calls = 0
        for _ in range(times):
            work()

    repeat(WARM_UP)
    found_us = []
    for _ in range(runs):
        repeat(count)
        found_us.append(loop.ns / count / 1e3)
    loop.is_traced = True
    repeat(TRACED)
    loop.is_traced = False
    median_us = statistics.median(found_us)
    print(
        f"{name:12} {median_us:7.1f} µs, at best {min(found_us):.1f}; "
        f"{loop.bytecodes / TRACED:.0f} bytecodes, {loop.calls / TRACED:.0f} calls"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--round-trips", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with GuestMemory(4 << 20) as memory:
        guest = Guest(memory)
        with guest.connect() as sock:
            echo = partial(guest.echo, sock)
            measure("echo", guest, echo, options.round_trips, options.runs)
            guest.close(sock)
        count = options.round_trips // 10
        measure("connection", guest, guest.connection, count, options.runs)
        guest.end()


if __name__ == "__main__":
    main()
