"""What a 1-byte round trip over vsock costs the machine, without a VM.

Three processes, as in earnest: a program with a Unix socket, the machine's event loop with the
device, and a guest that works the rings as Linux 6.1 does, with eventfds for kick and interrupt.
The program's and the guest's own time is in the round trip; the loop's CPU time, its sleeps, the
functions that it calls and their bytecodes are counted by themselves. All share one processor: so
the length of the way is measured, and not who runs where.

    python benchmarks/vsock_echo.py [--round-trips N] [--runs N]
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import statistics
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import IO, Any, NamedTuple

import driver

from voidbox.agent.endpoint import UnixEndpoint
from voidbox.event_loop import EventLoop
from voidbox.memory import GuestMemory
from voidbox.virtio.descriptors import VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE
from voidbox.virtio.device import (
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
)
from voidbox.virtio.mmio import MmioTransport
from voidbox.virtio.queue import vring_need_event
from voidbox.virtio.vsock import PacketQueues, VirtioVsock
from voidbox.vsock.packet import (
    HDR_BYTES,
    VIRTIO_VSOCK_HDR,
    VIRTIO_VSOCK_OP_REQUEST,
    VIRTIO_VSOCK_OP_RESPONSE,
    VIRTIO_VSOCK_OP_RW,
    VMADDR_CID_HOST,
    Header,
)
from voidbox.vsock.unix import UnixBackend

GUEST_CID, PORT = 3, 7
SIZE, EVENT_SIZE = 256, 16
RX_BYTES = 4096
BUF_ALLOC = 256 << 10
WARM_UP = 300
LIMIT_S = 60
_DESC = struct.Struct("<QIHH")
_COUNTS = struct.Struct("<5d")


class Ring:
    """The driver's end of a queue whose chains are a header and data, by indirect tables."""

    def __init__(self, memory: GuestMemory, base_gpa: int, flags: int) -> None:
        self.base_gpa = base_gpa
        self.avail = memory.words(base_gpa + 0x4000, "H", 3 + SIZE)
        self.used = memory.words(base_gpa + 0x8000, "H", 3 + 4 * SIZE)
        self.used_ids = memory.words(base_gpa + 0x8004, "I", 2 * SIZE)
        self.seen = 0
        self.headers: list[memoryview] = []
        self.data: list[memoryview] = []
        for idx in range(SIZE):
            table_gpa, data_gpa = base_gpa + 0x10000 + 64 * idx, base_gpa + 0x100000 + 8192 * idx
            header = _DESC.pack(data_gpa, HDR_BYTES, flags | VRING_DESC_F_NEXT, 1)
            memory.write(table_gpa, header + _DESC.pack(data_gpa + 4096, RX_BYTES, flags, 0))
            memory.write(base_gpa + 16 * idx, _DESC.pack(table_gpa, 32, VRING_DESC_F_INDIRECT, 0))
            self.headers.append(memory.view(data_gpa, HDR_BYTES))
            self.data.append(memory.view(data_gpa + 4096, RX_BYTES))

    def offer(self, head_idx: int) -> bool:
        """Add a chain; True if the device wants a kick."""
        idx = self.avail[1]
        self.avail[2 + idx % SIZE] = head_idx
        self.avail[1] = (idx + 1) & 0xFFFF
        return vring_need_event(self.used[2 + 4 * SIZE], idx + 1, idx)

    def take(self) -> int | None:
        """Return the head of what the device returned next; then ask for an interrupt."""
        if self.used[1] == self.seen:
            self.avail[2 + SIZE] = self.seen
            return None
        head_idx = self.used_ids[self.seen % SIZE * 2]
        self.seen = (self.seen + 1) & 0xFFFF
        return head_idx


class Guest:
    """Answers each packet of data by one of the same size."""

    def __init__(self, memory: GuestMemory, kick_fd: int, irq_fd: int) -> None:
        self.rx = Ring(memory, 0, VRING_DESC_F_WRITE)
        self.tx = Ring(memory, 0x400000, 0)
        self._kick_fd, self._irq_fd = kick_fd, irq_fd
        self._fwd_cnt = self._sent = 0
        for idx in range(SIZE):
            self.rx.offer(idx)

    def close(self) -> None:
        """Let go of the memory."""
        for ring in (self.rx, self.tx):
            for view in (ring.avail, ring.used, ring.used_ids, *ring.headers, *ring.data):
                view.release()

    def run(self) -> None:
        """Serve interrupts for ever."""
        while True:
            os.eventfd_read(self._irq_fd)
            while self.tx.take() is not None:
                pass
            while (head_idx := self.rx.take()) is not None:
                self._receive(Header._make(VIRTIO_VSOCK_HDR.unpack(self.rx.headers[head_idx])))
                self.rx.offer(head_idx)

    def _receive(self, header: Header) -> None:
        if header.op == VIRTIO_VSOCK_OP_REQUEST:
            self._send(header, VIRTIO_VSOCK_OP_RESPONSE, 0)
        elif header.op == VIRTIO_VSOCK_OP_RW:
            self._fwd_cnt += header.length
            self._send(header, VIRTIO_VSOCK_OP_RW, header.length)

    def _send(self, to: Header, op: int, length: int) -> None:
        answer = Header(
            GUEST_CID, VMADDR_CID_HOST, to.dst_port, to.src_port, length,
            op=op, buf_alloc=BUF_ALLOC, fwd_cnt=self._fwd_cnt,
        )  # fmt: skip
        head_idx = self._sent % SIZE
        self._sent += 1
        self.tx.headers[head_idx][:] = answer.pack()
        self.tx.data[head_idx][:length] = bytes(length)
        if self.tx.offer(head_idx):
            os.eventfd_write(self._kick_fd, 1)


class Machine:
    """The loop, and the device on it, brought up as Linux's driver does."""

    def __init__(self, memory: GuestMemory, path: str, kick_fd: int, irq_fd: int) -> None:
        self.loop = EventLoop(self._fail)
        self.backend = UnixBackend(path, GUEST_CID, self.loop)
        self.interrupts = 0

        def pulse_irq() -> None:
            self.interrupts += 1
            os.eventfd_write(irq_fd, 1)

        plane = PacketQueues(self.backend, self.loop.call_later)
        device = VirtioVsock(GUEST_CID, plane)
        page = memoryview(bytearray(4096))
        self.transport = MmioTransport(device, memory, pulse_irq, self.loop.call_soon, page)
        events = select.EPOLLIN | select.EPOLLET
        self.loop.watch(kick_fd, events, lambda _ready: self.transport.notify(1))
        self._probe()

    @staticmethod
    def _fail(error: BaseException) -> None:
        traceback.print_exception(error)
        os._exit(1)

    def _probe(self) -> None:
        features = VIRTIO_F_VERSION_1 | VIRTIO_RING_F_EVENT_IDX | VIRTIO_RING_F_INDIRECT_DESC
        rings = [
            driver.Rings(size, base_gpa, base_gpa + 0x4000, base_gpa + 0x8000)
            for base_gpa, size in ((0, SIZE), (0x400000, SIZE), (0x800000, EVENT_SIZE))
        ]
        driver.start(self.transport, features, rings)


class Counts(NamedTuple):
    """What the loop's thread has done until now."""

    cpu_us: float
    sleeps: float
    interrupts: float
    # While these are counted, which slows all down:
    calls: float  # of functions
    bytecodes: float


class Observer:
    """Counts what the loop's thread does."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._calls = self._bytecodes = 0

    def counts(self) -> Counts:
        """Ask the loop itself."""
        found: list[Counts] = []

        def note() -> None:
            with open("/proc/thread-self/status", encoding="ascii") as file:
                sleeps = next(int(line.split()[1]) for line in file if line.startswith("volunt"))
            cpu_us = time.thread_time_ns() / 1e3
            found.append(
                Counts(cpu_us, sleeps, self._machine.interrupts, self._calls, self._bytecodes)
            )

        self._machine.loop.call(note, LIMIT_S)
        return found[0]

    def trace(self, on: bool) -> None:
        """Count calls of functions, Python's and C's, and bytecodes, from now on."""

        def count_calls(_frame: FrameType, event: str, _argument: object) -> None:
            if event in ("call", "c_call"):
                self._calls += 1

        def count_bytecodes(frame: FrameType, event: str, _argument: object) -> Any:
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            self._bytecodes += event == "opcode"
            return count_bytecodes

        def switch() -> None:
            sys.setprofile(count_calls if on else None)
            sys.settrace(count_bytecodes if on else None)

        self._machine.loop.call(switch, LIMIT_S)


def fork(work: Callable[[], None]) -> int:
    """Run it in a process of its own, which has no other end."""
    if child := os.fork():
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def measure(sock: socket.socket, count: int) -> float:
    """Make round trips; the µs that one took."""
    started = time.perf_counter()
    for _ in range(count):
        sock.send(b"\0")
        assert sock.recv(1) == b"\0"
    return (time.perf_counter() - started) / count * 1e6


def serve_machine(memory: GuestMemory, path: str, fds: tuple[int, int], far: IO[bytes]) -> None:
    """Be the machine's process: answer each byte by the counts; b"t" and b"n" trace or do not."""
    machine = Machine(memory, path, *fds)
    observer = Observer(machine)
    machine.loop.start()
    while True:
        far.write(_COUNTS.pack(*observer.counts()))
        far.flush()
        word = far.read(1)
        if word in (b"t", b"n"):
            observer.trace(word == b"t")


def observe(sock: socket.socket, near: IO[bytes], count: int, word: bytes) -> tuple[float, Counts]:
    """Make round trips; return the µs that one took and what the loop did for one."""

    def ask(word: bytes) -> Counts:
        near.write(word)
        near.flush()
        return Counts._make(_COUNTS.unpack(near.read(_COUNTS.size)))

    before = ask(word)
    round_trip_us = measure(sock, count)
    after = ask(b"n")
    parts = [(y - x) / count for x, y in zip(before, after, strict=True)]
    return round_trip_us, Counts._make(parts)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--round-trips", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    count = options.round_trips
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with GuestMemory(16 << 20, shared=True) as memory, tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/v.sock"
        kick_fd, irq_fd = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0)
        pair = socket.socketpair()
        near, far = (end.makefile("rwb") for end in pair)
        guest = Guest(memory, kick_fd, irq_fd)
        children = [fork(lambda: serve_machine(memory, path, (kick_fd, irq_fd), far))]
        children.append(fork(guest.run))
        try:
            near.read(_COUNTS.size)  # it is up
            with UnixEndpoint(path).connect(PORT, LIMIT_S) as sock:
                measure(sock, WARM_UP)
                runs = [observe(sock, near, count, b"n") for _ in range(options.runs)]
                traced = observe(sock, near, count, b"t")[1]
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        guest.close()
    report(runs, traced)


def report(runs: list[tuple[float, Counts]], traced: Counts) -> None:
    """Print medians, of the other processes' load the least disturbed run besides."""
    round_trips = [run[0] for run in runs]
    cpu = [run[1].cpu_us for run in runs]
    print(
        f"a round trip   {statistics.median(round_trips):7.1f} µs, at best {min(round_trips):.1f}"
    )
    print(f"the loop's CPU {statistics.median(cpu):7.1f} µs, at best {min(cpu):.1f}")
    print(f"its sleeps     {statistics.median(run[1].sleeps for run in runs):7.2f}")
    print(f"interrupts     {statistics.median(run[1].interrupts for run in runs):7.2f}")
    print(f"function calls {traced.calls:7.1f}")
    print(f"bytecodes      {traced.bytecodes:7.0f}")


if __name__ == "__main__":
    main()
