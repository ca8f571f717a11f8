"""The block device behind its transport, driven by the fake driver."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.unit.virtio.block_guest import SECTOR, FakeDisk, Guest, host_error
from tests.unit.virtio.driver import ALL_FEATURES
from voidbox.block.workers import WORKERS_MAX, Workers
from voidbox.errors import ConfigError, HostError
from voidbox.memory import GuestMemory
from voidbox.virtio import block, block_work
from voidbox.virtio.block import VirtioBlock
from voidbox.virtio.block_config import (
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_WRITE_ZEROES,
)
from voidbox.virtio.block_request import (
    RANGE,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
)

MakeGuest = Callable[..., Guest]


@pytest.fixture
def make_guest(memory: GuestMemory) -> Iterator[MakeGuest]:
    guests: list[Guest] = []

    def make(disk: FakeDisk | None = None, **options: object) -> Guest:
        guests.append(Guest(memory, disk or FakeDisk(), **options))  # type: ignore[arg-type]
        return guests[-1]

    yield make
    for guest in guests:
        guest.close()


@pytest.fixture
def guest(make_guest: MakeGuest) -> Guest:
    return make_guest()


def test_what_is_written_is_read(guest: Guest) -> None:
    data = os.urandom(3 * SECTOR)
    guest.write(5, data)
    assert guest.disk.data[5 * SECTOR : 8 * SECTOR] == data
    assert guest.read(4, 5) == bytes(guest.disk.data[4 * SECTOR : 9 * SECTOR])
    assert guest.read(63) == bytes([64]) * SECTOR
    counts = guest.device.statistics()
    assert (counts.reads, counts.read_bytes) == (2, 6 * SECTOR)
    assert (counts.writes, counts.written_bytes) == (1, 3 * SECTOR)
    assert (counts.errors, counts.refused) == (0, 0)


def test_the_configuration_space(make_guest: MakeGuest) -> None:
    """Field by field at the offsets of linux/virtio_blk.h."""
    config = make_guest(FakeDisk(sectors=1000)).driver.config(0, 60)
    fields = {
        "capacity": (0, "<Q", 1000), "size_max": (8, "<I", 128 << 10), "seg_max": (12, "<I", 254),
        "blk_size": (20, "<I", 512), "physical_block_exp": (24, "<B", 3),
        "alignment_offset": (25, "<B", 0), "min_io_size": (26, "<H", 0),
        "opt_io_size": (28, "<I", 0),
        "num_queues": (34, "<H", 1), "max_discard_sectors": (36, "<I", 8 << 20),
        "max_discard_seg": (40, "<I", 32), "discard_sector_alignment": (44, "<I", 8),
        "max_write_zeroes_sectors": (48, "<I", 32 << 10), "max_write_zeroes_seg": (52, "<I", 1),
        "write_zeroes_may_unmap": (56, "<B", 1),
    }  # fmt: skip
    for name, (offset, code, expected) in fields.items():
        assert struct.unpack_from(code, config, offset) == (expected,), name


@pytest.mark.parametrize(
    ("readable", "writable", "kind"),
    [
        ([16, 512, 512], [1], VIRTIO_BLK_T_OUT),
        ([1, 15 + 100, 412, 512], [1], VIRTIO_BLK_T_OUT),
        ([1040], [1], VIRTIO_BLK_T_OUT),
        ([8, 8], [512, 513], VIRTIO_BLK_T_IN),
        ([16], [100, 924, 1], VIRTIO_BLK_T_IN),
        ([16], [1025], VIRTIO_BLK_T_IN),
    ],
)
@pytest.mark.parametrize("indirect", [False, True])
def test_any_layout_of_a_request_will_do(
    guest: Guest, readable: list[int], writable: list[int], kind: int, indirect: bool
) -> None:
    data = os.urandom(1024) if kind == VIRTIO_BLK_T_OUT else b""
    raw = struct.pack("<IIQ", kind, 0, 2) + data
    pieces = []
    for size in readable:
        pieces.append(raw[:size])
        raw = raw[size:]
    assert not raw
    guest.queue.add(pieces, writable, indirect=indirect)
    guest.run()
    (done,) = guest.queue.completed()
    assert done.data[-1:] == b"\0"
    if data:
        assert guest.disk.data[1024:2048] == data
    else:
        assert done.data[:-1] == guest.disk.data[1024:2048]


@pytest.mark.parametrize("kind", [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT])
@pytest.mark.parametrize(
    ("sector", "length"),
    [
        (64, 512), (63, 1024), (1 << 63, 512), ((1 << 64) - 1, 512), (0, 511), (0, 513), (0, 1),
        (3, 65 * 512),
    ],
)  # fmt: skip
def test_requests_that_reach_too_far_or_are_misaligned(
    guest: Guest, kind: int, sector: int, length: int
) -> None:
    before = bytes(guest.disk.data)
    if kind == VIRTIO_BLK_T_OUT:
        status, _ = guest.do(kind, sector, b"x" * length)
    else:
        status, _ = guest.do(kind, sector, room=length)
    assert status == VIRTIO_BLK_S_IOERR
    assert guest.disk.data == before
    assert not guest.disk.calls
    assert not guest.is_broken
    assert guest.device.statistics().refused == 1
    assert guest.read(0) == before[:512]


@pytest.mark.parametrize("kind", [2, 3, 5, 6, 7, 9, 10, 12, 14, 0x80000000, 0xFFFFFFFF])
def test_unknown_requests(guest: Guest, kind: int) -> None:
    assert guest.do(kind)[0] == VIRTIO_BLK_S_UNSUPP
    assert guest.do(kind, data=b"x" * 512)[0] == VIRTIO_BLK_S_UNSUPP
    assert not guest.is_broken


@pytest.mark.parametrize("size", [0, 1, 15])
def test_a_header_cut_short(guest: Guest, size: int) -> None:
    guest.queue.add([bytes(size)] if size else [], [513])
    guest.run()
    (done,) = guest.queue.completed()
    assert done.written_bytes == 1
    assert guest.device.statistics().refused == 1
    assert not guest.is_broken


@pytest.mark.parametrize("readable", [[b"x" * 16], [b"x" * 528], [struct.pack("<IIQ", 1, 0, 0)]])
def test_no_room_for_the_status(guest: Guest, readable: list[bytes]) -> None:
    guest.queue.add(readable, [])
    guest.run()
    assert guest.is_broken
    guest.boot()
    assert guest.read(0) == bytes(guest.disk.data[:512])


def test_the_serial(make_guest: MakeGuest) -> None:
    guest = make_guest(serial="voidbox-image")
    assert guest.do(VIRTIO_BLK_T_GET_ID, room=20) == (0, b"voidbox-image".ljust(20, b"\0"))
    assert guest.do(VIRTIO_BLK_T_GET_ID, room=5) == (0, b"voidb")
    assert guest.do(VIRTIO_BLK_T_GET_ID, room=100) == (0, b"voidbox-image".ljust(20, b"\0"))
    assert guest.do(VIRTIO_BLK_T_GET_ID)[0] == VIRTIO_BLK_S_IOERR


@pytest.mark.parametrize("serial", ["x" * 21, "é", "a\nb", "\0"])
def test_a_serial_that_is_none(serial: str) -> None:
    with pytest.raises(ConfigError, match="20 characters"):
        VirtioBlock(FakeDisk(), serial)


def test_a_read_only_disk(make_guest: MakeGuest) -> None:
    guest = make_guest(FakeDisk(is_read_only=True))
    features = guest.driver.device_features()
    assert features & VIRTIO_BLK_F_RO
    assert not features & (VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES)
    one = RANGE.pack(0, 8, 0)
    for kind, data in (
        (VIRTIO_BLK_T_OUT, b"x" * 512), (VIRTIO_BLK_T_DISCARD, one),
        (VIRTIO_BLK_T_WRITE_ZEROES, one),
    ):  # fmt: skip
        assert guest.do(kind, data=data)[0] == VIRTIO_BLK_S_IOERR
    assert not guest.disk.calls
    assert guest.do(VIRTIO_BLK_T_FLUSH)[0] == VIRTIO_BLK_S_OK
    assert guest.read(1) == bytes([2]) * 512


def test_discard_and_zeroes(guest: Guest) -> None:
    ranges = RANGE.pack(0, 8, 0) + RANGE.pack(60, 4, 0) + RANGE.pack(64, 0, 0)
    assert guest.do(VIRTIO_BLK_T_DISCARD, data=ranges)[0] == VIRTIO_BLK_S_OK
    assert guest.do(VIRTIO_BLK_T_WRITE_ZEROES, data=RANGE.pack(1, 2, 0))[0] == VIRTIO_BLK_S_OK
    assert guest.do(VIRTIO_BLK_T_WRITE_ZEROES, data=RANGE.pack(3, 1, 1))[0] == VIRTIO_BLK_S_OK
    assert guest.disk.calls == [
        ("discard 0 4096", True), ("discard 30720 2048", True), ("discard 32768 0", True),
        ("zero 512 1024 False", True), ("zero 1536 512 True", True),
    ]  # fmt: skip
    counts = guest.device.statistics()
    assert (counts.discards, counts.zeroes, counts.refused) == (1, 2, 0)


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        (VIRTIO_BLK_T_DISCARD, b"", VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_DISCARD, bytes(15), VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_DISCARD, bytes(17), VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_DISCARD, RANGE.pack(0, 1, 0) * 33, VIRTIO_BLK_S_UNSUPP),
        (VIRTIO_BLK_T_DISCARD, RANGE.pack(0, 1, 1), VIRTIO_BLK_S_UNSUPP),
        (VIRTIO_BLK_T_DISCARD, RANGE.pack(0, 1, 2), VIRTIO_BLK_S_UNSUPP),
        (VIRTIO_BLK_T_DISCARD, RANGE.pack(63, 2, 0), VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_DISCARD, RANGE.pack((1 << 64) - 1, 2, 0), VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_DISCARD, RANGE.pack(0, (1 << 32) - 1, 0), VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_DISCARD, RANGE.pack(0, 1, 0) + RANGE.pack(64, 1, 0), VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_WRITE_ZEROES, RANGE.pack(0, 1, 0) * 2, VIRTIO_BLK_S_UNSUPP),
        (VIRTIO_BLK_T_WRITE_ZEROES, RANGE.pack(0, 1, 2), VIRTIO_BLK_S_UNSUPP),
        (VIRTIO_BLK_T_WRITE_ZEROES, RANGE.pack(0, 1, 0x80000001), VIRTIO_BLK_S_UNSUPP),
        (VIRTIO_BLK_T_WRITE_ZEROES, RANGE.pack(64, 1, 0), VIRTIO_BLK_S_IOERR),
    ],
)
def test_ranges_that_break_a_rule(guest: Guest, kind: int, data: bytes, expected: int) -> None:
    assert guest.do(kind, data=data)[0] == expected
    assert not guest.disk.calls
    assert not guest.is_broken


# Who does the work.


def test_what_is_in_the_page_cache_is_read_in_place(guest: Guest) -> None:
    for sector in range(32):
        guest.add(VIRTIO_BLK_T_IN, sector, room=512)
    guest.run()
    assert len(guest.queue.completed()) == 32
    assert guest.disk.calls == [("read", False)] * 32
    assert guest.line.pulses == 1  # one interrupt for all


def test_what_is_not_is_read_by_a_worker(guest: Guest) -> None:
    guest.disk.nowait = errno.EAGAIN
    assert guest.read(3) == bytes([4]) * 512
    assert guest.disk.calls == [("read", True)]
    guest.disk.nowait = None
    guest.read(3)
    assert guest.disk.calls[1:] == [("read", False)]


def test_where_nobody_can_tell_what_is_slow_goes_to_workers(guest: Guest) -> None:
    guest.disk.nowait = errno.EOPNOTSUPP
    guest.read(0)
    for _ in range(3):
        guest.read(0)
    assert guest.disk.calls == [("read", True)] + [("read", False)] * 3
    read = guest.disk.read

    def slow_read(*arguments: object) -> None:
        guest.now_ns += block_work.SLOW_NS + 512 * block_work.SLOW_NS_PER_BYTE + 1
        read(*arguments)  # type: ignore[arg-type]

    guest.disk.read = slow_read  # type: ignore[method-assign, assignment]
    guest.read(0)
    guest.disk.read = read  # type: ignore[method-assign]
    guest.disk.calls.clear()
    for _ in range(block_work.SLOW_REQUESTS + 1):
        guest.read(0)
    assert guest.disk.calls == [("read", True)] * block_work.SLOW_REQUESTS + [("read", False)]


def test_a_slow_disk_holds_nothing_up_but_its_own_request(guest: Guest) -> None:
    guest.disk.gate.clear()
    flush = guest.add(VIRTIO_BLK_T_FLUSH)
    guest.driver.kick(0)
    guest.loop.run()
    guest.add(VIRTIO_BLK_T_IN, 1, room=512)
    guest.driver.kick(0)
    guest.loop.run()
    (done,) = guest.queue.completed()
    assert done.data[:-1] == bytes([2]) * 512
    guest.disk.gate.set()
    guest.run()
    (done,) = guest.queue.completed()
    assert done.head_idx == flush


def test_a_whole_ring_in_flight(make_guest: MakeGuest) -> None:
    """As many as the ring holds, none lost, by no more threads than there may be."""
    guest = make_guest()
    guest.disk.nowait = errno.EAGAIN
    guest.disk.gate.clear()
    for sector in range(85):  # three descriptors each
        guest.add(VIRTIO_BLK_T_IN, sector % 64, room=512)
    guest.driver.kick(0)
    guest.loop.run()
    threads = [one for one in threading.enumerate() if one.name == "voidbox-disk"]
    assert len(threads) == WORKERS_MAX
    guest.disk.gate.set()
    guest.run()
    assert len(guest.queue.completed()) == 85
    assert not guest.is_broken


def test_work_is_bounded_per_pass(guest: Guest) -> None:
    for _ in range(85):
        guest.add(VIRTIO_BLK_T_IN, 0, room=512)
    guest.driver.kick(0)
    guest.loop.turn()
    assert len(guest.queue.completed()) == block.PASS_REQUESTS
    assert len(guest.loop.pending) == 1
    guest.transport.notify(0)  # a kick beside the deferred pass adds none
    assert len(guest.loop.pending) == 1
    guest.loop.run()
    assert len(guest.queue.completed()) == 85 - block.PASS_REQUESTS


# Flushes.


def test_without_flushes_a_write_is_done_when_it_is_on_the_disk(make_guest: MakeGuest) -> None:
    guest = make_guest(features=ALL_FEATURES & ~VIRTIO_BLK_F_FLUSH)
    guest.write(0, b"x" * 512)
    assert guest.disk.calls == [("write", True), ("flush", True)]
    guest.disk.calls.clear()
    guest.do(VIRTIO_BLK_T_DISCARD, data=RANGE.pack(0, 8, 0))
    assert guest.disk.calls == [("discard 0 4096", True), ("flush", True)]


def test_a_flush_comes_after_the_writes_before_it(guest: Guest) -> None:
    guest.write(0, b"x" * 512)
    guest.write(1, b"y" * 512)
    assert guest.do(VIRTIO_BLK_T_FLUSH)[0] == VIRTIO_BLK_S_OK
    assert guest.disk.calls == [("write", False), ("write", False), ("flush", True)]
    assert guest.device.statistics().flushes == 1


# Errors of the host.


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_errors_of_the_host_are_the_guests_and_said_once(
    guest: Guest, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    for _ in range(3):
        guest.disk.error = host_error(number)
        assert guest.do(VIRTIO_BLK_T_OUT, 0, b"x" * 512)[0] == VIRTIO_BLK_S_IOERR
    for kind in (VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_DISCARD):
        guest.disk.error = host_error(number)
        assert guest.do(kind, data=RANGE.pack(0, 1, 0))[0] == VIRTIO_BLK_S_IOERR
    guest.disk.nowait = errno.EAGAIN
    guest.disk.error = host_error(number)
    assert guest.do(VIRTIO_BLK_T_IN, room=512)[0] == VIRTIO_BLK_S_IOERR
    assert guest.device.statistics().errors == 6
    assert [message.split(":")[1] for message in caplog.messages] == [
        " cannot write", " cannot flush", " cannot discard", " cannot read",
    ]  # fmt: skip
    assert "disk: cannot write: Input/output error" in caplog.messages[0]
    assert not guest.is_broken
    guest.write(0, b"y" * 512)


def test_a_bug_in_a_worker_is_the_loops_to_tell(guest: Guest) -> None:
    guest.disk.flush = lambda: [][0]  # type: ignore[method-assign]
    guest.add(VIRTIO_BLK_T_FLUSH)
    with pytest.raises(RuntimeError, match="IndexError"):
        guest.run()
    assert guest.read(0) == bytes([1]) * 512


# Resets while something is under way.


def start_read(guest: Guest) -> int:
    """A read that a worker is at; returns where the guest wants it."""
    guest.disk.nowait = errno.EAGAIN
    guest.disk.gate.clear()
    head_idx = guest.add(VIRTIO_BLK_T_IN, 0, room=512)
    (gpa, _), _ = guest.queue.requests[head_idx].writable
    guest.driver.kick(0)
    guest.loop.run()
    while not guest.disk.calls:
        time.sleep(0)
    return gpa


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_reset_waits_for_what_writes_to_guest_memory(guest: Guest, how: str) -> None:
    gpa = start_read(guest)
    release = threading.Timer(0.05, guest.disk.gate.set)
    release.start()
    if how == "reset":
        guest.driver.reset()
    else:
        guest.transport.close()
    assert guest.disk.gate.is_set()  # it has waited
    guest.memory.write(gpa, b"\xaa" * 512)  # the driver's again, for whatever it likes
    release.join()
    guest.loop.run()
    assert guest.memory.read(gpa, 512) == b"\xaa" * 512


def test_a_reset_forgets_what_has_not_begun(guest: Guest) -> None:
    start_read(guest)
    for sector in range(60):
        guest.add(VIRTIO_BLK_T_IN, sector, room=512)
    guest.driver.kick(0)
    guest.loop.run()
    release = threading.Timer(0.05, guest.disk.gate.set)
    release.start()
    guest.driver.reset()
    release.join()
    assert len(guest.disk.calls) <= WORKERS_MAX
    guest.boot()
    guest.disk.nowait = None
    assert guest.read(7) == bytes([8]) * 512
    assert not guest.is_broken
    assert not guest.loop.pending


def test_an_answer_that_comes_after_the_device_gave_up(guest: Guest) -> None:
    start_read(guest)
    guest.queue.add([b"x" * 16], [])
    guest.driver.kick(0)
    guest.loop.run()
    assert guest.is_broken
    guest.disk.gate.set()
    guest.device._workers.drain()
    guest.loop.run()
    assert guest.queue.completed() == []
    guest.boot()
    guest.disk.nowait = None
    assert guest.read(7) == bytes([8]) * 512


def test_the_driver_hears_of_long_requests_before_the_pass_ends(make_guest: MakeGuest) -> None:
    guest = make_guest(FakeDisk(sectors=2048))
    for _ in range(5):
        guest.add(VIRTIO_BLK_T_IN, 0, room=block.TELL_BYTES // 4)
    pulses = []
    read = guest.disk.read

    def noting_read(*arguments: object, **options: object) -> None:
        pulses.append(guest.line.pulses)
        read(*arguments, **options)  # type: ignore[arg-type]

    guest.disk.read = noting_read  # type: ignore[method-assign, assignment]
    guest.run()
    assert pulses == [0, 0, 0, 0, 1]
    assert len(guest.queue.completed()) == 5


def test_thousands_of_requests(guest: Guest) -> None:
    """Through wraps of the ring, in place and by workers in turn."""
    served = 0
    for round_ in range(300):
        guest.disk.nowait = errno.EAGAIN if round_ % 3 == 0 else None
        for index in range(round_ % 80 + 1):
            guest.add(VIRTIO_BLK_T_IN, (served + index) % 64, room=512)
        guest.run()
        served += len(guest.queue.completed())
        assert not guest.queue.requests
    assert served == sum(round_ % 80 + 1 for round_ in range(300))
    assert guest.driver.spurious_interrupts == 0


def test_workers_end_and_begin_again_none() -> None:
    workers = Workers("voidbox-test")
    done: list[int] = []
    for number in range(50):
        workers.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    workers.drain()
    assert sorted(done) == list(range(50))
    workers.close()
    workers.close()
    assert not [one for one in threading.enumerate() if one.name == "voidbox-test"]


def test_a_pause_waits_for_what_workers_do(guest: Guest) -> None:
    gpa = start_read(guest)
    release = threading.Timer(0.05, guest.disk.gate.set)
    release.start()
    guest.transport.pause()
    assert guest.disk.gate.is_set()
    assert guest.transport.state().virtqueues  # nothing is under way
    assert guest.memory.read(gpa, 512) == bytes(guest.disk.data[:512])
    assert len(guest.queue.completed()) == 1
    release.join()
    guest.add(VIRTIO_BLK_T_IN, 1, room=512)
    guest.driver.kick(0)
    guest.loop.run()
    assert not guest.queue.completed()
    guest.transport.resume()
    guest.run()
    assert len(guest.queue.completed()) == 1


def test_a_disk_that_does_not_answer_is_not_waited_for_for_ever(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_work, "PAUSE_S", 0.05)
    start_read(guest)
    with pytest.raises(HostError, match="did not answer"):
        guest.transport.pause()
    guest.disk.gate.set()
    guest.run()
    assert len(guest.queue.completed()) == 1
