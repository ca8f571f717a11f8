"""When the driver hears of what it sent: with what it gets, or when its patience is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.unit.virtio.driver import Arena, DriverQueue
from voidbox.memory import GuestMemory
from voidbox.virtio.queue import Virtqueue
from voidbox.virtio.queue_pair import PASSES_IN_A_ROW, QueuePair

PATIENCE_S = 0.01
MS = 1_000_000


class Transport:
    """Runs work at once; keeps what is deferred."""

    def __init__(self) -> None:
        self.interrupts = 0
        self.deferred: list[Callable[[], None]] = []

    def interrupt_queues(self) -> None:
        self.interrupts += 1

    def interrupt_config(self, change: Callable[[], None] | None = None) -> None: ...

    def needs_reset(self, reason: str) -> None: ...

    def run(self, work: Callable[[], None]) -> None:
        work()

    def defer(self, work: Callable[[], None]) -> None:
        self.deferred.append(work)


class Server:
    """Takes all that was sent, and gives what `pending` counts."""

    def __init__(self) -> None:
        self.tx_can_wait = True
        self.pending = 0
        self.passes = 0

    def serve_tx(self, tx: Virtqueue) -> bool:
        self.passes += 1
        while tx.next_readable() is not None:
            pass
        return False

    def has_rx(self) -> bool:
        return self.pending > 0

    def serve_rx(self, rx: Virtqueue) -> bool:
        while self.pending and (chain := rx.next_chain()) is not None:
            rx.add_used(chain.head_idx, 1)
            self.pending -= 1
        return False


class Bench:
    """A pair, both drivers, a clock and its timers."""

    def __init__(self, memory: GuestMemory) -> None:
        self.now_ns = 0
        self.timers: list[tuple[int, Callable[[], None]]] = []
        self.transport, self.server = Transport(), Server()
        arena = Arena(0x10000, 0x40000)
        self.rx, self.tx = (DriverQueue(memory, arena, 8, event_idx=True) for _ in range(2))
        self.queues = [
            Virtqueue(
                memory, size=8, desc_gpa=driver.desc_gpa, driver_gpa=driver.driver_gpa,
                device_gpa=driver.device_gpa, event_idx=True,
            )
            for driver in (self.rx, self.tx)
        ]  # fmt: skip
        self.pair = QueuePair(
            self.transport, *self.queues, self.server, self._call_later, PATIENCE_S,
            lambda: self.now_ns,
        )  # fmt: skip
        for _ in range(4):
            self.rx.add([], [64])

    def _call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.timers.append((self.now_ns + int(delay_s * 1e9), callback))

    def send(self) -> None:
        self.tx.add([b"x"])
        self.pair.kick(0)

    def wait(self, ns: int) -> None:
        end_ns = self.now_ns + ns
        while self.timers and min(when for when, _ in self.timers) <= end_ns:
            first = min(self.timers, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now_ns = first[0]
            first[1]()
        self.now_ns = end_ns


@pytest.fixture
def bench() -> Iterator[Bench]:
    with GuestMemory(1 << 20) as memory:
        bench = Bench(memory)
        yield bench
        for queue in bench.queues:
            queue.close()


def test_what_was_sent_is_told_with_the_reply(bench: Bench) -> None:
    bench.send()
    assert bench.transport.interrupts == 0
    bench.server.pending = 1
    bench.pair.pending()
    assert bench.transport.interrupts == 1
    bench.wait(100 * MS)
    assert bench.transport.interrupts == 1


def test_without_a_reply_it_is_told_when_the_patience_is_over(bench: Bench) -> None:
    bench.send()
    bench.wait(10 * MS - 1)
    assert bench.transport.interrupts == 0
    bench.wait(1)
    assert bench.transport.interrupts == 1
    assert not bench.timers


def test_each_has_the_whole_patience(bench: Bench) -> None:
    """The timer of one that was told with its reply is not the next one's."""
    bench.send()
    bench.wait(7 * MS)
    bench.server.pending = 1
    bench.pair.pending()
    bench.tx.completed()
    bench.send()
    bench.wait(10 * MS - 1)
    assert bench.transport.interrupts == 1
    bench.wait(1)
    assert bench.transport.interrupts == 2
    assert not bench.timers


def test_what_comes_during_a_pass_is_served_at_once_but_not_for_ever(bench: Bench) -> None:
    serve_tx = bench.server.serve_tx

    def serve_one(tx: Virtqueue) -> bool:
        serve_tx(tx)
        bench.tx.completed()
        bench.tx.add([b"y"])
        return False

    bench.server.serve_tx = serve_one  # type: ignore[method-assign]
    bench.send()
    assert bench.server.passes == PASSES_IN_A_ROW
    assert len(bench.transport.deferred) == 1
    bench.server.serve_tx = serve_tx  # type: ignore[method-assign]
    bench.transport.deferred.pop()()
    assert bench.server.passes == PASSES_IN_A_ROW + 1
    assert not bench.transport.deferred
