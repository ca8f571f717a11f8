"""virtio-9p against a driver-side fake: messages through the rings, resets, a worker that hangs."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.ninep.client import text
from tests.unit.virtio.driver import FakeLoop, IrqLine, MmioDriver
from voidbox.errors import GuestError
from voidbox.memory import GuestMemory
from voidbox.ninep import numbers
from voidbox.ninep.numbers import P9_NOFID, P9_NOTAG
from voidbox.ninep.server import Answer, Server
from voidbox.ninep.session import Exchange
from voidbox.ninep.wire import HEADER
from voidbox.virtio.device import VIRTIO_CONFIG_S_NEEDS_RESET
from voidbox.virtio.mmio import MmioTransport
from voidbox.virtio.ninep import VirtioNinep

DEADLINE_S = 20.0


def message(kind: int, body: bytes, tag: int = 1) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, tag) + body


VERSION = message(numbers.P9_TVERSION, struct.pack("<I", 65536) + text(b"9P2000.L"), P9_NOTAG)
ATTACH = message(
    numbers.P9_TATTACH, struct.pack("<II", 0, P9_NOFID) + text(b"") + text(b"") + bytes(4)
)


class SlowServer(Server):
    """Waits where a test says so: in the middle of a request."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.go_on = threading.Event()
        self.go_on.set()
        self.entered = threading.Event()

    def handle(self, message: bytes, exchange: Exchange) -> Answer:
        self.entered.set()
        assert self.go_on.wait(DEADLINE_S)
        return super().handle(message, exchange)


class Guest:
    def __init__(self, memory: GuestMemory, folder: Path) -> None:
        self.memory = memory
        self.loop, self.line = FakeLoop(), IrqLine()
        self.server = SlowServer(str(folder))
        self.device = VirtioNinep(self.server, "workspace")
        self.transport = MmioTransport(self.device, memory, self.line.pulse, self.loop.call_soon)
        self.driver = MmioDriver(self.transport, memory, self.line)
        self.boot()

    def boot(self) -> None:
        self.driver.probe()
        self.loop.run()
        (self.queue,) = self.driver.queues

    @property
    def broken(self) -> bool:
        return bool(self.driver.status & VIRTIO_CONFIG_S_NEEDS_RESET)

    def until_broken(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not self.broken:
            self.loop.run()
            assert time.monotonic() < deadline
            time.sleep(0.0005)

    def add(self, *readable: bytes, room: tuple[int, ...] = (4096,), indirect: bool = False) -> int:
        head_idx = self.queue.add(readable, room, indirect=indirect)
        self.driver.kick(0)
        return head_idx

    def answers(self, count: int) -> list[bytes]:
        """Wait for so many answers."""
        found: list[bytes] = []
        deadline = time.monotonic() + DEADLINE_S
        while len(found) < count:
            self.loop.run()
            found += [done.data for done in self.queue.completed()]
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        return found

    def ask(self, *readable: bytes, **values: tuple[int, ...]) -> bytes:
        self.add(*readable, **values)  # type: ignore[arg-type]
        (answer,) = self.answers(1)
        return answer

    def open(self, name: bytes, flags: int) -> None:
        """Open a file as fid 1."""
        assert self.ask(VERSION)[4] == numbers.P9_TVERSION + 1
        assert self.ask(ATTACH)[4] == numbers.P9_TATTACH + 1
        walk = struct.pack("<IIH", 0, 1, 1) + text(name)
        assert self.ask(message(numbers.P9_TWALK, walk))[4] == numbers.P9_TWALK + 1
        answer = self.ask(message(numbers.P9_TLOPEN, struct.pack("<II", 1, flags)))
        assert answer[4] == numbers.P9_TLOPEN + 1


@pytest.fixture
def guest(memory: GuestMemory, tmp_path: Path) -> Iterator[Guest]:
    (tmp_path / "f").write_bytes(bytes(range(256)) * 64)
    guest = Guest(memory, tmp_path)
    yield guest
    guest.server.go_on.set()
    guest.device.close()
    guest.transport.close()
    guest.device.close()  # idempotent
    memory.close()  # nobody holds it any more: else BufferError


def test_the_tag(guest: Guest) -> None:
    assert guest.driver.config(0, 11) == b"\x09\0workspace"


@pytest.mark.parametrize("indirect", [False, True])
def test_data_goes_straight(guest: Guest, tmp_path: Path, indirect: bool) -> None:
    guest.open(b"f", os.O_RDWR)
    # As Linux has it: the header by itself, and the pages of the reader behind it.
    read = message(numbers.P9_TREAD, struct.pack("<IQI", 1, 5, 3000))
    answer = guest.ask(read, room=(11, 1000, 24, 4096), indirect=indirect)  # type: ignore[arg-type]
    assert HEADER.unpack_from(answer) == (11 + 3000, numbers.P9_TREAD + 1, 1)
    assert answer[11:] == (tmp_path / "f").read_bytes()[5:3005]
    data = bytes(range(255, 0, -1)) * 4
    header = HEADER.pack(23 + len(data), numbers.P9_TWRITE, 9)
    header += struct.pack("<IQI", 1, 100, len(data))
    for pieces in ((header, data), (header + data[:7], data[7:90], data[90:]), (header + data,)):
        (tmp_path / "f").write_bytes(b"")
        answer = guest.ask(*pieces, room=(11,))
        assert answer == HEADER.pack(11, numbers.P9_TWRITE + 1, 9) + struct.pack("<I", len(data))
        assert (tmp_path / "f").read_bytes() == bytes(100) + data


def test_many_at_once(guest: Guest) -> None:
    guest.open(b"f", os.O_RDONLY)
    guest.server.go_on.clear()
    for offset in range(40):
        guest.add(message(numbers.P9_TREAD, struct.pack("<IQI", 1, offset, 1), offset), room=(64,))
    guest.loop.run()
    guest.server.go_on.set()
    answers = guest.answers(40)
    assert [answer[11] for answer in answers] == list(range(40))
    assert guest.line.pulses <= 44


@pytest.mark.parametrize(
    ("readable", "room"),
    [
        ((b"\x07\0\0\0\x64\1",), (64,)),  # no header
        ((VERSION,), (10,)),  # no room for an Rlerror
        ((VERSION,), ()),
        ((), (64,)),
        ((HEADER.pack(6, 100, 1),), (64,)),
        ((HEADER.pack(8, 100, 1),), (64,)),  # longer than it is
        ((HEADER.pack(0xFFFFFFFF, 118, 1),), (64,)),
    ],
)
def test_what_breaks_the_device(
    guest: Guest, readable: tuple[bytes, ...], room: tuple[int, ...]
) -> None:
    guest.add(*readable, room=room)
    guest.until_broken()
    guest.boot()
    assert guest.ask(VERSION)[4] == numbers.P9_TVERSION + 1


def test_an_answer_without_room_breaks_the_device(guest: Guest) -> None:
    guest.ask(VERSION)
    guest.ask(ATTACH)
    guest.add(message(numbers.P9_TGETATTR, struct.pack("<IQ", 0, 1)), room=(20,))
    guest.until_broken()
    guest.boot()
    assert guest.ask(VERSION)[4] == numbers.P9_TVERSION + 1


def test_too_long_a_request_is_refused(guest: Guest) -> None:
    guest.ask(VERSION)
    answer = guest.ask(message(numbers.P9_TWALK, bytes(9000)))
    assert answer[4] == numbers.P9_RLERROR


def test_a_reset_while_a_request_runs(guest: Guest) -> None:
    """Nothing is written to buffers that are the driver's again, and the session is a new one."""
    guest.open(b"f", os.O_RDONLY)
    guest.server.go_on.clear()
    guest.server.entered.clear()
    for _ in range(5):
        guest.add(message(numbers.P9_TREAD, struct.pack("<IQI", 1, 0, 1000)), room=(2000,))
    guest.loop.run()
    assert guest.server.entered.wait(DEADLINE_S)
    requests = list(guest.queue.requests.values())
    guest.transport.write(0x070, 4, 0)  # Status; the loop is this thread
    guest.loop.run()
    for request in requests:
        for gpa, length in request.writable:
            guest.memory.write(gpa, b"\xaa" * length)
    guest.server.go_on.set()
    guest.boot()
    assert guest.ask(VERSION)[4] == numbers.P9_TVERSION + 1
    for request in requests:
        for gpa, length in request.writable:
            assert guest.memory.read(gpa, length) == b"\xaa" * length
    assert guest.server.fids == 0
    assert guest.ask(ATTACH)[4] == numbers.P9_TATTACH + 1


def test_what_broke_the_device_does_not_break_it_for_the_next_driver(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking, go_on = threading.Event(), threading.Event()

    def slow(_request: object) -> None:
        breaking.set()
        assert go_on.wait(DEADLINE_S)
        raise GuestError("of the driver before")

    with monkeypatch.context() as patch:
        patch.setattr(guest.device, "_serve", slow)
        guest.add(VERSION)
        guest.loop.run()
        assert breaking.wait(DEADLINE_S)
        guest.transport.write(0x070, 4, 0)  # Status; the loop is this thread
        guest.loop.run()
        guest.boot()
    go_on.set()
    assert guest.ask(VERSION)[4] == numbers.P9_TVERSION + 1
    assert not guest.broken


def test_a_reset_waits_for_data_that_is_under_way(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.open(b"f", os.O_RDONLY)
    reading, go_on = threading.Event(), threading.Event()
    preadv = os.preadv

    def slow(fd: int, buffers: list[memoryview], offset: int) -> int:
        reading.set()
        assert go_on.wait(DEADLINE_S)
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", slow)
    guest.add(message(numbers.P9_TREAD, struct.pack("<IQI", 1, 0, 100)), room=(200,))
    guest.loop.run()
    assert reading.wait(DEADLINE_S)
    done = threading.Event()

    def reset() -> None:
        guest.device.reset()
        done.set()

    thread = threading.Thread(target=reset)
    thread.start()
    assert not done.wait(0.05)
    go_on.set()
    thread.join()


def test_closing_while_a_request_runs(guest: Guest) -> None:
    guest.open(b"f", os.O_RDONLY)
    guest.server.go_on.clear()
    guest.server.entered.clear()
    for _ in range(20):
        guest.add(message(numbers.P9_TREAD, struct.pack("<IQI", 1, 0, 1000)), room=(2000,))
    guest.loop.run()
    assert guest.server.entered.wait(DEADLINE_S)
    threading.Timer(0.05, guest.server.go_on.set).start()
    guest.device.close()  # waits for the one that runs
    assert not [thread for thread in threading.enumerate() if thread.name == "voidbox-9p"]


def test_a_bug_ends_the_machine(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(message: bytes, exchange: Exchange) -> Answer:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(guest.server, "handle", fail)
    guest.add(VERSION)
    with pytest.raises(RuntimeError, match="a bug"):
        guest.answers(1)


def test_a_pause_keeps_the_worker_out(guest: Guest) -> None:
    assert guest.ask(VERSION)
    guest.transport.pause()
    guest.add(VERSION)
    guest.loop.run()
    before = bytes(guest.memory.view(0, guest.memory.size_bytes))
    threading.Event().wait(0.05)
    assert bytes(guest.memory.view(0, guest.memory.size_bytes)) == before
    guest.transport.resume()
    assert guest.answers(1)
    guest.transport.pause()
    guest.device.close()  # though it is paused
