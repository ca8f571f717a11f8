"""How long one chain takes: next_chain + add_used + publish, on a ring that is always full.

    python benchmarks/virtqueue.py [CHAINS]

Prints the best of five runs for each shape of request. The driver's share (moving avail->idx) is
measured by itself and taken off.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable

from voidbox.memory import GuestMemory
from voidbox.virtio.descriptors import VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE
from voidbox.virtio.queue import Virtqueue

SIZE = 256
DESC_GPA, DRIVER_GPA, DEVICE_GPA, TABLES_GPA, DATA_GPA = 0x1000, 0x3000, 0x4000, 0x8000, 0x40000
RUNS = 5


def fill(memory: GuestMemory, descs_per_chain: int, indirect: bool) -> list[int]:
    """Lay out SIZE descriptors as equal chains; returns their heads."""
    step = 1 if indirect else descs_per_chain
    heads = list(range(0, SIZE - step + 1, step))
    for head_idx in heads:
        entries = []
        for i in range(descs_per_chain):
            last = i == descs_per_chain - 1
            flags = VRING_DESC_F_WRITE if last else VRING_DESC_F_NEXT
            next_idx = 0 if last else (i + 1 if indirect else head_idx + i + 1)
            entries.append(struct.pack("<QIHH", DATA_GPA + 64 * i, 64, flags, next_idx))
        table = b"".join(entries)
        if indirect:
            table_gpa = TABLES_GPA + 64 * head_idx
            memory.write(table_gpa, table)
            table = struct.pack("<QIHH", table_gpa, len(table), VRING_DESC_F_INDIRECT, 0)
        memory.write(DESC_GPA + 16 * head_idx, table)
    return heads


def measure(chains: int, descs_per_chain: int, indirect: bool, batch: int) -> float:
    """Seconds for `chains` chains, `batch` of them to a publish()."""
    with GuestMemory(1 << 20) as memory:
        heads = fill(memory, descs_per_chain, indirect)
        ring = memory.words(DRIVER_GPA, "H", 3 + SIZE)
        for slot in range(SIZE):
            ring[2 + slot] = heads[slot % len(heads)]
        queue = Virtqueue(
            memory,
            size=SIZE,
            desc_gpa=DESC_GPA,
            driver_gpa=DRIVER_GPA,
            device_gpa=DEVICE_GPA,
            event_idx=True,
            indirect=True,
        )

        def device() -> None:
            avail_idx = 0
            for _ in range(chains // batch):
                avail_idx = (avail_idx + batch) & 0xFFFF
                ring[1] = avail_idx
                while (chain := queue.next_chain()) is not None:
                    queue.add_used(chain.head_idx, 64)
                queue.publish()

        def driver_alone() -> None:
            avail_idx = 0
            for _ in range(chains // batch):
                avail_idx = (avail_idx + batch) & 0xFFFF
                ring[1] = avail_idx

        elapsed = timed(device) - timed(driver_alone)
        queue.close()
        ring.release()
        return elapsed


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    chains = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    print(f"{'request':<28}{'batch':>6}{'µs/chain':>10}{'chains/s':>12}")
    for name, descs, indirect in (
        ("1 descriptor", 1, False),
        ("2 descriptors", 2, False),
        ("3 descriptors, indirect", 3, True),
    ):
        for batch in (1, 32):
            count = chains // batch * batch
            best = min(measure(count, descs, indirect, batch) for _ in range(RUNS))
            print(f"{name:<28}{batch:>6}{best / count * 1e6:>10.2f}{count / best:>12,.0f}")


if __name__ == "__main__":
    main()
