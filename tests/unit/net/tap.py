"""Linux itself as the guest, without a VM: a tap device in a network namespace of its own.

    program in the namespace ─► Linux's TCP ─► tap0 ─► TapLine ─► NatBackend ─► loopback of the host

Frames have the same virtio_net_hdr and the same offloads as the virtio device's.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from voidbox.event_loop import EventLoop
from voidbox.nat.backend import NatBackend
from voidbox.nat.config import NatConfig

ROOT = Path(__file__).parents[3]
TUN = "/dev/net/tun"
# linux/if_tun.h
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 1, 2
HDR = struct.Struct("<BBHHHHH")  # struct virtio_net_hdr_mrg_rxbuf
_FRAME_BYTES_MAX = HDR.size + 14 + 65535
_FRAMES_PER_PASS = 64
_DEFAULT = NatConfig()

# Runs in the namespace: makes the device, hands it out, and holds the namespace until it is told.
_HOLDER = """
import array, fcntl, socket, struct, subprocess, sys
sock = socket.socket(fileno=int(sys.argv[1]))
tap = open("/dev/net/tun", "r+b", buffering=0)
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, TUNSETIFF, TUNSETVNETHDRSZ = map(int, sys.argv[2:])
fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"tap0", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
if IFF_VNET_HDR:
    fcntl.ioctl(tap, TUNSETVNETHDRSZ, struct.pack("i", 12))
for command in (
    "link set lo up",
    "link set tap0 address 52:54:00:12:34:56",
    "addr add 10.0.2.15/24 dev tap0",
    "link set tap0 up txqueuelen 1000",
    "route add default via 10.0.2.2",
):
    subprocess.run(["ip", *command.split()], check=True)
sock.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [tap.fileno()]))])
sock.recv(1)
"""


def why_not() -> str | None:
    """Why there can be no such guest here, or None."""
    if os.getuid() != 0 or not os.path.exists(TUN):
        return f"needs root and {TUN}: sudo, or the lab: make test-lab"
    return None


needs_tap = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


class FrameHeader(NamedTuple):
    """As the device gives it."""

    needs_csum: bool


class Offloads(NamedTuple):
    """As the device gives them."""

    guest_csum: bool
    guest_tso4: bool


class TapLine:
    """The device's part: moves frames between the tap and the backend. Thread: loop.

    Args:
        spoil: may return False to lose a frame to the guest.
    """

    def __init__(self, fd: int, loop: EventLoop, offloads: Offloads) -> None:
        self.fd = fd
        self.backend: NatBackend
        self.loses: Callable[[int], bool] = lambda number: False
        self._loop = loop
        self._sent = 0
        self._in = memoryview(bytearray(_FRAME_BYTES_MAX))
        self._out = memoryview(bytearray(_FRAME_BYTES_MAX))
        flags = (TUN_F_CSUM if offloads.guest_csum else 0) | (
            TUN_F_TSO4 if offloads.guest_tso4 else 0
        )
        fcntl.ioctl(fd, TUNSETOFFLOAD, flags)  # what we take: as much as the guest does
        os.set_blocking(fd, False)

    def start(self, backend: NatBackend, offloads: Offloads) -> None:
        self.backend = backend
        backend.on_pending = self.pump
        backend.start(offloads)
        self._loop.watch(self.fd, select.EPOLLIN, self._on_ready)

    def _on_ready(self, ready: int) -> None:
        for _ in range(_FRAMES_PER_PASS):
            try:
                count = os.readv(self.fd, [self._in])
            except BlockingIOError:
                break
            needs_csum = bool(self._in[0] & 1)
            self.backend.receive([self._in[HDR.size : count]], FrameHeader(needs_csum))
        self.pump()

    def pump(self) -> None:
        while self.backend.has_pending():
            if not self.backend.transmit(self):
                return

    # RxFrames.

    def reserve(self, size: int, least: int = -1) -> list[memoryview] | None:
        return [self._out[HDR.size : HDR.size + size]]

    def commit(
        self,
        length: int,
        *,
        gso_size: int = 0,
        csum_start: int = 0,
        csum_offset: int = 0,
        header_bytes: int = 0,
    ) -> None:
        self._sent += 1
        if self.loses(self._sent):
            return
        HDR.pack_into(
            self._out, 0, 1 if csum_start else 0, 1 if gso_size else 0,
            header_bytes, gso_size, csum_start, csum_offset, 1,
        )  # fmt: skip
        with contextlib.suppress(OSError):
            os.write(self.fd, self._out[: HDR.size + length])

    def cancel(self) -> None:
        pass


class Namespace:
    """A network namespace whose default route is a tap device. Use as a context manager.

    Args:
        has_vnet_hdr: the device's frames have a struct virtio_net_hdr_mrg_rxbuf in front.

    Attributes:
        fd: the other end of the device.
    """

    def __init__(self, has_vnet_hdr: bool = True) -> None:
        self._stack = contextlib.ExitStack()
        ours, theirs = socket.socketpair()
        self._stack.enter_context(ours)
        numbers = (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR if has_vnet_hdr else 0)
        arguments = map(str, (theirs.fileno(), *numbers, TUNSETIFF, TUNSETVNETHDRSZ))
        with theirs:
            # unshare executes Python in its own place.
            self._holder = subprocess.Popen(
                ["unshare", "-n", sys.executable, "-c", _HOLDER, *arguments],
                pass_fds=[theirs.fileno()],
            )
        self._stack.callback(self._end_holder, ours)
        try:
            self.fd = _receive_fd(ours)
        except BaseException:
            self._stack.close()
            raise
        self._stack.callback(os.close, self.fd)

    def _end_holder(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.send(b"x")
        self._holder.wait(60)

    def command(self, *argv: str) -> list[str]:
        """Return the command that runs `argv` in the namespace."""
        return ["nsenter", "-t", str(self._holder.pid), "-n", *argv]

    def start(self, code: str, *arguments: object) -> subprocess.Popen[bytes]:
        """Run a Python program there."""
        return subprocess.Popen(
            self.command(sys.executable, "-c", code, *map(str, arguments)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def python(self, code: str, *arguments: object, timeout_s: float = 60) -> str:
        """Run a Python program there; returns its output, fails if it does."""
        result = subprocess.run(
            self.command(sys.executable, "-c", code, *map(str, arguments)),
            capture_output=True, timeout=timeout_s, check=False, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout

    def sh(self, line: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a shell line there."""
        return subprocess.run(
            self.command("/bin/sh", "-c", line),
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def close(self) -> None:
        """Remove it."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TapGuest(Namespace):
    """A namespace on our network: a guest without a VM.

    Attributes:
        backend: touch it on the loop only, by `on_loop`.
        log: what the backend said.
    """

    def __init__(self, config: NatConfig = _DEFAULT, *, has_offloads: bool = True) -> None:
        super().__init__()
        self.log: list[str] = []
        self.errors: list[BaseException] = []
        try:
            self.loop = EventLoop(on_error=self.errors.append)
            self._stack.callback(self.loop.close)
            self.backend = NatBackend(config, self.loop, self.log.append)
            self._stack.callback(self.backend.close)
            offloads = Offloads(has_offloads, has_offloads)
            self.line = TapLine(self.fd, self.loop, offloads)
            self.loop.start()
            self._stack.callback(self.loop.stop)
            self.on_loop(lambda: self.line.start(self.backend, offloads))
            if not has_offloads:
                self.sh("ethtool -K tap0 tx off tso off gso off >/dev/null 2>&1; true")
        except BaseException:
            self._stack.close()
            raise

    def on_loop(self, call: Callable[[], object]) -> object:
        """Have the loop call something; returns what it returned."""
        done = threading.Event()
        results: list[object] = []

        def run() -> None:
            try:
                results.append(call())
            finally:
                done.set()

        self.loop.call_soon(run)
        assert done.wait(60)
        return results[0]

    def close(self) -> None:
        """End the backend and the loop, and remove the namespace."""
        super().close()
        assert not self.errors, self.errors


def _receive_fd(sock: socket.socket) -> int:
    sock.settimeout(60)
    _, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(4))
    fds = array.array("i")
    fds.frombytes(ancillary[0][2][: fds.itemsize])
    return fds[0]


@contextlib.contextmanager
def echo_server(kind: int = socket.SOCK_STREAM) -> Iterator[int]:
    """A server on the host's loopback that echoes; yields its port."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            sock.listen(1024)
        thread = threading.Thread(target=_echo, args=(sock, kind), daemon=True)
        thread.start()
        yield sock.getsockname()[1]
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _echo(sock: socket.socket, kind: int) -> None:
    while True:
        try:
            if kind == socket.SOCK_DGRAM:
                data, peer = sock.recvfrom(65536)
                if not data and not peer:  # it was shut down
                    return
                sock.sendto(data, peer)
                continue
            connection, _ = sock.accept()
        except OSError:
            return
        threading.Thread(target=_echo_one, args=(connection,), daemon=True).start()


def _echo_one(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while data := connection.recv(1 << 16):
            connection.sendall(data)
