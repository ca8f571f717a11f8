"""The agent's end of the serial line, with a client that breaks the protocol."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any

from guest_agent.connection import Connection, Request, Secret
from guest_agent.loop import Loop
from guest_agent.server import _SerialCarrier
from voidbox.agent import protocol
from voidbox.agent.packing import pack, unpack
from voidbox.agent.protocol import Decoder
from voidbox.agent.serial_link import SerialLink

SECRET = bytes(32)


class Lasting(Request):
    """Begins and does not end by itself."""

    closed = 0

    def start(self, values: dict[str, Any]) -> None:
        pass

    def on_close(self) -> None:
        Lasting.closed += 1


class Line:
    """A carrier on one end of a socket pair, a client's link on the other, one thread."""

    def __init__(self, handlers: dict[int, Any]) -> None:
        self.loop = Loop()
        self.host, self.guest = socket.socketpair()
        self.host.setblocking(False)

        def connect() -> Connection:
            return Connection(self.loop, handlers, Secret(SECRET), dict, is_serial=True)

        self.carrier = _SerialCarrier(self.loop, self.guest.fileno(), connect)
        self.link = SerialLink(7)
        self.decoder = Decoder(protocol.FROM_GUEST)
        self.frames: list[protocol.Frame] = []
        self.send(protocol.encode(protocol.PING, 0, pack({"secret": SECRET})))

    def send(self, data: bytes) -> None:
        deadline = time.monotonic() + 60
        while len(data) > self.link.room and time.monotonic() < deadline:
            self.turn()
        self.link.send(data)
        for _ in range(20):
            self.turn()

    def turn(self) -> None:
        now_ns = time.monotonic_ns()
        with contextlib.suppress(BlockingIOError):
            self.host.send(self.link.to_write(now_ns))
        self.loop._running = True
        self.loop.call_later(0, self.loop.stop)
        self.loop.run()
        with contextlib.suppress(BlockingIOError):
            self.link.feed(self.host.recv(1 << 20), now_ns)
        self.frames += self.decoder.feed(self.link.receive())

    def close(self) -> None:
        self.loop._epoll.close()
        self.host.close()
        self.guest.close()


def test_a_client_that_breaks_the_protocol_is_told_and_its_requests_end() -> None:
    Lasting.closed = 0
    line = Line({protocol.EXEC: Lasting})
    line.send(protocol.encode(protocol.EXEC, 1, pack({})))
    line.send(b"nonsense of some length")
    assert Lasting.closed == 1
    last = line.frames[-1]
    assert (last.type, last.request) == (protocol.ERROR, 0)
    assert unpack(last.payload)["code"] == "protocol"
    assert line.link.state == "closed"
    line.close()
