"""The virtqueue against a driver that speaks the ring layout, and against broken rings."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.virtio.driver import VRING_DESC, Arena, DriverQueue
from voidbox.errors import GuestError
from voidbox.memory import GuestMemory
from voidbox.virtio.descriptors import (
    INDIRECT_DESCS_MAX,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    Chain,
)
from voidbox.virtio.queue import Virtqueue, WritableChain, vring_need_event

NEXT, WRITE, INDIRECT = VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_DESC_F_INDIRECT
DATA_GPA = 0x80000
_NOISE = random.Random(0).randbytes(512 << 10)


def attach(driver: DriverQueue) -> Virtqueue:
    """The device's end of the same queue."""
    return Virtqueue(
        driver.memory,
        size=driver.size,
        desc_gpa=driver.desc_gpa,
        driver_gpa=driver.driver_gpa,
        device_gpa=driver.device_gpa,
        event_idx=driver.event_idx,
        indirect=driver.indirect,
    )


def pair(memory: GuestMemory, size: int = 8, **features: bool) -> tuple[DriverQueue, Virtqueue]:
    driver = DriverQueue(memory, Arena(0x10000, DATA_GPA), size, **features)
    return driver, attach(driver)


def queue_at(
    memory: GuestMemory,
    *,
    size: int = 8,
    desc_gpa: int = 0x1000,
    driver_gpa: int = 0x2000,
    device_gpa: int = 0x3000,
) -> Virtqueue:
    return Virtqueue(
        memory, size=size, desc_gpa=desc_gpa, driver_gpa=driver_gpa, device_gpa=device_gpa
    )


def take(queue: Virtqueue) -> Chain:
    chain = queue.next_chain()
    assert chain is not None
    return chain


# Well-formed requests


def test_empty_queue_has_no_chain(memory: GuestMemory) -> None:
    _, queue = pair(memory)
    assert queue.next_chain() is None
    assert queue.publish() is False


@pytest.mark.parametrize("indirect", [False, True])
def test_chain_splits_readable_and_writable(memory: GuestMemory, indirect: bool) -> None:
    driver, queue = pair(memory, indirect=True)
    head_idx = driver.add([b"head", b"payload"], [3, 5], indirect=indirect)
    chain = take(queue)
    assert chain.head_idx == head_idx
    assert [bytes(buffer) for buffer in chain.readable] == [b"head", b"payload"]
    assert [len(buffer) for buffer in chain.writable] == [3, 5]
    assert (chain.readable_bytes, chain.writable_bytes) == (11, 8)
    chain.writable[0][:] = b"abc"
    chain.writable[1][:2] = b"de"
    queue.add_used(head_idx, 5)
    assert driver.completed() == []  # not before it is published
    assert queue.publish() is True
    [done] = driver.completed()
    assert (done.head_idx, done.written_bytes, done.data) == (head_idx, 5, b"abcde")


@pytest.mark.parametrize("write", [False, True])
def test_single_descriptor(memory: GuestMemory, write: bool) -> None:
    driver, queue = pair(memory)
    driver.add([] if write else [b"12345"], [5] if write else [])
    chain = take(queue)
    buffers = chain.writable if write else chain.readable
    assert [len(buffer) for buffer in buffers] == [5]
    assert len(chain.readable) + len(chain.writable) == 1
    assert (chain.writable_bytes if write else chain.readable_bytes) == 5


def test_indirect_table_after_direct_descriptors(memory: GuestMemory) -> None:
    """§2.7.5.3.2: zero or more normal descriptors, then one that refers to a table."""
    driver, queue = pair(memory, indirect=True)
    memory.write(DATA_GPA, struct.pack("<QIHH", DATA_GPA + 0x100, 7, WRITE, 0))
    driver.set_desc(0, DATA_GPA + 0x200, 4, NEXT, 1)
    # The write flag of a descriptor that refers to a table means nothing.
    driver.set_desc(1, DATA_GPA, 16, INDIRECT | WRITE)
    driver.offer(0)
    chain = take(queue)
    assert ([len(b) for b in chain.readable], [len(b) for b in chain.writable]) == ([4], [7])


def test_indirect_table_needs_no_alignment_and_may_exceed_the_queue(memory: GuestMemory) -> None:
    driver, queue = pair(memory, size=4, indirect=True)
    table = b"".join(
        struct.pack("<QIHH", DATA_GPA + 0x8000 + i, 1, NEXT if i < 99 else 0, (i + 1) % 100)
        for i in range(100)
    )
    memory.write(DATA_GPA + 1, table)
    driver.set_desc(0, DATA_GPA + 1, len(table), INDIRECT)
    driver.offer(0)
    assert len(take(queue).readable) == 100


def test_empty_buffers_are_left_out(memory: GuestMemory) -> None:
    driver, queue = pair(memory)
    driver.set_desc(0, 0xDEAD_0000_0000, 0, NEXT, 1)  # nothing is there, and nothing is touched
    driver.set_desc(1, DATA_GPA, 4, NEXT, 2)
    driver.set_desc(2, 0, 0, WRITE)
    driver.set_desc(3, 0xDEAD_0000_0000, 0)
    driver.offer(0)
    driver.offer(3)
    chain = take(queue)
    assert ([len(b) for b in chain.readable], chain.writable) == ([4], [])
    chain = take(queue)
    assert (chain.readable, chain.writable, chain.readable_bytes) == ([], [], 0)


def test_undo_hands_chains_back_in_order(memory: GuestMemory) -> None:
    driver, queue = pair(memory)
    heads = [driver.add([bytes([i])]) for i in range(3)]
    assert [take(queue).head_idx for _ in range(3)] == heads
    assert queue.next_chain() is None
    queue.undo_next()
    queue.undo_next()
    assert [take(queue).head_idx for _ in range(2)] == heads[1:]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4, 256])
@pytest.mark.parametrize("event_idx", [False, True])
def test_indices_wrap(memory: GuestMemory, size: int, event_idx: bool) -> None:
    """The ring is indexed modulo its size, the idx words modulo 2^16 ("id 0 is not a head!")."""
    driver, queue = pair(memory, size, event_idx=event_idx)
    for number in range(65536 // size + 300 if size > 4 else 66000):
        head_idx = driver.add([], [2])
        chain = take(queue)
        chain.writable[0][:] = struct.pack("<H", number & 0xFFFF)
        queue.add_used(chain.head_idx, 2)
        assert queue.publish() is True
        [done] = driver.completed()
        assert (done.head_idx, done.data) == (head_idx, struct.pack("<H", number & 0xFFFF))
    if size <= 4:
        assert driver.used_idx == 66000 - 65536


def lengths(chains: list[WritableChain]) -> list[list[int]]:
    return [[len(buffer) for buffer in buffers] for _, _, buffers in chains]


def test_many_writable_chains_at_once(memory: GuestMemory) -> None:
    """As much as is asked for, as many as are allowed, or what there is."""
    driver, queue = pair(memory, indirect=True)
    heads = [driver.add([], [100]), driver.add([], [30, 70]), driver.add([], [5, 6], indirect=True)]
    heads.append(driver.add([], [64]))
    taken, total = queue.next_writable(101, 9, 1)
    assert [head_idx for head_idx, _, _ in taken] == heads[:2]
    assert [room for _, room, _ in taken] == [100, 100]
    assert (lengths(taken), total) == ([[100], [30, 70]], 200)
    taken, total = queue.next_writable(1000, 1, 1)
    assert (lengths(taken), total) == ([[5, 6]], 11)
    taken, total = queue.next_writable(1000, 9, 64)
    assert (lengths(taken), total) == ([[64]], 64)
    assert queue.next_writable(1000, 9, 64) == ([], 0)
    queue.undo_next(2)
    queue.redo_next(1)
    assert queue.next_writable(1000, 9, 64)[1] == 64


@pytest.mark.parametrize(
    ("written", "used", "left"),
    [(1, [1], 99), (100, [100], 0), (101, [100, 1], 99), (210, [100, 100, 10], 0)],
)
def test_bytes_spread_over_chains(
    memory: GuestMemory, written: int, used: list[int], left: int
) -> None:
    driver, queue = pair(memory)
    for size in (100, 100, 10):
        driver.add([], [size])
    chains, _ = queue.next_writable(1000, 9, 1)
    assert queue.add_used_writable(chains, written) == (len(used), left)
    queue.publish()
    assert [done.written_bytes for done in driver.completed()] == used


def test_many_at_once_around_the_end_of_the_indices(memory: GuestMemory) -> None:
    driver, queue = pair(memory)
    total = 0
    while total < 66_000:
        for _ in range(7):
            driver.add([], [1])
        chains, total_bytes = queue.next_writable(100, 9, 1)
        assert total_bytes == 7
        assert queue.add_used_writable(chains, 7) == (7, 0)
        queue.publish()
        assert len(driver.completed()) == 7
        total += 7
    assert queue.state().next_used_idx == queue.state().next_avail_idx == total % 65536


@given(
    st.lists(
        st.tuples(
            st.integers(0, 7),
            st.sampled_from([0, 1, 44, 4096, 0x8000_0000, 0xFFFF_FFFF]),
            st.sampled_from([0, 8, 44, 4096, 0xFFFF_FFFF]),
            st.sampled_from([WRITE | NEXT, WRITE, NEXT, INDIRECT, INDIRECT | NEXT, 0]),
            st.sampled_from([WRITE, WRITE | NEXT, 0, INDIRECT]),
            st.sampled_from([0, 1, 2, 7, 8, 0xFFFF]),
            st.sampled_from([0x80000, 0x80020, (1 << 20) - 16, 1 << 20, (1 << 64) - 16]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
    st.sampled_from([0, WRITE]),
)
def test_chains_of_two_are_taken_as_any_other(
    chains: list[Any], indirect: bool, direction: int
) -> None:
    """Whatever a driver writes: what takes such chains at once gives what next_chain() does.

    Or it refuses it too.
    """
    memory = GuestMemory(1 << 20)
    memory.write(0x80000, _NOISE)  # so that every part looks another way
    driver, queue = pair(memory, indirect=indirect)
    for head_idx, length, next_length, flags, next_flags, next_idx, addr in chains:
        flags, next_flags = flags ^ WRITE ^ direction, next_flags ^ WRITE ^ direction
        driver.set_desc(head_idx, addr, 32 if flags & INDIRECT else length, flags, next_idx)
        if next_idx < 8:
            driver.set_desc(next_idx, 0x90000, next_length, next_flags, 1)
        table = VRING_DESC.pack(0x90000, length, direction | NEXT, next_idx)
        memory.write(0x80000, table + VRING_DESC.pack(0x90100, next_length, next_flags, 0))
        driver.offer(head_idx)

    def all_of(take_one: Callable[[], Any]) -> list[Any]:
        taken: list[Any] = []
        try:
            while (one := take_one()) is not None:
                taken.append(one)
        except GuestError:
            taken.append("refused")
        return taken

    def by_chain() -> Any:
        chain = queue.next_chain()
        if chain is None:
            return None
        if chain.readable_bytes if direction else chain.writable_bytes:
            raise GuestError("the other direction")
        buffers = chain.writable if direction else chain.readable
        if direction and not buffers:
            raise GuestError("less than a byte")
        total_bytes = chain.writable_bytes + chain.readable_bytes
        assert total_bytes == sum(map(len, buffers))
        return total_bytes, [*map(bytes, buffers)]

    def to_write() -> Any:
        found, _ = queue.next_writable(1, 1, 1)
        return (found[0][1], [*map(bytes, found[0][2])]) if found else None

    def to_read() -> Any:
        found = queue.next_readable()
        return (found[0], [*map(bytes, found[1])]) if found is not None else None

    start = queue.state().next_avail_idx
    expected = all_of(by_chain)
    queue.seek(start)
    assert all_of(to_write if direction else to_read) == expected


@pytest.mark.parametrize("start", range(5))
@pytest.mark.parametrize("count", range(1, 5))
def test_many_are_taken_past_the_rings_end(memory: GuestMemory, start: int, count: int) -> None:
    driver, queue = pair(memory, size=4)
    for _ in range(start):
        driver.add([b"x"])
        assert queue.next_readable() is not None
        queue.publish()
        driver.completed()
    heads = [driver.add([], [10 + n]) for n in range(count)]
    chains, total_bytes = queue.next_writable(1 << 20, 9, 1)
    assert [chain[:2] for chain in chains] == [(head, 10 + n) for n, head in enumerate(heads)]
    assert total_bytes == sum(10 + n for n in range(count))
    assert queue.next_writable(1 << 20, 9, 1) == ([], 0)


def test_what_is_read_and_returned_in_one(memory: GuestMemory) -> None:
    """Whatever its layout; the driver sees it at the next publish(), and past the end too."""
    driver, queue = pair(memory, size=4, indirect=True)
    for round_idx in range(20):
        pieces = ([b"one"], [b"header", b"data"], [b"a", b"b", b"c"])[round_idx % 3]
        is_indirect = bool(round_idx % 2) and len(pieces) > 1
        heads = [driver.add(pieces, indirect=is_indirect), driver.add([b""])]
        found = queue.next_readable()
        assert found is not None
        assert (found[0], [*map(bytes, found[1])]) == (len(b"".join(pieces)), pieces)
        assert queue.next_readable() == (0, [])
        assert queue.next_readable() is None
        assert not driver.completed()
        queue.publish()
        assert [(one.head_idx, one.written_bytes) for one in driver.completed()] == [
            (head_idx, 0) for head_idx in heads
        ]
        assert queue.is_idle


@pytest.mark.parametrize("readable", [[], [b"x"]])
@pytest.mark.parametrize("writable", [[9], [9, 9], [9, 9, 9]])
def test_what_may_be_written_is_not_read(
    memory: GuestMemory, readable: list[bytes], writable: list[int]
) -> None:
    driver, queue = pair(memory)
    driver.add(readable, writable)
    before = queue.state()
    with pytest.raises(GuestError, match="writable"):
        queue.next_readable()
    assert queue.state() == before


@pytest.mark.parametrize("indirect", [False, True])
def test_a_chain_of_two_that_is_read(memory: GuestMemory, indirect: bool) -> None:
    driver, queue = pair(memory, indirect=indirect)
    driver.add([b"header", b"data"], indirect=indirect)
    chain = take(queue)
    assert [*map(bytes, chain.readable)] == [b"header", b"data"]
    assert (chain.readable_bytes, chain.writable_bytes, chain.writable) == (10, 0, [])
    driver.add([b"header"], [4], indirect=indirect)
    chain = take(queue)
    assert (chain.readable_bytes, chain.writable_bytes) == (6, 4)


def test_many_are_returned_around_the_end_of_the_ring(memory: GuestMemory) -> None:
    driver, queue = pair(memory, size=4)
    for rounds in range(30):
        count = rounds % 3 + 1
        heads = [driver.add([], [9]) for _ in range(count)]
        chains, _ = queue.next_writable(100, count, 1)
        queue.add_used_many([head_idx for head_idx, _, _ in chains], range(1, count + 1))
        queue.publish()
        done = driver.completed()
        assert [one.head_idx for one in done] == heads
        assert [one.written_bytes for one in done] == [*range(1, count + 1)]
    queue.add_used_many([], [])
    assert not queue.publish()


def test_a_batch_that_holds_a_chain_of_another_kind(memory: GuestMemory) -> None:
    for readable, writable in (([b"x"], []), ([b"x"], [64]), ([], [63]), ([], [0])):
        driver, queue = pair(memory)
        driver.add([], [64])
        driver.add(readable, writable)
        with pytest.raises(GuestError):
            queue.next_writable(1000, 9, 64)


def test_chains_may_be_returned_in_any_order(memory: GuestMemory) -> None:
    driver, queue = pair(memory, 4)
    heads = [driver.add([], [1]) for _ in range(4)]
    for _ in range(4):
        take(queue)
    for head_idx in reversed(heads):
        queue.add_used(head_idx, 0)
    queue.publish()
    assert [done.head_idx for done in driver.completed()] == heads[::-1]


# Broken rings


def broken_avail_idx(driver: DriverQueue) -> None:
    driver.set_avail_idx(driver.size + 1)


def backward_avail_idx(driver: DriverQueue) -> None:
    driver.set_avail_idx(0xFFFF)


def head_out_of_table(driver: DriverQueue) -> None:
    driver.offer(driver.size)


def next_out_of_table(driver: DriverQueue) -> None:
    driver.set_desc(0, DATA_GPA, 4, NEXT, driver.size)
    driver.offer(0)


def loop_of_one(driver: DriverQueue) -> None:
    driver.set_desc(0, DATA_GPA, 4, NEXT, 0)
    driver.offer(0)


def loop_of_all(driver: DriverQueue) -> None:
    for idx in range(driver.size):
        driver.set_desc(idx, DATA_GPA, 0, NEXT, (idx + 1) % driver.size)
    driver.offer(0)


def readable_after_writable(driver: DriverQueue) -> None:
    driver.set_desc(0, DATA_GPA, 4, WRITE | NEXT, 1)
    driver.set_desc(1, DATA_GPA, 4)
    driver.offer(0)


def readable_after_empty_writable(driver: DriverQueue) -> None:
    driver.set_desc(0, DATA_GPA, 0, WRITE | NEXT, 1)
    driver.set_desc(1, DATA_GPA, 4)
    driver.offer(0)


def foreign_address(driver: DriverQueue) -> None:
    driver.set_desc(0, 1 << 20, 4)
    driver.offer(0)


def foreign_last_byte(driver: DriverQueue) -> None:
    driver.set_desc(0, (1 << 20) - 3, 4, NEXT, 1)
    driver.set_desc(1, DATA_GPA, 4)
    driver.offer(0)


def address_overflow(driver: DriverQueue) -> None:
    driver.set_desc(0, (1 << 64) - 2, 4)
    driver.offer(0)


def table(driver: DriverQueue, length: int, flags: int = INDIRECT, entry_flags: int = 0) -> None:
    driver.memory.write(DATA_GPA, struct.pack("<QIHH", DATA_GPA, 4, entry_flags, 0))
    driver.set_desc(0, DATA_GPA, length, flags)
    driver.offer(0)


def empty_table(driver: DriverQueue) -> None:
    table(driver, 0)


def crooked_table(driver: DriverQueue) -> None:
    table(driver, 24)


def oversized_table(driver: DriverQueue) -> None:
    table(driver, 16 * (INDIRECT_DESCS_MAX + 1))


def foreign_table(driver: DriverQueue) -> None:
    driver.set_desc(0, (1 << 20) - 8, 16, INDIRECT)
    driver.offer(0)


def table_with_next(driver: DriverQueue) -> None:
    table(driver, 16, INDIRECT | NEXT)


def nested_table(driver: DriverQueue) -> None:
    table(driver, 16, INDIRECT, INDIRECT)


def loop_in_table(driver: DriverQueue) -> None:
    table(driver, 16, INDIRECT, NEXT)


def next_out_of_indirect_table(driver: DriverQueue) -> None:
    """Inside the queue's size, outside the indirect table's."""
    driver.memory.write(DATA_GPA, struct.pack("<QIHH", DATA_GPA, 4, NEXT, 1))
    driver.set_desc(0, DATA_GPA, 16, INDIRECT)
    driver.offer(0)


@pytest.mark.parametrize("way", ["next_chain", "next_readable", "next_writable"])
@pytest.mark.parametrize(
    "spoil",
    [
        broken_avail_idx,
        backward_avail_idx,
        head_out_of_table,
        next_out_of_table,
        loop_of_one,
        loop_of_all,
        readable_after_writable,
        readable_after_empty_writable,
        foreign_address,
        foreign_last_byte,
        address_overflow,
        empty_table,
        crooked_table,
        oversized_table,
        foreign_table,
        table_with_next,
        nested_table,
        loop_in_table,
        next_out_of_indirect_table,
    ],
)
def test_broken_ring_is_refused(memory: GuestMemory, spoil: Any, way: str) -> None:
    driver, queue = pair(memory, indirect=True)
    spoil(driver)
    before = queue.state()
    with pytest.raises(GuestError):
        queue.next_writable(1 << 30, 9, 0) if way == "next_writable" else getattr(queue, way)()
    assert queue.state() == before  # nothing was taken


def test_indirect_needs_the_feature(memory: GuestMemory) -> None:
    driver, queue = pair(memory, indirect=False)
    driver.add([b"x"], indirect=True)
    with pytest.raises(GuestError, match="not negotiated"):
        queue.next_chain()


def test_a_chain_as_long_as_the_queue_is_no_loop(memory: GuestMemory) -> None:
    driver, queue = pair(memory, 8)
    driver.add([b"x"] * 8)
    assert len(take(queue).readable) == 8


def test_four_gigabytes_are_too_much(memory: GuestMemory) -> None:
    """Each buffer is inside RAM, yet their sum does not fit the used ring's u32."""
    with GuestMemory(1 << 31) as large:  # address space only: no page of it is touched twice
        driver = DriverQueue(large, Arena(0x10000, DATA_GPA), 4)
        queue = attach(driver)
        driver.set_desc(0, 0, 1 << 31, NEXT, 1)
        driver.set_desc(1, 0, (1 << 31) - 1)
        driver.offer(0)
        assert take(queue).readable_bytes == 0xFFFF_FFFF
        driver.set_desc(1, 0, 1 << 31)
        driver.offer(0)
        with pytest.raises(GuestError, match="4 GiB"):
            queue.next_chain()
        queue.close()


@pytest.mark.parametrize("ranges", [False, True])
@pytest.mark.parametrize("taken", [1, 5, 8])
def test_a_driver_that_turns_back_gets_no_more_taken(
    memory: GuestMemory, ranges: bool, taken: int
) -> None:
    """Not one chain beyond those that it offered, as long as none of them is returned."""
    driver, queue = pair(memory, 8)
    driver.set_desc(0, DATA_GPA, 4, WRITE)
    take_next = queue.next_ranges if ranges else queue.next_chain
    for _ in range(taken):
        driver.offer(0)
        assert take_next() is not None
    for idx in range(taken):
        driver.set_avail_idx(idx)
        with pytest.raises(GuestError, match="behind"):
            take_next()
    driver.set_avail_idx(taken)
    assert take_next() is None


@pytest.mark.parametrize("many", [False, True])
def test_one_pass_is_bounded_by_the_queue_size(memory: GuestMemory, many: bool) -> None:
    """A driver on another vCPU that goes on adding cannot keep the device in one pass."""
    driver, queue = pair(memory, 8)
    driver.set_desc(0, DATA_GPA, 4, WRITE)
    taken = 0
    with pytest.raises(GuestError, match="too far ahead"):
        while True:
            driver.offer(0)
            head_idx = queue.next_writable(1, 1, 1)[0][0][0] if many else take(queue).head_idx
            queue.add_used(head_idx, 0)
            taken += 1
    assert taken == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 0},
        {"size": 3},
        {"size": 65536},
        {"desc_gpa": 0x1008},
        {"driver_gpa": 0x2001},
        {"device_gpa": 0x3002},
        {"desc_gpa": (1 << 20) - 0x70},
        {"driver_gpa": (1 << 20) - 20},
        {"device_gpa": (1 << 20) - 68},
        {"desc_gpa": 1 << 63},
    ],
    ids=str,
)
def test_rings_must_be_aligned_and_inside_ram(memory: GuestMemory, changes: dict[str, int]) -> None:
    queue_at(memory).close()
    with pytest.raises(GuestError):
        queue_at(memory, **changes)


def test_rings_may_end_where_ram_ends(memory: GuestMemory) -> None:
    for name, length in (("desc_gpa", 16 * 8), ("driver_gpa", 6 + 2 * 8), ("device_gpa", 72)):
        queue_at(memory, **{name: (1 << 20) - length}).close()


# Notification suppression


@given(st.integers(0, 65535), st.integers(0, 65535), st.integers(1, 32768))
def test_need_event_is_membership_of_the_batch(event: int, old: int, count: int) -> None:
    new = (old + count) % 65536
    batch = {(old + i) % 65536 for i in range(count)} if count < 600 else None
    if batch is None:
        assert vring_need_event(event, new, old) == ((event - old) % 65536 < count)
    else:
        assert vring_need_event(event, new, old) == (event in batch)


def test_no_interrupt_flag(memory: GuestMemory) -> None:
    driver, queue = pair(memory)
    for wanted in (True, False):
        if not wanted:
            driver.disable_callbacks()
        driver.add([b"x"])
        queue.add_used(take(queue).head_idx, 0)
        assert queue.publish() is wanted


def test_event_idx_interrupts_once_per_wish(memory: GuestMemory) -> None:
    driver, queue = pair(memory, 8, event_idx=True)
    for _ in range(6):
        driver.add([b"x"])

    def complete() -> bool:
        queue.add_used(take(queue).head_idx, 0)
        return queue.publish()

    driver.set_used_event(2)
    assert [complete() for _ in range(5)] == [False, False, True, False, False]
    driver.completed()  # asks for the next
    assert complete() is True


def test_a_batch_is_published_and_signalled_once(memory: GuestMemory) -> None:
    driver, queue = pair(memory, 8, event_idx=True)
    for _ in range(4):
        driver.add([b"x"])
    driver.set_used_event(1)
    for _ in range(4):
        queue.add_used(take(queue).head_idx, 0)
        assert driver.used_idx == 0
    assert queue.publish() is True
    assert driver.used_idx == 4
    assert queue.publish() is False  # nothing new: no second interrupt


@pytest.mark.parametrize("event_idx", [False, True])
def test_kicks_are_suppressed_until_asked_for(memory: GuestMemory, event_idx: bool) -> None:
    driver, queue = pair(memory, 8, event_idx=event_idx)
    driver.add([b"x"])
    assert driver.kick_prepare() is True  # a fresh ring wants the first kick
    queue.disable_notification()
    take(queue)
    driver.add([b"x"])
    assert driver.kick_prepare() is False
    assert queue.enable_notification() is True  # the second chain came without a kick
    take(queue)
    assert queue.enable_notification() is False
    driver.add([b"x"])
    assert driver.kick_prepare() is True


# The lost wakeup


class Fence:
    """Stands in for the queue's fence, and lets the driver act in that very moment."""

    def __init__(self, action: Any) -> None:
        self.action = action
        self.passed = 0

    def __enter__(self) -> None:
        self.passed += 1
        self.action()

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("event_idx", [False, True])
def test_chain_added_while_kicks_are_being_enabled(memory: GuestMemory, event_idx: bool) -> None:
    """The driver adds a chain at the fence, having decided before it that no kick is wanted.

    Were avail->idx read before the fence, or the wish for kicks stored after it, both sides would
    sleep.
    """
    driver, queue = pair(memory, 8, event_idx=event_idx)
    for _ in range(2):
        driver.add([b"x"])
    queue.disable_notification()
    for _ in range(2):
        take(queue)
    wish_seen_at_fence = []

    def driver_adds() -> None:
        wish_seen_at_fence.append(
            driver.avail_event == 2 if event_idx else driver._word(driver.device_gpa) == 0
        )
        driver.add([b"late"])

    queue._fence = Fence(driver_adds)  # type: ignore[assignment]
    assert queue.enable_notification() is True
    assert wish_seen_at_fence == [True]
    assert bytes(take(queue).readable[0]) == b"late"


@pytest.mark.parametrize("event_idx", [False, True])
def test_interrupts_enabled_while_publishing(memory: GuestMemory, event_idx: bool) -> None:
    """The driver enables interrupts at the fence: it must see the new used idx, or we its wish."""
    driver, queue = pair(memory, 8, event_idx=event_idx)
    driver.disable_callbacks()
    driver.add([b"x"])
    queue.add_used(take(queue).head_idx, 0)
    used_idx_at_fence = []

    def driver_enables() -> None:
        used_idx_at_fence.append(driver.used_idx)
        if event_idx:
            driver.set_used_event(driver.last_used_idx)
        else:
            driver._set_word(driver.driver_gpa, 0)

    queue._fence = Fence(driver_enables)  # type: ignore[assignment]
    assert queue.publish() is True
    assert used_idx_at_fence == [1]


# Snapshot and lifetime


def test_state_continues_in_another_queue(memory: GuestMemory) -> None:
    driver, queue = pair(memory, 8, event_idx=True, indirect=True)
    for _ in range(5):
        driver.add([], [1])
    first, second = take(queue), take(queue)
    queue.add_used(first.head_idx, 1)
    queue.publish()
    queue.add_used(second.head_idx, 1)  # not published: it must not get lost
    restored = Virtqueue.from_state(queue.state(), memory=memory)
    assert restored.state() == queue.state()
    queue.close()
    assert restored.publish() is False  # the driver's event was at the first
    restored.add_used(take(restored).head_idx, 1)
    restored.publish()
    assert len(driver.completed()) == 3


def test_closed_queue_keeps_nothing_of_guest_memory() -> None:
    memory = GuestMemory(1 << 20)
    driver, queue = pair(memory)
    driver.add([b"x"])
    chain = take(queue)
    queue.close()
    queue.close()
    with pytest.raises(ValueError, match="released"):
        queue.next_chain()
    del chain
    memory.close()  # raises BufferError if a view is left
