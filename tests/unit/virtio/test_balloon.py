"""The balloon behind its transport, driven as Linux's virtio_balloon does, and by worse."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator

import pytest

from tests.unit.virtio.driver import (
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    FakeLoop,
    IrqLine,
    MmioDriver,
)
from voidbox.memory import PAGE_BYTES, GuestMemory
from voidbox.snapshot import pagemap
from voidbox.virtio import balloon
from voidbox.virtio.balloon import (
    DEFLATEQ,
    INFLATEQ,
    PASS_CHAINS,
    PFNS_MAX,
    REPORTING_VQ,
    STATSQ,
    VIRTIO_BALLOON_F_PAGE_POISON,
    BalloonState,
    VirtioBalloon,
)
from voidbox.virtio.device import VIRTIO_CONFIG_S_NEEDS_RESET
from voidbox.virtio.mmio import MmioTransport
from voidbox.virtio.mmio_regs import VIRTIO_MMIO_CONFIG

NO_POISON = ~VIRTIO_BALLOON_F_PAGE_POISON & ((1 << 64) - 1)
FREE_GPA = 0x100000  # above what the driver's arena uses in these tests
NUM_PAGES, ACTUAL, POISON_VAL = (VIRTIO_MMIO_CONFIG + offset for offset in (0, 4, 12))


class Guest:
    def __init__(
        self,
        memory: GuestMemory,
        features: int = NO_POISON,
        state: BalloonState | None = None,
        poison: int = 0,
    ) -> None:
        self.memory = memory
        self.loop, self.line = FakeLoop(), IrqLine()
        self.balloon = VirtioBalloon(memory.discard, memory.reads_as_zero, state)
        self.transport = MmioTransport(self.balloon, memory, self.line.pulse, self.loop.call_soon)
        self.driver = MmioDriver(self.transport, memory, self.line)
        self.driver.probe(features)
        self.driver.writel(POISON_VAL, poison)
        self.loop.run()

    @property
    def broken(self) -> bool:
        return bool(self.driver.status & VIRTIO_CONFIG_S_NEEDS_RESET)

    def inflate(self, *pfns: int) -> None:
        self.driver.queues[INFLATEQ].add([struct.pack(f"<{len(pfns)}I", *pfns)])
        self.kick(INFLATEQ)

    def report(self, *ranges: tuple[int, int], flags: int = VRING_DESC_F_WRITE) -> None:
        """As virtballoon_free_page_report: each range is a buffer that the device may write."""
        queue = self.driver.queues[REPORTING_VQ]
        for idx, (gpa, length) in enumerate(ranges):
            more = VRING_DESC_F_NEXT if idx + 1 < len(ranges) else 0
            queue.set_desc(idx, gpa, length, flags | more, idx + 1)
        queue.offer(0)
        self.kick(REPORTING_VQ)

    def kick(self, idx: int) -> None:
        self.driver.kick(idx)
        self.loop.run()


@pytest.fixture
def guest(memory: GuestMemory) -> Iterator[Guest]:
    guest = Guest(memory)
    yield guest
    guest.transport.close()


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(16 << 20) as memory:
        yield memory


def resident(memory: GuestMemory) -> int:
    """Return how many bytes of private memory there are, by its own count."""
    import ctypes

    address = ctypes.addressof(ctypes.c_char.from_buffer(memory.regions[0].map))
    fd = pagemap.open_pagemap()
    try:
        runs = pagemap.runs(fd, address, memory.size_bytes, pagemap.WRITTEN)
        return sum(length for _, length in runs)
    finally:
        os.close(fd)


def test_reported_pages_are_the_hosts_again(guest: Guest) -> None:
    memory = guest.memory
    memory.write(FREE_GPA, b"x" * (8 << 20))
    before = resident(memory)
    guest.report((FREE_GPA, 2 << 20), (FREE_GPA + (4 << 20), 2 << 20))
    assert guest.driver.queues[REPORTING_VQ].used_idx == 1
    assert before - resident(memory) >= 4 << 20
    assert memory.read(FREE_GPA, 4) == bytes(4)
    assert memory.read(FREE_GPA + (2 << 20), 4) == b"xxxx"
    assert guest.balloon.statistics().returned_bytes == 4 << 20
    assert not guest.broken


def test_parts_of_pages_stay(guest: Guest) -> None:
    guest.memory.write(FREE_GPA, b"x" * (3 * PAGE_BYTES))
    guest.report((FREE_GPA + 1, 2 * PAGE_BYTES))
    found = guest.memory.read(FREE_GPA, 3 * PAGE_BYTES)
    assert found == b"x" * PAGE_BYTES + bytes(PAGE_BYTES) + b"x" * PAGE_BYTES
    guest.report((FREE_GPA + 5, 100))
    assert not guest.broken


def test_a_target_and_pages_that_come_up_to_it(guest: Guest) -> None:
    guest.balloon.set_target(3 * PAGE_BYTES)
    assert guest.driver.config_interrupts == 1
    assert guest.driver.readl(NUM_PAGES) == 3
    guest.memory.write(FREE_GPA, b"x" * (4 * PAGE_BYTES))
    pfn = FREE_GPA // PAGE_BYTES
    guest.inflate(pfn + 2, pfn, pfn + 1)
    guest.driver.writel(ACTUAL, 3)
    assert guest.memory.read(FREE_GPA, 3 * PAGE_BYTES) == bytes(3 * PAGE_BYTES)
    assert guest.memory.read(FREE_GPA + 3 * PAGE_BYTES, 1) == b"x"
    assert len(guest.driver.queues[INFLATEQ].completed()) == 1
    statistics = guest.balloon.statistics()
    assert statistics.target_bytes == statistics.actual_bytes == 3 * PAGE_BYTES
    guest.balloon.set_target(0)
    guest.driver.queues[DEFLATEQ].add([struct.pack("<I", pfn)])
    guest.kick(DEFLATEQ)
    assert len(guest.driver.queues[DEFLATEQ].completed()) == 1
    assert guest.driver.readl(NUM_PAGES) == 0


def test_the_guests_statistics_are_asked_for(guest: Guest) -> None:
    queue = guest.driver.queues[STATSQ]

    def say(*stats: tuple[int, int]) -> None:
        queue.add([b"".join(struct.pack("<HQ", *stat) for stat in stats) + b"x"])
        guest.kick(STATSQ)

    say((4, 1000), (6, 900), (77, 1))
    assert guest.balloon.statistics().guest == {"free_memory": 1000, "available_memory": 900}
    assert queue.completed() == [], "it stays in the ring until it is wanted anew"
    assert all(state.next_avail_idx == 0 for state in guest.transport.state().virtqueues)
    guest.balloon.ask_statistics()
    assert len(queue.completed()) == 1
    guest.balloon.ask_statistics()  # before the guest has answered
    say((4, 500))
    assert guest.balloon.statistics().guest == {"free_memory": 500}


def test_a_snapshot_has_what_the_driver_knows(guest: Guest) -> None:
    guest.balloon.set_target(5 * PAGE_BYTES)
    guest.driver.writel(ACTUAL, 4)
    state = guest.transport.state()
    balloon = VirtioBalloon(guest.memory.discard, state=guest.balloon.state())
    loop, line = FakeLoop(), IrqLine()
    transport = MmioTransport.from_state(
        state, device=balloon, memory=guest.memory, pulse_irq=line.pulse,
        loop_call_soon=loop.call_soon,
    )  # fmt: skip
    loop.run()
    assert transport.read(NUM_PAGES, 4) == 5
    assert transport.read(ACTUAL, 4) == 4
    assert line.pulses, "it goes on towards its target"
    transport.close()


@pytest.mark.parametrize(("poison", "is_kept"), [(0, False), (0xAAAAAAAA, True)])
def test_poisoned_pages_keep_what_they_hold(
    memory: GuestMemory, poison: int, is_kept: bool
) -> None:
    guest = Guest(memory, (1 << 64) - 1, poison=poison)
    memory.write(FREE_GPA, b"\xaa" * PAGE_BYTES)
    guest.report((FREE_GPA, PAGE_BYTES))
    assert guest.driver.queues[REPORTING_VQ].used_idx == 1
    assert (memory.read(FREE_GPA, 1) == b"\xaa") is is_kept
    guest.transport.close()


def test_memory_that_is_a_view_of_a_snapshot() -> None:
    """What comes back is the file's; the file, and who else has it, keep what they have."""
    fd = os.memfd_create("snapshot")
    os.pwrite(fd, b"s" * (16 << 20), 0)
    with GuestMemory(16 << 20, file_fd=fd) as memory, GuestMemory(16 << 20, file_fd=fd) as other:
        assert not memory.reads_as_zero
        guest = Guest(memory)
        memory.write(FREE_GPA, b"x" * (4 << 20))
        other.write(FREE_GPA, b"o")
        before = resident(memory)
        guest.report((FREE_GPA, 4 << 20))
        assert before - resident(memory) >= 4 << 20, "the pages that were written are gone"
        assert memory.read(FREE_GPA, 1) == b"s"
        assert other.read(FREE_GPA, 2) == b"os"
        memory.write(FREE_GPA, b"new")
        assert os.pread(fd, 3, FREE_GPA) == b"sss"
        guest.transport.close()
        # A kernel that counts on zeroes in its free pages would not find them: nothing is given.
        guest = Guest(memory, (1 << 64) - 1)
        guest.report((FREE_GPA, PAGE_BYTES))
        assert memory.read(FREE_GPA, 3) == b"new"
        guest.transport.close()
    os.close(fd)


def test_shared_memory_gives_its_pages_back() -> None:
    with GuestMemory(16 << 20, shared=True) as memory:
        guest = Guest(memory)
        memory.write(FREE_GPA, b"x" * (1 << 20))
        before = os.fstat(memory.regions[0].fd).st_blocks
        guest.report((FREE_GPA, 1 << 20))
        assert os.fstat(memory.regions[0].fd).st_blocks < before
        assert memory.read(FREE_GPA, 1) == b"\0"
        guest.transport.close()


# --- hostile ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ranges",
    [
        [(16 << 20, PAGE_BYTES)],
        [((16 << 20) - PAGE_BYTES, 2 * PAGE_BYTES)],
        [(1 << 63, 1 << 31)],
        [(FREE_GPA, PAGE_BYTES), (0xFFFF_FFFF_FFFF_F000, PAGE_BYTES)],
    ],
)
def test_reports_of_what_is_no_memory(guest: Guest, ranges: list[tuple[int, int]]) -> None:
    guest.report(*ranges)
    assert guest.broken


def test_a_report_that_is_to_be_read(guest: Guest) -> None:
    guest.report((FREE_GPA, PAGE_BYTES), flags=0)
    assert guest.broken


@pytest.mark.parametrize(
    "pfns", [b"", b"abc", bytes(5), b"x" * (4 * PFNS_MAX + 4), struct.pack("<I", 4096)]
)
def test_page_numbers_that_are_none(guest: Guest, pfns: bytes) -> None:
    if pfns:
        guest.driver.queues[INFLATEQ].add([pfns])
    else:
        guest.driver.queues[INFLATEQ].add([], [64])
    guest.kick(INFLATEQ)
    assert guest.broken


def test_statistics_without_end(guest: Guest) -> None:
    guest.driver.queues[STATSQ].add([bytes(64 << 10)])
    guest.kick(STATSQ)
    assert guest.broken


def test_the_rings_themselves_are_given_back(guest: Guest) -> None:
    queue = guest.driver.queues[INFLATEQ]
    guest.inflate(*range(0x10, 0x40))  # where the driver's arena is
    assert queue.used_idx in (0, 1)
    guest.kick(REPORTING_VQ)
    guest.driver.probe(NO_POISON)  # a driver that comes back finds a device
    guest.loop.run()
    assert not guest.broken


def test_a_pass_is_bounded(guest: Guest) -> None:
    for _ in range(2 * PASS_CHAINS):
        guest.driver.queues[DEFLATEQ].add([bytes(4)])
    guest.driver.kick(DEFLATEQ)
    guest.loop.turn()
    assert guest.driver.queues[DEFLATEQ].used_idx <= PASS_CHAINS
    guest.loop.run()
    assert guest.driver.queues[DEFLATEQ].used_idx == 2 * PASS_CHAINS


def test_a_pass_gives_back_so_much_and_no_more(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balloon, "PASS_BYTES", 2 * PAGE_BYTES)
    for number in range(6):
        guest.driver.queues[INFLATEQ].add([struct.pack("<I", FREE_GPA // PAGE_BYTES + number)])
    guest.driver.kick(INFLATEQ)
    guest.loop.turn()
    assert guest.driver.queues[INFLATEQ].used_idx == 2
    guest.loop.run()
    assert guest.driver.queues[INFLATEQ].used_idx == 6


def test_configuration_is_written_in_whole_words(guest: Guest) -> None:
    for offset in range(0, 64):
        for width in (1, 2, 4):
            if (offset + VIRTIO_MMIO_CONFIG, width) not in ((ACTUAL, 4), (POISON_VAL, 4)):
                guest.transport.write(VIRTIO_MMIO_CONFIG + offset, width, 0xFF)
    assert guest.balloon.state() == (0, 0, 0)


def test_noise_never_hurts_the_host(guest: Guest) -> None:
    rng = random.Random(5)
    for _ in range(300):
        queue = guest.driver.queues[rng.randrange(4)]
        for _ in range(rng.randrange(4)):
            queue.set_desc(
                rng.randrange(4),
                rng.choice([0, FREE_GPA, 16 << 20, 1 << 40, rng.getrandbits(64)]),
                rng.choice([0, 3, PAGE_BYTES, 1 << 31, rng.getrandbits(32)]),
                rng.randrange(8),
                rng.randrange(6),
            )
            queue.offer(rng.choice([0, 1, 2, 3, 200]))
        guest.kick(guest.driver.queues.index(queue))
        if guest.broken:
            guest.driver.probe(NO_POISON)
            guest.loop.run()
            assert not guest.broken
