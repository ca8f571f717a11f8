"""A network as QEMU and passt offer it: frames on a unix stream, each behind its length (u32).

The same client talks to our stack, to libslirp (inside QEMU) and to passt.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.net.world import (
    ACK,
    FIN,
    GATEWAY,
    PSH,
    RST,
    SYN,
    Header,
    Seen,
    TcpSeen,
    arp,
    tcp,
)
from voidbox.event_loop import EventLoop
from voidbox.nat.backend import NatBackend
from voidbox.nat.config import NatConfig

_LENGTH = struct.Struct("!I")
QEMU, PASST = "qemu-system-x86_64", "passt"


class _Offloads:
    guest_csum = guest_tso4 = False


class FramedLine:
    """Our stack behind such a stream: FrameBackend's device, and RxFrames. Thread: loop."""

    def __init__(self, sock: socket.socket, loop: EventLoop, backend: NatBackend) -> None:
        self._socket = sock
        self._backend = backend
        self._received = b""
        self._out = memoryview(bytearray(70000))
        backend.on_pending = self._pump
        backend.start(_Offloads())
        loop.watch(sock.fileno(), select.EPOLLIN, self._on_ready)

    def _on_ready(self, ready: int) -> None:
        self._received += os.read(self._socket.fileno(), 1 << 16)
        while len(self._received) >= 4:
            (size,) = _LENGTH.unpack_from(self._received)
            if len(self._received) < 4 + size:
                break
            frame = bytearray(self._received[4 : 4 + size])
            self._received = self._received[4 + size :]
            self._backend.receive([memoryview(frame)], Header())
        self._pump()

    def _pump(self) -> None:
        while self._backend.has_pending() and self._backend.transmit(self):
            pass

    def reserve(self, size: int, least: int = -1) -> list[memoryview] | None:
        return [self._out[:size]]

    def commit(self, length: int, *, gso_size: int = 0, csum_start: int = 0, csum_offset: int = 0,
               header_bytes: int = 0) -> None:  # fmt: skip
        self._socket.sendall(_LENGTH.pack(length) + self._out[:length])

    def cancel(self) -> None:
        pass


class Client:
    """A guest without a TCP/IP of its own."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._received = b""
        self._peers: list[Peer] = []
        self.gateway_mac = b"\xff" * 6
        self.gateway_mac = self.ask(arp(), lambda seen: seen.ether_type == 0x806)[0].frame[6:12]

    def opened(self, peer: Peer) -> None:
        self._peers.append(peer)

    def forget(self) -> None:
        """End all connections, so that nothing of theirs comes later."""
        for peer in self._peers:
            # Only the exact number ends one; which it is depends on how far the handshake got.
            for seq in (peer.seq, peer.seq + 1):
                peer.send(RST, seq=seq)
        self._peers.clear()
        for _ in self.frames(0.02):
            pass

    def send(self, frame: bytes) -> None:
        if frame[:6] != b"\xff" * 6:
            frame = self.gateway_mac + frame[6:]
        self._socket.sendall(_LENGTH.pack(len(frame)) + frame)

    def frames(self, seconds: float) -> Iterator[Seen]:
        """What comes within a time, frame by frame."""
        deadline = time.monotonic() + seconds
        while True:
            while len(self._received) >= 4:
                (size,) = _LENGTH.unpack_from(self._received)
                if len(self._received) < 4 + size:
                    break
                frame = self._received[4 : 4 + size]
                self._received = self._received[4 + size :]
                if frame[12:14] == b"\x08\x00":  # Ethernet's padding is of no interest
                    frame = frame[: 14 + int.from_bytes(frame[16:18], "big")]
                yield Seen(frame, 0)
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                self._received += self._socket.recv(1 << 16)
            except TimeoutError:
                return

    def ask(
        self, frame: bytes, matches: Callable[[Seen], bool], seconds: float = 5, count: int = 1
    ) -> list[Seen]:
        """Send a frame and take the first `count` that match, or what came in time."""
        self.send(frame)
        return self.wait_for(matches, seconds, count)

    def wait_for(
        self, matches: Callable[[Seen], bool], seconds: float = 5, count: int = 1
    ) -> list[Seen]:
        found: list[Seen] = []
        for seen in self.frames(seconds):
            if matches(seen):
                found.append(seen)
                if len(found) == count:
                    break
        return found


class Peer:
    """One TCP connection of the client's, spelled out."""

    def __init__(self, client: Client, sport: int, dport: int, address: int = GATEWAY) -> None:
        self.client = client
        self.sport, self.dport, self.address = sport, dport, address
        self.seq, self.ack = 1000, 0
        client.opened(self)

    def is_mine(self, seen: Seen) -> bool:
        return seen.protocol == 6 and (seen.tcp.sport, seen.tcp.dport) == (self.dport, self.sport)

    def send(self, flags: int, payload: bytes = b"", *, seq: int | None = None,
             ack: int | None = None, options: bytes = b"") -> None:  # fmt: skip
        self.client.send(
            tcp(self.sport, self.dport, self.seq if seq is None else seq,
                self.ack if ack is None else ack, flags, 65535, payload, options, self.address)
        )  # fmt: skip

    def next(self, seconds: float = 5) -> TcpSeen | None:
        seen = self.client.wait_for(self.is_mine, seconds)
        return seen[0].tcp if seen else None

    def until(self, condition: Callable[[TcpSeen], bool], seconds: float = 5) -> TcpSeen | None:
        seen = self.client.wait_for(lambda s: self.is_mine(s) and condition(s.tcp), seconds)
        return seen[0].tcp if seen else None

    def read_to_end(self) -> bytes:
        """Take and acknowledge everything up to the FIN."""
        data = b""
        while True:
            seen = self.until(
                lambda seen: seen.seq == self.ack and bool(seen.payload or seen.flags & FIN)
            )
            assert seen is not None, f"no FIN after {data!r}"
            data += seen.payload
            has_fin = seen.flags & FIN
            self.ack += len(seen.payload) + has_fin
            self.send(ACK)
            if has_fin:
                return data

    def connect(self) -> TcpSeen | None:
        """SYN, and the ACK if a SYN+ACK comes."""
        self.send(SYN, options=b"\x02\x04\x05\xb4")
        answer = self.next()
        if answer is not None and answer.flags == SYN | ACK:
            self.seq += 1
            self.ack = answer.seq + 1
            self.send(ACK)
        return answer

    def say(self, payload: bytes, flags: int = 0) -> None:
        self.send(ACK | PSH | flags, payload)
        self.seq += len(payload) + flags % 2


@contextlib.contextmanager
def our_stack(config: NatConfig) -> Iterator[Client]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    errors: list[BaseException] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(ours)
        stack.enter_context(theirs)
        loop = EventLoop(on_error=errors.append)
        stack.callback(loop.close)
        backend = NatBackend(config, loop)
        stack.callback(backend.close)
        loop.start()
        stack.callback(loop.stop)
        loop.call_soon(lambda: FramedLine(ours, loop, backend) and None)
        yield Client(theirs)
    assert not errors, errors


@contextlib.contextmanager
def other_stack(name: str, folder: Path) -> Iterator[Client]:
    """libslirp or passt, as a program that serves one client."""
    path = folder / "socket"
    network = "user,id=u0"
    stream = f"stream,id=s0,server=on,addr.type=unix,addr.path={path}"
    argv = {
        "libslirp": [
            QEMU, "-M", "none", "-nodefaults", "-display", "none", "-netdev", network, "-netdev",
            stream, "-netdev", "hubport,id=a,hubid=0,netdev=u0", "-netdev",
            "hubport,id=b,hubid=0,netdev=s0",
        ],
        "passt": [
            PASST, "-f", "--runas", "0", "-s", str(path), "-a", "10.0.2.15", "-n", "24", "-g",
            "10.0.2.2", "-4", "-t", "none", "-u", "none", "--dns-forward", "10.0.2.3",
        ],
    }[name]  # fmt: skip
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        sock = socket.socket(socket.AF_UNIX)
        with sock:
            while True:
                try:
                    sock.connect(str(path))
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        # passt wants a default route and user namespaces.
                        words = (folder / "log").read_text(errors="replace").split("\n")
                        pytest.skip(f"{name} does not start here: {' '.join(words[:4])}")
                    time.sleep(0.02)
            yield Client(sock)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(60)


def why_not(name: str) -> str | None:
    """Why this stack cannot be had here, or None."""
    program = {"libslirp": QEMU, "passt": PASST}[name]
    if shutil.which(program) is None:
        package = {"libslirp": "qemu-system-x86", "passt": "passt"}[name]
        return f"{program} is missing: apt-get install {package}"
    if name == "passt" and os.getuid() != 0:
        return "passt is started with --runas 0 and needs root: sudo, or the lab: make test-lab"
    return None
