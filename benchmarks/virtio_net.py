"""What the network device costs a frame, without a VM: rings that are always full, no network.

    python benchmarks/virtio_net.py [--seconds S]

Buffers are laid out as Linux has them: sent frames with the header in front of the first buffer,
and 64 KiB of them as an indirect table; received ones in merged buffers of 1.5 KiB (before Linux
has learnt the size of frames) or 4 KiB. Nothing is copied, so GB/s is only what frames/s amounts
to; the copies are the host's kernel's. The driver's share (moving avail->idx) is included.
"""

from __future__ import annotations

import argparse
import struct
import time
from collections.abc import Callable

from voidbox.memory import GuestMemory
from voidbox.virtio.descriptors import VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE
from voidbox.virtio.device import TRANSPORT_FEATURES
from voidbox.virtio.net import (
    NET_FEATURES,
    PASS_FRAMES,
    TX_QUEUE,
    FrameHeader,
    Offloads,
    RxFrames,
    VirtioNet,
)
from voidbox.virtio.net_header import HDR, HDR_BYTES, VIRTIO_NET_HDR_F_NEEDS_CSUM
from voidbox.virtio.queue import Virtqueue

SIZE = 256
RUNS = 3
FRAMES = (64, 1514, 65549)
HEADERS = 54
# A partial checksum, and for what exceeds the MTU a segment to be cut.
CSUM_START, CSUM_OFFSET, MSS = 34, 16, 1448


class Loop:
    """The transport: defers to a list, counts interrupts."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.interrupts = 0

    def interrupt_queues(self) -> None:
        self.interrupts += 1

    def interrupt_config(self, change: Callable[[], None] | None = None) -> None: ...

    def needs_reset(self, reason: str) -> None:
        raise AssertionError(reason)

    def run(self, work: Callable[[], None]) -> None:
        work()

    def defer(self, work: Callable[[], None]) -> None:
        self.soon.append(work)


class Network:
    """Takes everything; gives `left` frames of one size."""

    def __init__(self) -> None:
        self.on_pending: Callable[[], None] = lambda: None
        self.left = 0
        self.size = 0
        self.received = 0

    def start(self, offloads: Offloads) -> None: ...

    def receive(self, frame: list[memoryview], header: FrameHeader) -> None:
        self.received += 1

    def has_pending(self) -> bool:
        return self.left > 0

    def transmit(self, rx: RxFrames) -> bool:
        size = self.size
        if rx.reserve(size, 64) is None:
            return False
        if size > 1514:
            rx.commit(
                size,
                gso_size=MSS,
                csum_start=CSUM_START,
                csum_offset=CSUM_OFFSET,
                header_bytes=HEADERS,
            )
        else:
            rx.commit(size, csum_start=CSUM_START, csum_offset=CSUM_OFFSET)
        self.left -= 1
        return True

    def reset(self) -> None: ...


class Ring:
    """A queue whose every descriptor is offered over and over."""

    def __init__(self, memory: GuestMemory, base_gpa: int) -> None:
        self.base_gpa = base_gpa
        self.memory = memory
        self.avail = memory.words(base_gpa + 0x4000, "H", 3 + SIZE)
        for slot in range(SIZE):
            self.avail[2 + slot] = slot
        self.queue = Virtqueue(
            memory,
            size=SIZE,
            desc_gpa=base_gpa,
            driver_gpa=base_gpa + 0x4000,
            device_gpa=base_gpa + 0x8000,
            event_idx=True,
            indirect=True,
        )

    def fill(self, lengths: list[int], flags: int) -> None:
        """Have each descriptor be a request of buffers of these lengths."""
        data_gpa = self.base_gpa + 0x100000
        table = b""
        for i, length in enumerate(lengths):
            last = i == len(lengths) - 1
            table += struct.pack(
                "<QIHH",
                data_gpa + 0x2000 * i,
                length,
                flags | (0 if last else VRING_DESC_F_NEXT),
                0 if last else i + 1,
            )
        if len(lengths) > 1:
            table_gpa = self.base_gpa + 0xC000
            self.memory.write(table_gpa, table)
            table = struct.pack("<QIHH", table_gpa, len(table), VRING_DESC_F_INDIRECT, 0)
        for idx in range(SIZE):
            self.memory.write(self.base_gpa + 16 * idx, table)
        if not flags:
            csum = VIRTIO_NET_HDR_F_NEEDS_CSUM
            gso = (1, HEADERS, MSS) if sum(lengths) > 2000 else (0, 0, 0)
            self.memory.write(data_gpa, HDR.pack(csum, *gso, CSUM_START, CSUM_OFFSET, 0))

    def offer(self, count: int) -> None:
        self.avail[1] = (self.avail[1] + count) & 0xFFFF


class Bench:
    """A device between two rings and a network."""

    def __init__(self, memory: GuestMemory) -> None:
        self.loop, self.network = Loop(), Network()
        self.device = VirtioNet(self.network, bytes.fromhex("020000000001"))
        self.rx, self.tx = Ring(memory, 0), Ring(memory, 0x200000)
        self.device.activate(
            self.loop, NET_FEATURES | TRANSPORT_FEATURES, [self.rx.queue, self.tx.queue]
        )

    def finish(self) -> None:
        while self.loop.soon:
            self.loop.soon.pop()()

    def send(self, count: int) -> None:
        self.tx.offer(count)
        self.device.queue_notify(TX_QUEUE)
        self.finish()

    def receive(self, count: int, chains: int) -> None:
        self.rx.offer(count * chains)
        self.network.left = count
        self.network.on_pending()
        self.finish()
        assert self.network.left == 0

    def close(self) -> None:
        self.device.reset()
        for ring in (self.rx, self.tx):
            ring.queue.close()
            ring.avail.release()


def rate(work: Callable[[int], None], batch: int, seconds: float) -> float:
    """Calls of `work(batch)`, in frames a second; the best of some runs."""
    best = 0.0
    for _ in range(RUNS):
        frames = 0
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            work(batch)
            frames += batch
        best = max(best, frames / elapsed)
    return best


def tx_layout(size: int) -> list[int]:
    """Linux's buffers for a frame: what is linear, then page fragments of up to 32 KiB."""
    if size <= 1514:
        return [HDR_BYTES + size]
    left = size - HEADERS
    return [HDR_BYTES + HEADERS] + [min(4096, left - at) for at in range(0, left, 4096)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.3, help="a run (default 0.3)")
    seconds = parser.parse_args().seconds
    print(f"{'frames':<34}{'buffers':>8}{'frames/s':>12}{'µs/frame':>10}{'GB/s':>8}")

    def report(name: str, buffers: int, size: int, frames_s: float) -> None:
        gb_s = frames_s * size / 1e9
        print(f"{name:<34}{buffers:>8}{frames_s:>12,.0f}{1e6 / frames_s:>10.2f}{gb_s:>8.2f}")

    with GuestMemory(4 << 20) as memory:
        bench = Bench(memory)
        layouts = [(size, tx_layout(size)) for size in FRAMES]
        layouts.append((65549, [HDR_BYTES + HEADERS, 32768, 65549 - 32768 - HEADERS]))
        for size, layout in layouts:
            bench.tx.fill(layout, 0)
            batch = min(PASS_FRAMES, (1 << 20) // size)
            frames_s = rate(bench.send, batch, seconds)
            report(f"tx {size} B", len(layout), size, frames_s)
        bench.tx.fill(tx_layout(1514), 0)
        report("tx 1514 B, one a pass", 1, 1514, rate(bench.send, 1, seconds))
        for size, room in ((64, 1536), (1514, 1536), (65549, 1536), (65549, 4084)):
            bench.rx.fill([room], VRING_DESC_F_WRITE)
            bench.network.size = size
            chains = -(-(size + HDR_BYTES) // room)
            batch = min(PASS_FRAMES, SIZE // chains)
            frames_s = rate(lambda n, chains=chains: bench.receive(n, chains), batch, seconds)
            report(f"rx {size} B in merged {room} B", chains, size, frames_s)
        bench.rx.fill([1536], VRING_DESC_F_WRITE)
        bench.network.size = 1514
        one = rate(lambda n: bench.receive(n, 1), 1, seconds)
        report("rx 1514 B, one a pass", 1, 1514, one)
        assert bench.network.received == bench.device.statistics().tx_frames
        bench.close()


if __name__ == "__main__":
    main()
