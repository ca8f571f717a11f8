"""virtio-fs against a driver-side fake: messages through the rings, resets, a worker that hangs."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.fuse.client import message
from tests.unit.virtio.driver import FakeLoop, IrqLine, MmioDriver
from voidbox.errors import GuestError
from voidbox.fuse import numbers
from voidbox.fuse.numbers import FUSE_ROOT_ID as ROOT
from voidbox.fuse.server import Answer, Server
from voidbox.fuse.session import Exchange
from voidbox.fuse.wire import IN_HEADER, OUT_HEADER
from voidbox.memory import GuestMemory
from voidbox.virtio.device import VIRTIO_CONFIG_S_NEEDS_RESET
from voidbox.virtio.fs import VirtioFs
from voidbox.virtio.mmio import MmioTransport

DEADLINE_S = 60.0
HIPRIO, REQUESTS = 0, 1
INIT = message(numbers.FUSE_INIT, 0, struct.pack("<IIII48x", 7, 36, 0, 0))


def reading(fh: int, offset: int, count: int, unique: int = 7) -> bytes:
    body = struct.pack("<QQIIQII", fh, offset, count, 0, 0, 0, 0)
    return message(numbers.FUSE_READ, ROOT, body, unique)


def is_good(answer: bytes) -> bool:
    size, error, _ = OUT_HEADER.unpack_from(answer)
    return (size, error) == (len(answer), 0)


class SlowServer(Server):
    """Waits where a test says so: in the middle of a request."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.go_on = threading.Event()
        self.go_on.set()
        self.entered = threading.Event()

    def handle(self, message: bytes, exchange: Exchange) -> Answer | None:
        self.entered.set()
        assert self.go_on.wait(DEADLINE_S)
        return super().handle(message, exchange)


class Guest:
    def __init__(self, memory: GuestMemory, folder: Path) -> None:
        self.memory = memory
        self.loop, self.line = FakeLoop(), IrqLine()
        self.server = SlowServer(str(folder))
        self.device = VirtioFs(self.server, "workspace")
        self.transport = MmioTransport(self.device, memory, self.line.pulse, self.loop.call_soon)
        self.driver = MmioDriver(self.transport, memory, self.line)
        self.boot()

    def boot(self) -> None:
        self.driver.probe()
        self.loop.run()
        self.hiprio, self.queue = self.driver.queues

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
        self.driver.kick(REQUESTS)
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

    def open(self, name: bytes, flags: int) -> int:
        """Begin, and open a file; return its handle."""
        assert is_good(self.ask(INIT))
        answer = self.ask(message(numbers.FUSE_LOOKUP, ROOT, name + b"\0"))
        assert is_good(answer)
        (node,) = struct.unpack_from("<Q", answer, 16)
        answer = self.ask(message(numbers.FUSE_OPEN, node, struct.pack("<II", flags, 0)))
        assert is_good(answer)
        (fh,) = struct.unpack_from("<Q", answer, 16)
        assert isinstance(fh, int)
        return fh


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


def test_the_configuration(guest: Guest) -> None:
    assert guest.driver.config(0, 36) == b"workspace".ljust(36, b"\0")
    assert guest.driver.config(36, 4) == b"\1\0\0\0"


@pytest.mark.parametrize("indirect", [False, True])
def test_data_goes_straight(guest: Guest, tmp_path: Path, indirect: bool) -> None:
    fh = guest.open(b"f", os.O_RDWR)
    # As Linux has it: the header by itself, and the pages of the reader behind it.
    answer = guest.ask(reading(fh, 5, 3000), room=(16, 1000, 24, 4096), indirect=indirect)  # type: ignore[arg-type]
    assert OUT_HEADER.unpack_from(answer) == (16 + 3000, 0, 7)
    assert answer[16:] == (tmp_path / "f").read_bytes()[5:3005]
    data = bytes(range(255, 0, -1)) * 4
    body = struct.pack("<QQIIQII", fh, 100, len(data), 0, 0, 0, 0) + data
    whole = message(numbers.FUSE_WRITE, ROOT, body)
    for pieces in (
        (whole[:40], whole[40:80], whole[80:]),
        (whole[:87], whole[87:170], whole[170:]),
        (whole,),
    ):
        (tmp_path / "f").write_bytes(b"")
        answer = guest.ask(*pieces, room=(16, 8))
        assert answer == OUT_HEADER.pack(24, 0, 7) + struct.pack("<II", len(data), 0)
        assert (tmp_path / "f").read_bytes() == bytes(100) + data


def test_many_at_once(guest: Guest) -> None:
    fh = guest.open(b"f", os.O_RDONLY)
    guest.server.go_on.clear()
    pulses = guest.line.pulses
    for offset in range(40):
        guest.add(reading(fh, offset, 1, offset), room=(64,))
    guest.loop.run()
    guest.server.go_on.set()
    answers = guest.answers(40)
    assert [answer[16] for answer in answers] == list(range(40))
    assert guest.line.pulses - pulses <= 11  # four answers an interrupt, but for the first ones


def test_what_is_not_answered(guest: Guest) -> None:
    """FUSE_FORGET has its own queue, and no room for an answer."""
    assert is_good(guest.ask(INIT))
    answer = guest.ask(message(numbers.FUSE_LOOKUP, ROOT, b"f\0"))
    (node,) = struct.unpack_from("<Q", answer, 16)
    assert guest.server.nodes == 2
    guest.hiprio.add((message(numbers.FUSE_FORGET, node, struct.pack("<Q", 1)),), ())
    guest.driver.kick(HIPRIO)
    deadline = time.monotonic() + DEADLINE_S
    done: list[object] = []
    while not done:
        guest.loop.run()
        done += guest.hiprio.completed()
        assert time.monotonic() < deadline
    assert guest.server.nodes == 1


@pytest.mark.parametrize(
    ("readable", "room"),
    [
        ((b"\x07\0\0\0\x64\1",), (64,)),  # no header
        ((INIT,), (15,)),  # no room for a fuse_out_header
        ((INIT,), ()),
        ((), (64,)),
        ((INIT[:39],), (64,)),
        ((IN_HEADER.pack(39, 26, 1, 0, 0, 0, 0, 0, 0),), (64,)),
        ((IN_HEADER.pack(41, 26, 1, 0, 0, 0, 0, 0, 0),), (64,)),  # longer than it is
        ((IN_HEADER.pack(0xFFFFFFFF, 16, 1, 0, 0, 0, 0, 0, 0),), (64,)),
    ],
)
def test_what_breaks_the_device(
    guest: Guest, readable: tuple[bytes, ...], room: tuple[int, ...]
) -> None:
    guest.add(*readable, room=room)
    guest.until_broken()
    guest.boot()
    assert is_good(guest.ask(INIT))


def test_an_answer_without_room_breaks_the_device(guest: Guest) -> None:
    guest.ask(INIT)
    guest.add(message(numbers.FUSE_GETATTR, ROOT, bytes(16)), room=(20,))
    guest.until_broken()
    guest.boot()
    assert is_good(guest.ask(INIT))


def test_too_long_a_request_is_refused(guest: Guest) -> None:
    guest.ask(INIT)
    answer = guest.ask(message(numbers.FUSE_LOOKUP, ROOT, bytes(73 << 10)))
    assert OUT_HEADER.unpack_from(answer)[1] < 0


def test_a_reset_while_a_request_runs(guest: Guest) -> None:
    """Nothing is written to buffers that are the driver's again, and the session is a new one."""
    fh = guest.open(b"f", os.O_RDONLY)
    guest.server.go_on.clear()
    guest.server.entered.clear()
    for _ in range(5):
        guest.add(reading(fh, 0, 1000), room=(2000,))
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
    assert is_good(guest.ask(INIT))
    for request in requests:
        for gpa, length in request.writable:
            assert guest.memory.read(gpa, length) == b"\xaa" * length
    assert (guest.server.nodes, guest.server.handles) == (1, 0)


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
        guest.add(INIT)
        guest.loop.run()
        assert breaking.wait(DEADLINE_S)
        guest.transport.write(0x070, 4, 0)  # Status; the loop is this thread
        guest.loop.run()
        guest.boot()
    go_on.set()
    assert is_good(guest.ask(INIT))
    assert not guest.broken


def test_a_reset_waits_for_data_that_is_under_way(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    fh = guest.open(b"f", os.O_RDONLY)
    is_reading, go_on = threading.Event(), threading.Event()
    preadv = os.preadv

    def slow(fd: int, buffers: list[memoryview], offset: int) -> int:
        is_reading.set()
        assert go_on.wait(DEADLINE_S)
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", slow)
    guest.add(reading(fh, 0, 100), room=(200,))
    guest.loop.run()
    assert is_reading.wait(DEADLINE_S)
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
    fh = guest.open(b"f", os.O_RDONLY)
    guest.server.go_on.clear()
    guest.server.entered.clear()
    for _ in range(20):
        guest.add(reading(fh, 0, 1000), room=(2000,))
    guest.loop.run()
    assert guest.server.entered.wait(DEADLINE_S)
    threading.Timer(0.05, guest.server.go_on.set).start()
    guest.device.close()  # waits for the one that runs
    assert not [thread for thread in threading.enumerate() if thread.name == "voidbox-fs"]


def test_a_bug_ends_the_machine(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(message: bytes, exchange: Exchange) -> Answer:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(guest.server, "handle", fail)
    guest.add(INIT)
    with pytest.raises(RuntimeError, match="a bug"):
        guest.answers(1)


def test_a_pause_keeps_the_worker_out(guest: Guest) -> None:
    assert guest.ask(INIT)
    guest.transport.pause()
    guest.add(INIT)
    guest.loop.run()
    before = bytes(guest.memory.view(0, guest.memory.size_bytes))
    threading.Event().wait(0.05)
    assert bytes(guest.memory.view(0, guest.memory.size_bytes)) == before
    guest.transport.resume()
    assert guest.answers(1)
    guest.transport.pause()
    guest.device.close()  # though it is paused
