"""The entropy device behind its transport, driven by the fake driver."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.virtio.driver import FakeLoop, IrqLine, MmioDriver
from voidbox.memory import GuestMemory
from voidbox.virtio.device import VIRTIO_CONFIG_S_NEEDS_RESET
from voidbox.virtio.mmio import MmioTransport
from voidbox.virtio.rng import PASS_BYTES, QUEUE_SIZE, VirtioRng


class Counter:
    """A source that can be checked: each call's bytes differ, and sizes are recorded."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, length: int) -> bytes:
        self.sizes.append(length)
        return bytes([len(self.sizes) % 256]) * length


class Guest:
    def __init__(self, memory: GuestMemory, rng: VirtioRng) -> None:
        self.loop, self.line = FakeLoop(), IrqLine()
        self.transport = MmioTransport(rng, memory, self.line.pulse, self.loop.call_soon)
        self.driver = MmioDriver(self.transport, memory, self.line)
        self.boot()

    def boot(self) -> None:
        self.driver.probe()
        self.loop.run()
        (self.queue,) = self.driver.queues

    @property
    def broken(self) -> bool:
        return bool(self.driver.status & VIRTIO_CONFIG_S_NEEDS_RESET)


@pytest.fixture
def source() -> Counter:
    return Counter()


@pytest.fixture
def guest(memory: GuestMemory, source: Counter) -> Iterator[Guest]:
    guest = Guest(memory, VirtioRng(source))
    yield guest
    guest.transport.close()


def test_real_entropy(memory: GuestMemory) -> None:
    guest = Guest(memory, VirtioRng())
    for _ in range(2):
        guest.queue.add([], [32])
    guest.driver.kick(0)
    guest.loop.run()
    first, second = (done.data for done in guest.queue.completed())
    assert len(first) == len(second) == 32
    assert len({first, second, bytes(32)}) == 3
    guest.transport.close()


@pytest.mark.parametrize("sizes", [[1], [64], [10, 1, 53], [4096] * 3])
def test_buffers_are_filled(guest: Guest, sizes: list[int]) -> None:
    guest.queue.add([], sizes)
    guest.driver.kick(0)
    guest.loop.run()
    [done] = guest.queue.completed()
    assert done.data == b"\x01" * sum(sizes)
    assert guest.driver.vring_interrupts == 1


def test_a_request_larger_than_a_pass_is_answered_in_part(guest: Guest, source: Counter) -> None:
    """Never more is written, reported or asked of the host than the pass may cost."""
    guest.queue.add([], [PASS_BYTES - 10, 20, 300_000])
    guest.driver.kick(0)
    guest.loop.run()
    [done] = guest.queue.completed()
    assert done.data == b"\x01" * PASS_BYTES
    assert source.sizes == [PASS_BYTES]


def test_work_is_bounded_per_pass(guest: Guest, source: Counter) -> None:
    for _ in range(20):
        guest.queue.add([], [PASS_BYTES // 4])
    guest.driver.kick(0)
    done = 0
    for _ in range(5):
        assert len(guest.loop.pending) == 1
        guest.transport.notify(0)  # a kick beside the deferred pass adds none
        guest.loop.turn()
        done += len(guest.queue.completed())
        assert done <= 20
        assert sum(source.sizes) <= PASS_BYTES * 6
    guest.loop.run()
    done += len(guest.queue.completed())
    assert done == 20
    assert sum(source.sizes) == 20 * (PASS_BYTES // 4)
    guest.queue.add([], [1])
    assert guest.driver.kick(0)  # kicks are wanted again
    guest.loop.run()
    assert len(guest.queue.completed()) == 1


def test_reset_in_the_middle_of_a_backlog(guest: Guest) -> None:
    for _ in range(10):
        guest.queue.add([], [PASS_BYTES // 2])
    guest.driver.kick(0)
    guest.loop.turn()
    assert guest.loop.pending
    guest.boot()
    guest.queue.add([], [8])
    guest.driver.kick(0)
    guest.loop.run()
    assert [done.written_bytes for done in guest.queue.completed()] == [8]


@pytest.mark.parametrize(("readable", "writable"), [([b"seed"], [8]), ([b"seed"], []), ([], [0])])
def test_requests_that_make_no_sense(
    guest: Guest, readable: list[bytes], writable: list[int]
) -> None:
    guest.queue.add(readable, writable)
    guest.driver.kick(0)
    guest.loop.run()
    assert guest.broken
    guest.boot()
    assert not guest.broken


def test_thousands_of_requests(guest: Guest) -> None:
    """Through many wraps of the ring, in batches, with suppression on both sides."""
    served = kicks = 0
    batch = 0
    while served < 70_000:
        batch = batch % QUEUE_SIZE + 7
        for _ in range(min(batch, QUEUE_SIZE)):
            guest.queue.add([], [1])
        kicks += guest.driver.kick(0)
        guest.loop.run()
        served += len(guest.queue.completed())
        assert not guest.queue.requests
    assert not guest.broken
    assert guest.queue.used_idx == served % 65536
    assert guest.line.pulses <= kicks
    assert guest.driver.spurious_interrupts == 0
