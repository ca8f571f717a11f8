"""Hostile drivers: random rings and memory, and random sequences of legal operations."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.virtio.driver import Arena, DriverQueue, FakeLoop, IrqLine, MmioDriver
from voidbox.errors import GuestError
from voidbox.memory import GuestMemory
from voidbox.virtio.descriptors import CHAIN_BYTES_MAX
from voidbox.virtio.device import VIRTIO_CONFIG_S_NEEDS_RESET
from voidbox.virtio.mmio import MmioTransport
from voidbox.virtio.queue import QueueState, Virtqueue
from voidbox.virtio.rng import VirtioRng

RAM_BYTES = 1 << 16
SIZES = (1, 2, 4, 8)

u16 = st.integers(0, 65535)
# Numbers near the places where something may go wrong are likelier than chance has them.
addresses = st.one_of(
    st.integers(0, RAM_BYTES + 64),
    st.sampled_from([RAM_BYTES - 16, RAM_BYTES - 1, RAM_BYTES, (1 << 64) - 1, 1 << 32]),
)
lengths = st.one_of(
    st.sampled_from([0, 1, 16, 32, 48, 24, 0x1000, RAM_BYTES, 0xFFFF_FFFF]),
    st.integers(0, 0xFFFF_FFFF),
)
descs = st.tuples(addresses, lengths, st.integers(0, 8), st.integers(0, 9)).map(
    lambda fields: struct.pack("<QIHH", *fields)
)
tables = st.lists(descs, min_size=1, max_size=8).map(b"".join)


@st.composite
def queue_states(draw: st.DrawFn) -> QueueState:
    index = draw(st.sampled_from([0, 1, 65530, 65535]))
    return QueueState(
        size=draw(st.sampled_from([*SIZES, 3, 0])),
        desc_gpa=draw(st.sampled_from([0, 0x1000, 0x1008, RAM_BYTES - 16])),
        driver_gpa=draw(st.sampled_from([0, 0x1000, 0x2000, 0x2002, 0x2001])),
        device_gpa=draw(st.sampled_from([0, 0x1000, 0x3000, 0x3004, 0x3002])),
        event_idx=draw(st.booleans()),
        indirect=draw(st.booleans()),
        next_avail_idx=index,
        next_used_idx=index,
        published_idx=index,
    )


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    state=queue_states(),
    table=tables,
    avail=st.lists(u16 | st.integers(0, 8), min_size=4, max_size=11),
    ahead=st.integers(0, 10),
    indirect_gpa=st.integers(0, RAM_BYTES - 128),
    indirect=tables,
    noise=st.lists(st.tuples(st.integers(0, RAM_BYTES - 8), st.binary(min_size=1, max_size=8))),
    many=st.booleans(),
)
def test_random_rings(
    state: QueueState,
    table: bytes,
    avail: list[int],
    ahead: int,
    indirect_gpa: int,
    indirect: bytes,
    noise: list[tuple[int, bytes]],
    many: bool,
) -> None:
    """Nothing but GuestError comes out, no pass is endless, and what is taken is within RAM."""
    with GuestMemory(RAM_BYTES) as memory:
        for gpa, data in [(indirect_gpa, indirect), *noise]:
            memory.write(gpa, data)
        memory.write(min(state.desc_gpa, RAM_BYTES - len(table)), table)
        avail[1] = (state.next_avail_idx + ahead) & 0xFFFF
        memory.write(state.driver_gpa, struct.pack(f"<{len(avail)}H", *avail))
        if many:
            drain_many(memory, state)
        else:
            drain(memory, state)


def drain_many(memory: GuestMemory, state: QueueState) -> None:
    """The same for a device that takes chains by the dozen."""
    try:
        queue = Virtqueue.from_state(state, memory=memory)
    except GuestError:
        return
    taken = 0
    try:
        while (batch := queue.next_writable(1 << 40, 3, 0))[0]:
            chains, total_bytes = batch
            taken += len(chains)
            assert taken <= state.size
            for head_idx, room, buffers in chains:
                assert head_idx < state.size
                assert room == sum(map(len, buffers))
                for buffer in buffers:
                    buffer[:1] = b"\xa5"
            assert total_bytes == sum(room for _, room, _ in chains)
            if total_bytes:
                count, left_bytes = queue.add_used_writable(chains, total_bytes)
                assert count <= len(chains)
                assert left_bytes == 0
                queue.undo_next(len(chains) - count)
                taken -= len(chains) - count
            else:
                for head_idx, _, _ in chains:
                    queue.add_used(head_idx, 0)
    except GuestError:
        pass
    queue.publish()
    after = queue.state()
    assert after.published_idx == (state.published_idx + taken) & 0xFFFF
    assert after.next_avail_idx == after.published_idx
    queue.close()


def drain(memory: GuestMemory, state: QueueState) -> None:
    """What a device does that answers everything; a function, so that it leaves no slices."""
    try:
        queue = Virtqueue.from_state(state, memory=memory)
    except GuestError:
        return
    taken = 0
    try:
        while (chain := queue.next_chain()) is not None:
            taken += 1
            assert taken <= state.size
            assert chain.head_idx < state.size
            assert chain.readable_bytes == sum(map(len, chain.readable))
            assert chain.writable_bytes == sum(map(len, chain.writable))
            assert chain.readable_bytes + chain.writable_bytes <= CHAIN_BYTES_MAX
            for buffer in chain.writable:
                buffer[:1] = b"\xa5"  # which may hit the rings themselves
            queue.add_used(chain.head_idx, chain.writable_bytes)
    except GuestError:
        pass
    queue.publish()
    if taken:
        used_idx = memory.words(state.device_gpa + 2, "H", 1)[0]
        assert used_idx == (state.published_idx + taken) & 0xFFFF
    queue.enable_notification()
    after = queue.state()
    assert after.next_avail_idx == (state.next_avail_idx + taken) & 0xFFFF
    assert after.published_idx == after.next_used_idx == after.next_avail_idx
    queue.close()


@settings(max_examples=200, deadline=None)
@given(
    ring=st.lists(tables, min_size=1, max_size=3),
    heads=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    jump=st.sampled_from([0, 0, 0, 1, 64, 65535]),
)
def test_random_rings_behind_a_transport(ring: list[bytes], heads: list[int], jump: int) -> None:
    """A device on a broken ring ends as NEEDS_RESET, and works again after a reset."""
    with GuestMemory(RAM_BYTES) as memory:
        loop, line = FakeLoop(), IrqLine()
        transport = MmioTransport(VirtioRng(), memory, line.pulse, loop.call_soon)
        driver = MmioDriver(transport, memory, line, arena=Arena(0x1000, RAM_BYTES))
        driver.probe(queue_size=8)
        loop.run()
        queue = driver.queues[0]
        for table in ring:
            memory.write(queue.desc_gpa, table[: 16 * 8])
            for head_idx in heads:
                queue.offer(head_idx)
            queue.set_avail_idx(queue.avail_idx + jump)
            transport.notify(0)
            loop.run()
        assert driver.status in (0xF, 0xF | VIRTIO_CONFIG_S_NEEDS_RESET)
        driver.probe(queue_size=8)
        loop.run()
        driver.queues[0].add([], [16])
        driver.kick(0)
        loop.run()
        assert [done.written_bytes for done in driver.queues[0].completed()] == [16]
        transport.close()


class QueuePair(RuleBasedStateMachine):
    """A correct driver and a device that takes, holds, undoes and returns chains at will.

    The model is the lists of what was offered and what is held. Indices start just before they
    wrap, and the interrupt and kick decisions are checked against what the other side had asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memory = GuestMemory(RAM_BYTES)
        self.driver = DriverQueue(
            self.memory, Arena(0x1000, RAM_BYTES), 8, event_idx=True, indirect=True
        )
        start = 65530
        self.driver.set_avail_idx(start)
        self.driver.kicked_idx = self.driver.last_used_idx = start
        self.driver.set_used_event(start)
        self.memory.words(self.driver.device_gpa, "H", 2)[1] = start
        self.queue = Virtqueue.from_state(
            QueueState(
                size=8,
                desc_gpa=self.driver.desc_gpa,
                driver_gpa=self.driver.driver_gpa,
                device_gpa=self.driver.device_gpa,
                event_idx=True,
                indirect=True,
                next_avail_idx=start,
                next_used_idx=start,
                published_idx=start,
            ),
            memory=self.memory,
        )
        self.queue.enable_notification()
        self.offered: list[tuple[int, bytes]] = []
        self.held: list[tuple[int, bytes]] = []
        self.returned: list[int] = []  # added, not yet published
        self.published: list[int] = []  # not yet seen by the driver
        self.last_was_take = False
        self.device_sleeps = True  # it saw an empty ring after it asked for kicks
        self.driver_sleeps = True  # it asked for an interrupt and has had none

    @precondition(lambda self: len(self.driver.free_descs) >= 3)
    @rule(data=st.binary(min_size=1, max_size=20), parts=st.integers(1, 3), indirect=st.booleans())
    def add(self, data: bytes, parts: int, indirect: bool) -> None:
        step = -(-len(data) // parts)
        pieces = [data[i : i + step] for i in range(0, len(data), step)]
        head_idx = self.driver.add(pieces, indirect=indirect)
        self.offered.append((head_idx, data))
        kicked = self.driver.kick_prepare()
        assert kicked or not self.device_sleeps, "lost wakeup: the device waits for a kick"
        self.device_sleeps = self.device_sleeps and not kicked

    @rule()
    def take(self) -> None:
        chain = self.queue.next_chain()
        if chain is None:
            assert not self.offered
            return
        self.device_sleeps = False
        expected = self.offered.pop(0)
        assert (chain.head_idx, b"".join(chain.readable)) == expected
        self.held.append(expected)
        self.last_was_take = True

    @precondition(lambda self: self.last_was_take)
    @rule()
    def undo(self) -> None:
        self.queue.undo_next()
        self.offered.insert(0, self.held.pop())
        self.last_was_take = False

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, 7))
    def give_back(self, pick: int) -> None:
        head_idx, _ = self.held.pop(pick % len(self.held))
        self.queue.add_used(head_idx, 0)
        self.returned.append(head_idx)
        self.last_was_take = False

    @rule()
    def publish(self) -> None:
        interrupt = self.queue.publish()
        if self.driver_sleeps and self.returned:
            assert interrupt, "lost interrupt: the driver waits for it"
        if interrupt:
            self.driver_sleeps = False
        self.published += self.returned
        self.returned = []

    @rule()
    def collect(self) -> None:
        assert [done.head_idx for done in self.driver.completed()] == self.published
        self.published = []
        self.driver_sleeps = True

    @rule()
    def sleep(self) -> None:
        more = self.queue.enable_notification()
        assert more == bool(self.offered)
        self.device_sleeps = not more

    @rule()
    def snapshot(self) -> None:
        state = self.queue.state()
        self.queue.close()
        self.queue = Virtqueue.from_state(state, memory=self.memory)

    @invariant()
    def used_idx_is_what_was_published(self) -> None:
        expected = (self.driver.last_used_idx + len(self.published)) % 65536
        assert self.driver.used_idx == expected

    def teardown(self) -> None:
        self.queue.close()
        self.memory.close()


QueuePair.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestQueuePair = QueuePair.TestCase
