"""A guest with one disk, and a disk that a test can hold up or break."""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Sequence

from tests.unit.virtio.driver import ALL_FEATURES, FakeLoop, IrqLine, MmioDriver
from voidbox.memory import GuestMemory
from voidbox.virtio.block import VirtioBlock
from voidbox.virtio.block_request import (
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from voidbox.virtio.device import VIRTIO_CONFIG_S_NEEDS_RESET
from voidbox.virtio.mmio import MmioTransport

SECTOR = 512


class FakeDisk:
    """A Backend in memory.

    Attributes:
        gate: jobs in worker threads wait for it.
        error: what the host says to the next call.
        nowait: what read(nowait=True) does: None to read, else the errno it fails with.
        calls: what was called, by which thread.
    """

    def __init__(self, sectors: int = 64, is_read_only: bool = False) -> None:
        self.data = bytearray(index // SECTOR % 251 + 1 for index in range(sectors * SECTOR))
        self.size_bytes = len(self.data)
        self.is_read_only = is_read_only
        self.gate = threading.Event()
        self.gate.set()
        self.error: OSError | None = None
        self.nowait: int | None = None
        self.calls: list[tuple[str, bool]] = []

    def _enter(self, what: str) -> None:
        is_worker = threading.current_thread().name.startswith("voidbox-")
        self.calls.append((what, is_worker))
        if is_worker:
            assert self.gate.wait(10)
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def read(
        self, buffers: Sequence[memoryview], offset: int, length: int, nowait: bool = False
    ) -> None:
        if nowait and self.nowait is not None:
            raise OSError(self.nowait, "as the test wants it")
        self._enter("read")
        assert sum(map(len, buffers)) == length
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    def write(self, buffers: Sequence[memoryview | bytes], offset: int, length: int) -> None:
        self._enter("write")
        assert not self.is_read_only
        data = b"".join(buffers)
        assert len(data) == length
        assert offset + length <= self.size_bytes
        self.data[offset : offset + length] = data

    def discard(self, offset: int, length: int) -> None:
        self._enter(f"discard {offset} {length}")

    def zero(self, offset: int, length: int, may_unmap: bool) -> None:
        self._enter(f"zero {offset} {length} {may_unmap}")
        self.data[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        self._enter("flush")

    def close(self) -> None:
        pass


class Guest:
    """The driver's side."""

    def __init__(
        self, memory: GuestMemory, disk: FakeDisk, features: int = ALL_FEATURES, serial: str = ""
    ) -> None:
        self.disk = disk
        self.now_ns = 0
        self.device = VirtioBlock(disk, serial, now_ns=lambda: self.now_ns)
        self.memory = memory
        self.loop, self.line = FakeLoop(), IrqLine()
        self.transport = MmioTransport(self.device, memory, self.line.pulse, self.loop.call_soon)
        self.driver = MmioDriver(self.transport, memory, self.line)
        self.boot(features)

    def boot(self, features: int = ALL_FEATURES) -> None:
        self.driver.probe(features)
        self.loop.run()
        (self.queue,) = self.driver.queues

    @property
    def is_broken(self) -> bool:
        return bool(self.driver.status & VIRTIO_CONFIG_S_NEEDS_RESET)

    def add(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> int:
        """Offer a request as Linux does: header, data and status in buffers of their own."""
        readable = [struct.pack("<IIQ", kind, 0, sector)] + ([data] if data else [])
        return self.queue.add(readable, ([room] if room else []) + [1])

    def run(self) -> None:
        """Kick, and turn the loop until all is answered."""
        self.driver.kick(0)
        self.loop.run()
        while self.device._workers.is_busy or self.loop.pending:
            self.device._workers.drain()
            self.loop.run()

    def do(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> tuple[int, bytes]:
        """One request, to its end: status and data."""
        head_idx = self.add(kind, sector, data, room)
        status_gpa = self.queue.requests[head_idx].writable[-1][0]
        self.memory.write(status_gpa, b"\xee")
        self.run()
        (done,) = self.queue.completed()
        assert done.head_idx == head_idx
        return self.memory.read(status_gpa, 1)[0], done.data[:-1]

    def read(self, sector: int, count: int = 1) -> bytes:
        status, data = self.do(VIRTIO_BLK_T_IN, sector, room=count * SECTOR)
        assert status == VIRTIO_BLK_S_OK
        return data

    def write(self, sector: int, data: bytes) -> None:
        assert self.do(VIRTIO_BLK_T_OUT, sector, data)[0] == VIRTIO_BLK_S_OK

    def close(self) -> None:
        self.disk.gate.set()
        self.transport.close()
        self.device.close()


def host_error(number: int = errno.EIO) -> OSError:
    return OSError(number, "Input/output error")
