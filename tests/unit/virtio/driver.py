"""The guest's half, for tests: what Linux's virtio_ring and virtio_mmio drivers do.

`DriverQueue` lays a split virtqueue out in guest memory and works it as `virtqueue_add_split`,
`virtqueue_kick_prepare` and `virtqueue_get_buf` do. `MmioDriver` brings a device up through its
registers in the order in which `virtio_dev_probe` and `vm_setup_vq` write them, and handles
interrupts as `vm_interrupt` does. `FakeLoop` is an event loop that a test turns by hand.

    loop = FakeLoop()
    line = IrqLine()
    transport = MmioTransport(device, memory, line.pulse, loop.call_soon)
    driver = MmioDriver(transport, memory, line)
    driver.probe()
    loop.run()
    driver.queues[0].add([b"request"], [64])
    driver.kick(0)
    loop.run()
    [done] = driver.queues[0].completed()
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from voidbox.memory import GuestMemory
from voidbox.virtio.descriptors import VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE
from voidbox.virtio.device import (
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
)
from voidbox.virtio.mmio_regs import (
    MAGIC,
    VIRTIO_MMIO_CONFIG,
    VIRTIO_MMIO_CONFIG_GENERATION,
    VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL,
    VIRTIO_MMIO_INT_CONFIG,
    VIRTIO_MMIO_INTERRUPT_ACK,
    VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_STATUS,
    VIRTIO_MMIO_VERSION,
)
from voidbox.virtio.queue import VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY

VRING_DESC = struct.Struct("<QIHH")
ALL_FEATURES = (1 << 64) - 1


class FakeLoop:
    """call_soon, and a turn of the loop when the test says so."""

    def __init__(self) -> None:
        self.pending: deque[Callable[[], None]] = deque()

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.pending.append(callback)

    def turn(self) -> None:
        """Call what is waiting now, but not what that schedules."""
        for _ in range(len(self.pending)):
            self.pending.popleft()()

    def run(self, max_calls: int = 10_000) -> None:
        """Turn until nothing is left to do."""
        for _ in range(max_calls):
            if not self.pending:
                return
            self.pending.popleft()()
        raise AssertionError(f"the loop is still busy after {max_calls} calls")


class IrqLine:
    """Counts pulses; `on_pulse` is the guest's handler, if it should run at once."""

    def __init__(self) -> None:
        self.pulses = 0
        self.on_pulse: Callable[[], None] | None = None

    def pulse(self) -> None:
        self.pulses += 1
        if self.on_pulse is not None:
            self.on_pulse()


class Arena:
    """Hands out guest memory; freed pieces are used again by size."""

    def __init__(self, gpa: int, end_gpa: int) -> None:
        self._next_gpa = gpa
        self._end_gpa = end_gpa
        self._free: dict[int, list[int]] = {}

    def alloc(self, length: int, align: int = 16) -> int:
        length = max(length, 1)
        if free := self._free.get(length):
            return free.pop()
        gpa = -(-self._next_gpa // align) * align
        if gpa + length > self._end_gpa:
            raise AssertionError("the test's guest is out of memory")
        self._next_gpa = gpa + length
        return gpa

    def free(self, gpa: int, length: int) -> None:
        self._free.setdefault(max(length, 1), []).append(gpa)


@dataclass(frozen=True)
class Completed:
    """A request that the device returned."""

    head_idx: int
    written_bytes: int
    data: bytes  # what the writable buffers hold of these bytes


@dataclass(frozen=True)
class _Request:
    descs: list[int]
    readable: list[tuple[int, int]]
    writable: list[tuple[int, int]]
    table: tuple[int, int] | None


class DriverQueue:
    """The driver's end of a split virtqueue."""

    def __init__(
        self,
        memory: GuestMemory,
        arena: Arena,
        size: int,
        *,
        event_idx: bool = False,
        indirect: bool = False,
    ) -> None:
        self.memory = memory
        self.arena = arena
        self.size = size
        self.event_idx = event_idx
        self.indirect = indirect
        self.desc_gpa = arena.alloc(16 * size, 16)
        self.driver_gpa = arena.alloc(6 + 2 * size, 2)
        self.device_gpa = arena.alloc(6 + 8 * size, 4)
        for gpa, length in (
            (self.desc_gpa, 16 * size),
            (self.driver_gpa, 6 + 2 * size),
            (self.device_gpa, 6 + 8 * size),
        ):
            memory.write(gpa, bytes(length))
        self.free_descs = deque(range(size))
        self.requests: dict[int, _Request] = {}
        self.last_used_idx = 0
        self.kicked_idx = 0  # avail idx at the last decision whether to kick

    # Ring words, each accessed whole.

    def _word(self, gpa: int) -> int:
        return int(self.memory.words(gpa, "H", 1)[0])

    def _set_word(self, gpa: int, value: int) -> None:
        self.memory.words(gpa, "H", 1)[0] = value & 0xFFFF

    @property
    def avail_idx(self) -> int:
        return self._word(self.driver_gpa + 2)

    @property
    def used_idx(self) -> int:
        return self._word(self.device_gpa + 2)

    @property
    def avail_event(self) -> int:
        return self._word(self.device_gpa + 4 + 8 * self.size)

    def set_used_event(self, idx: int) -> None:
        self._set_word(self.driver_gpa + 4 + 2 * self.size, idx)

    def set_avail_idx(self, idx: int) -> None:
        self._set_word(self.driver_gpa + 2, idx)

    def set_desc(self, idx: int, addr: int, length: int, flags: int = 0, next_idx: int = 0) -> None:
        self.memory.write(self.desc_gpa + 16 * idx, VRING_DESC.pack(addr, length, flags, next_idx))

    def offer(self, head_idx: int) -> None:
        """Put a head, right or wrong, into the available ring."""
        avail_idx = self.avail_idx
        self._set_word(self.driver_gpa + 4 + 2 * (avail_idx % self.size), head_idx)
        self.set_avail_idx(avail_idx + 1)

    # virtqueue_add

    def add(
        self,
        readable: Sequence[bytes] = (),
        writable: Sequence[int] = (),
        *,
        indirect: bool = False,
    ) -> int:
        """Offer a request: what the device reads, and the sizes of what it may write.

        Returns:
            The head index, which `completed()` reports.
        """
        sources = [(self.arena.alloc(len(data)), len(data)) for data in readable]
        for (gpa, _), data in zip(sources, readable, strict=True):
            self.memory.write(gpa, data)
        targets = [(self.arena.alloc(length), length) for length in writable]
        buffers = [(gpa, length, 0) for gpa, length in sources]
        buffers += [(gpa, length, VRING_DESC_F_WRITE) for gpa, length in targets]
        table = None
        if indirect:
            table = (self.arena.alloc(16 * len(buffers)), 16 * len(buffers))
            self._write_descs(table[0], range(len(buffers)), buffers)
            descs = [self.free_descs.popleft()]
            self._write_descs(self.desc_gpa, descs, [(*table, VRING_DESC_F_INDIRECT)])
        else:
            descs = [self.free_descs.popleft() for _ in buffers]
            self._write_descs(self.desc_gpa, descs, buffers)
        self.requests[descs[0]] = _Request(descs, sources, targets, table)
        self.offer(descs[0])
        return descs[0]

    def _write_descs(
        self, table_gpa: int, idxs: Sequence[int], buffers: Iterable[tuple[int, int, int]]
    ) -> None:
        following = [*idxs[1:], None]
        for idx, next_idx, (gpa, length, flags) in zip(idxs, following, buffers, strict=True):
            if next_idx is not None:
                flags |= VRING_DESC_F_NEXT
            self.memory.write(
                table_gpa + 16 * idx, VRING_DESC.pack(gpa, length, flags, next_idx or 0)
            )

    def kick_prepare(self) -> bool:
        """Whether the device wants a kick for what was added since the last call."""
        old, new = self.kicked_idx, self.avail_idx
        self.kicked_idx = new
        if self.event_idx:
            return (new - self.avail_event - 1) % 65536 < (new - old) % 65536
        return not self._word(self.device_gpa) & VRING_USED_F_NO_NOTIFY

    # virtqueue_get_buf

    def completed(self) -> list[Completed]:
        """Take back what the device returned, and ask to be interrupted at the next."""
        done = []
        while self.last_used_idx != self.used_idx:
            slot_gpa = self.device_gpa + 4 + 8 * (self.last_used_idx % self.size)
            head_idx, written_bytes = struct.unpack("<II", self.memory.read(slot_gpa, 8))
            if head_idx not in self.requests:
                raise AssertionError(f"id {head_idx} is not a head!")  # as Linux says it
            request = self.requests.pop(head_idx)
            done.append(Completed(head_idx, written_bytes, self._collect(request, written_bytes)))
            self.last_used_idx = (self.last_used_idx + 1) % 65536
        if self.event_idx:
            self.set_used_event(self.last_used_idx)
        return done

    def disable_callbacks(self) -> None:
        """virtqueue_disable_cb; with EVENT_IDX the event is left far behind."""
        if self.event_idx:
            self.set_used_event(self.last_used_idx - 1)
        else:
            self._set_word(self.driver_gpa, VRING_AVAIL_F_NO_INTERRUPT)

    def _collect(self, request: _Request, written_bytes: int) -> bytes:
        data = b"".join(self.memory.read(gpa, length) for gpa, length in request.writable)
        if written_bytes > len(data):
            raise AssertionError(f"{written_bytes} bytes written to buffers of {len(data)}")
        for piece in [*request.readable, *request.writable]:
            self.arena.free(*piece)
        if request.table is not None:
            self.arena.free(*request.table)
        self.free_descs.extend(request.descs)
        return data[:written_bytes]


class Registers(Protocol):
    """The device's registers, as the bus sees them."""

    def read(self, offset: int, width: int) -> int: ...
    def write(self, offset: int, width: int, value: int) -> None: ...


class MmioDriver:
    """Linux's virtio_mmio, as far as a device can tell."""

    def __init__(
        self,
        registers: Registers,
        memory: GuestMemory,
        line: IrqLine | None = None,
        *,
        arena: Arena | None = None,
    ) -> None:
        self.registers = registers
        self.memory = memory
        self.arena = arena or Arena(0x10000, memory.regions[0].size_bytes)
        self.features = 0
        self.queues: list[DriverQueue] = []
        self.vring_interrupts = 0
        self.config_interrupts = 0
        self.spurious_interrupts = 0  # the handler's IRQ_NONE
        if line is not None:
            line.on_pulse = self.interrupt

    def readl(self, offset: int) -> int:
        return self.registers.read(offset, 4)

    def writel(self, offset: int, value: int) -> None:
        self.registers.write(offset, 4, value)

    @property
    def status(self) -> int:
        return self.readl(VIRTIO_MMIO_STATUS)

    def add_status(self, bit: int) -> None:
        self.writel(VIRTIO_MMIO_STATUS, self.status | bit)

    def reset(self) -> None:
        """vm_reset and vm_del_vqs."""
        self.writel(VIRTIO_MMIO_STATUS, 0)
        for idx in range(len(self.queues)):
            self.writel(VIRTIO_MMIO_QUEUE_SEL, idx)
            self.writel(VIRTIO_MMIO_QUEUE_READY, 0)
            assert self.readl(VIRTIO_MMIO_QUEUE_READY) == 0
        self.queues = []

    def device_features(self) -> int:
        self.writel(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1)
        features = self.readl(VIRTIO_MMIO_DEVICE_FEATURES) << 32
        self.writel(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0)
        return features | self.readl(VIRTIO_MMIO_DEVICE_FEATURES)

    def set_features(self, features: int) -> None:
        self.writel(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1)
        self.writel(VIRTIO_MMIO_DRIVER_FEATURES, features >> 32)
        self.writel(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0)
        self.writel(VIRTIO_MMIO_DRIVER_FEATURES, features & 0xFFFFFFFF)

    def negotiate(self, features: int = ALL_FEATURES) -> bool:
        """From reset to FEATURES_OK; False if the device refused the features."""
        assert self.readl(VIRTIO_MMIO_MAGIC_VALUE) == MAGIC
        assert self.readl(VIRTIO_MMIO_VERSION) == 2
        self.reset()
        self.add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE)
        self.add_status(VIRTIO_CONFIG_S_DRIVER)
        self.features = self.device_features() & features
        self.set_features(self.features)
        self.add_status(VIRTIO_CONFIG_S_FEATURES_OK)
        return bool(self.status & VIRTIO_CONFIG_S_FEATURES_OK)

    def setup_queue(self, idx: int, size: int | None = None) -> DriverQueue:
        """vm_setup_vq."""
        self.writel(VIRTIO_MMIO_QUEUE_SEL, idx)
        assert self.readl(VIRTIO_MMIO_QUEUE_READY) == 0
        max_size = self.readl(VIRTIO_MMIO_QUEUE_NUM_MAX)
        assert max_size != 0
        queue = DriverQueue(
            self.memory,
            self.arena,
            size or max_size,
            event_idx=bool(self.features & VIRTIO_RING_F_EVENT_IDX),
            indirect=bool(self.features & VIRTIO_RING_F_INDIRECT_DESC),
        )
        self.writel(VIRTIO_MMIO_QUEUE_NUM, queue.size)
        for low, high, gpa in (
            (VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, queue.desc_gpa),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, queue.driver_gpa),
            (VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH, queue.device_gpa),
        ):
            self.writel(low, gpa & 0xFFFFFFFF)
            self.writel(high, gpa >> 32)
        self.writel(VIRTIO_MMIO_QUEUE_READY, 1)
        self.queues.append(queue)
        return queue

    def queue_count(self) -> int:
        idx = 0
        while True:
            self.writel(VIRTIO_MMIO_QUEUE_SEL, idx)
            if self.readl(VIRTIO_MMIO_QUEUE_NUM_MAX) == 0:
                return idx
            idx += 1

    def probe(self, features: int = ALL_FEATURES, queue_size: int | None = None) -> None:
        """virtio_dev_probe: bring the device up with all its queues."""
        assert self.negotiate(features), "the device refused FEATURES_OK"
        for idx in range(self.queue_count()):
            self.setup_queue(idx, queue_size)
        self.add_status(VIRTIO_CONFIG_S_DRIVER_OK)

    def kick(self, queue_idx: int) -> bool:
        """virtqueue_kick: write QueueNotify if the device asked for it; whether it did."""
        if not self.queues[queue_idx].kick_prepare():
            return False
        self.writel(VIRTIO_MMIO_QUEUE_NOTIFY, queue_idx)
        return True

    def interrupt(self) -> None:
        """vm_interrupt: read, acknowledge, then look."""
        status = self.readl(VIRTIO_MMIO_INTERRUPT_STATUS)
        self.writel(VIRTIO_MMIO_INTERRUPT_ACK, status)
        if status == 0:
            self.spurious_interrupts += 1
        if status & VIRTIO_MMIO_INT_CONFIG:
            self.config_interrupts += 1
        if status & ~VIRTIO_MMIO_INT_CONFIG:
            self.vring_interrupts += 1

    def config(self, offset: int, length: int) -> bytes:
        """Read configuration bytes as `__virtio_cread_many` does, with the generation check."""
        while True:
            before = self.readl(VIRTIO_MMIO_CONFIG_GENERATION)
            data = bytes(
                self.registers.read(VIRTIO_MMIO_CONFIG + offset + i, 1) for i in range(length)
            )
            if self.readl(VIRTIO_MMIO_CONFIG_GENERATION) == before:
                return data
