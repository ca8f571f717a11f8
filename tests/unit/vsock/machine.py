"""A whole vsock but for KVM: Unix sockets, event loop, device, transport, rings, guest driver."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from tests.unit.virtio.driver import IrqLine, MmioDriver
from tests.unit.vsock.guest import GUEST_CID, Guest
from tests.unit.vsock.loop import EpollLoop
from voidbox.memory import GuestMemory
from voidbox.virtio.mmio import MmioTransport
from voidbox.virtio.vsock import EVENT_QUEUE, RX_QUEUE, TX_QUEUE, PacketQueues, VirtioVsock
from voidbox.vsock.unix import UnixBackend

PATIENCE_S = 60.0


class Machine:
    """One thread runs both sides in turns, so the order of things is the same every time."""

    def __init__(self, path: Path, *, rx_layout: tuple[int, ...] = (44, 4096)) -> None:
        self.path = str(path)
        self.memory = GuestMemory(64 << 20)
        self.loop = EpollLoop()
        self.backend = UnixBackend(self.path, GUEST_CID, self.loop)
        self.data_plane = PacketQueues(self.backend)
        self.device = VirtioVsock(GUEST_CID, self.data_plane)
        self.line = IrqLine()
        self.transport = MmioTransport(
            self.device, self.memory, self.line.pulse, self.loop.call_soon
        )
        self.driver = MmioDriver(self.transport, self.memory, self.line)
        self.rx_layout = rx_layout
        self.post_rx = True
        self.events: list[bytes] = []
        self._outbox: deque[bytes] = deque()
        self.guest = Guest(self._outbox.append)

    def boot(self) -> None:
        """Probe the device as Linux does: all rx and event buffers posted, then kicks."""
        self.driver.probe()
        self.guest.can_transmit = lambda: len(self._outbox) < 64
        self.refill()
        for _ in range(8):
            self.driver.queues[EVENT_QUEUE].add(writable=[4])
        self.driver.kick(EVENT_QUEUE)
        self.turn()

    def refill(self) -> None:
        rx = self.driver.queues[RX_QUEUE]
        while self.post_rx and len(rx.free_descs) >= len(self.rx_layout):
            rx.add(writable=list(self.rx_layout))
        self.driver.kick(RX_QUEUE)

    def turn(self, timeout_s: float = 0) -> None:
        """One turn of the loop, then the guest handles what it got."""
        self.loop.turn(timeout_s)
        if not self.driver.queues:
            return
        rx, tx, event = self.driver.queues
        tx.completed()
        if done := rx.completed():
            for packet in done:
                self.guest.deliver(packet.data)
            self.refill()
        for packet in event.completed():
            self.events.append(packet.data)
        sent = False
        while self._outbox and len(tx.free_descs) >= 2:
            data = self._outbox.popleft()
            tx.add(readable=[data[:44], data[44:]] if len(data) > 44 else [data])
            sent = True
        if sent:
            self.driver.kick(TX_QUEUE)
        for sock in list(self.guest.sockets.values()):
            if sock.unsent:
                sock.push()

    def until(self, condition: Callable[[], object], what: str = "it") -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline_s, f"{what} never came"
            self.turn(0 if self.loop.soon or self._outbox else 0.002)

    def settle(self) -> None:
        """Turn until nothing happens any more; fails if the loop is still busy after that."""
        for _ in range(2000):
            calls = self.loop.calls
            self.turn()
            if self.loop.calls == calls and not self._outbox and not self.loop.soon:
                return
        raise AssertionError("the loop spins")

    def close(self) -> None:
        self.backend.close()
        self.transport.close()
        assert not self.loop.callbacks, "descriptors left in the loop"
        self.loop.close()
        self.memory.close()

    # Host programs.

    def connect(self, line: bytes) -> socket.socket:
        program = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        program.connect(self.path)
        program.setblocking(False)
        program.send(line)
        return program

    def receive(self, program: socket.socket, count: int) -> bytes:
        """Read `count` bytes, or fewer if the end comes first."""
        data = bytearray()
        ended = False

        def more() -> bool:
            nonlocal ended
            try:
                part = program.recv(min(count - len(data), 1 << 20))
            except BlockingIOError:
                return False
            except ConnectionResetError:
                part = b""
            ended = not part
            data.extend(part)
            return ended or len(data) == count

        self.until(more, f"{count} bytes (have {len(data)})")
        return bytes(data)

    def send(self, program: socket.socket, data: bytes) -> None:
        rest = memoryview(data)

        def more() -> bool:
            nonlocal rest
            try:
                rest = rest[program.send(rest) :]
            except BlockingIOError:
                return False
            return not rest

        self.until(more, "room in the socket")

    def open_to_guest(self, port: int = 22) -> socket.socket:
        """A host program's connection, accepted."""
        self.guest.listening.add(port)
        program = self.connect(b"CONNECT %d\n" % port)
        expected = len(b"OK 1073741824\n")
        line = self.receive(program, expected)
        assert line.startswith(b"OK ") and line.endswith(b"\n")
        assert int(line[3:]) == self.guest.accepted[-1].host_port
        return program

    def listen(self, port: int, backlog: int = 4096) -> socket.socket:
        """A host program that waits for the guest."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"{self.path}_{port}")
        listener.listen(backlog)
        return listener
