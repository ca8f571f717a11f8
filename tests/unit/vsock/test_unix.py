"""The Unix-socket backend, whole: real sockets and epoll, real rings, a guest's driver."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.vsock.guest import BOTH, RCV, SEND
from tests.unit.vsock.loop import EpollLoop
from tests.unit.vsock.machine import Machine
from voidbox.errors import ConfigError, HostError
from voidbox.vsock import muxer, unix
from voidbox.vsock.unix import UnixBackend
from voidbox.vsock.unix_listener import UnixListener


def connections(machine: Machine) -> int:
    return machine.backend.statistics().muxer.connections


def test_a_host_program_reaches_the_guest(machine: Machine) -> None:
    with machine.open_to_guest(22) as program:
        program.send(b"hello")
        sock = machine.guest.accepted[-1]
        machine.until(lambda: sock.data == b"hello")
        sock.send(b"world")
        assert machine.receive(program, 5) == b"world"


def test_data_behind_the_connect_line_is_the_guests(machine: Machine) -> None:
    machine.guest.listening.add(22)
    with machine.connect(b"connect 22\r\nearly\nbird\n") as program:
        machine.until(lambda: machine.guest.accepted)
        sock = machine.guest.accepted[-1]
        machine.until(lambda: sock.data == b"early\nbird\n")
        assert machine.receive(program, 14).startswith(b"OK ")


def test_a_connect_line_byte_by_byte(machine: Machine) -> None:
    machine.guest.listening.add(22)
    with machine.connect(b"") as program:
        for byte in b"CONNECT 22":
            program.send(bytes([byte]))
            machine.settle()
        assert not machine.guest.accepted
        program.send(b"\n")
        assert machine.receive(program, 3) == b"OK "


def test_the_guest_reaches_a_host_program(machine: Machine) -> None:
    with machine.listen(5000) as listener:
        sock = machine.guest.connect(5000)
        machine.until(lambda: sock.connected)
        program, _ = listener.accept()
        program.setblocking(False)
        with program:
            sock.send(b"hello")
            assert machine.receive(program, 5) == b"hello"
            program.send(b"world")
            machine.until(lambda: sock.data == b"world")


@pytest.mark.parametrize("rx_layout", [(44, 4096), (4140,), (10, 34, 100), (65580,), (20, 4000)])
def test_bulk_both_ways_at_once(tmp_path: Path, rx_layout: tuple[int, ...]) -> None:
    """Whatever the layout of the guest's buffers."""
    machine = Machine(tmp_path / "v.sock", rx_layout=rx_layout)
    machine.boot()
    data = random.Random(1).randbytes(1 << 20)
    with machine.open_to_guest() as program:
        sock = machine.guest.accepted[-1]
        sock.send(data)
        machine.send(program, data)
        assert machine.receive(program, len(data)) == data
        machine.until(lambda: len(sock.data) == len(data))
        assert sock.data == data
    machine.settle()
    machine.close()


def test_one_interrupt_for_a_batch(machine: Machine) -> None:
    with machine.open_to_guest() as program:
        machine.settle()
        sock = machine.guest.accepted[-1]
        pulses = machine.line.pulses
        machine.send(program, bytes(150_000))
        machine.until(lambda: len(sock.data) == 150_000)
        assert machine.line.pulses - pulses <= 8  # for 37 packets


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"CONNECT\n",
        b"CONNECT x\n",
        b"CONNECT -1\n",
        b"CONNECT 4294967295\n",  # VMADDR_PORT_ANY
        b"CONNECT 4294967296\n",
        b"CONNECT 22 \n",
        b" CONNECT 22\n",
        b"\n",
        b"\0" * 32,
        b"CONNECT 0000000000000000000000022\n",
        b"x" * 100_000,
        "CONNECT ٢٢\n".encode(),
    ],
)
def test_garbage_in_the_connect_line(machine: Machine, line: bytes) -> None:
    machine.guest.listening.add(22)
    with machine.connect(line) as program:
        assert machine.receive(program, 1) == b""
    assert machine.backend.statistics().bad_greetings == 1
    assert not machine.guest.accepted


def test_a_program_that_says_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix, "CONNECT_LINE_TIMEOUT_NS", 20_000_000)
    with machine.connect(b"CONNECT 2") as program:
        machine.settle()
        assert machine.backend.statistics().greeters == 1
        assert machine.receive(program, 1) == b""
    assert machine.backend.statistics().greeters == 0


def test_a_program_that_leaves_before_the_line(machine: Machine) -> None:
    machine.connect(b"CONNECT 2").close()
    machine.settle()
    statistics = machine.backend.statistics()
    assert (statistics.greeters, statistics.bad_greetings) == (0, 1)


def test_silent_programs_hold_others_up_but_not_for_long(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix, "GREETERS_MAX", 4)
    silent = [machine.connect(b"") for _ in range(4)]
    machine.settle()
    machine.guest.listening.add(22)
    with machine.connect(b"CONNECT 22\n") as program:
        machine.settle()
        assert machine.backend.statistics().greeters == 4
        silent[0].close()
        assert machine.receive(program, 3) == b"OK "
    for other in silent:
        other.close()
    machine.settle()


def test_nobody_listens_in_the_guest(machine: Machine) -> None:
    with machine.connect(b"CONNECT 23\n") as program:
        assert machine.receive(program, 1) == b""
    assert connections(machine) == 0


def test_a_guest_that_does_not_answer(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muxer, "ANSWER_TIMEOUT_NS", 20_000_000)
    machine.guest.answers = False
    with machine.connect(b"CONNECT 22\n") as program:
        assert machine.receive(program, 1) == b""
    assert machine.backend.statistics().muxer.expired == 1
    assert connections(machine) == 0


def test_nobody_listens_on_the_host(machine: Machine) -> None:
    sock = machine.guest.connect(5000)
    machine.until(lambda: sock.gone)
    with machine.listen(5001) as listener:
        listener.close()
        sock = machine.guest.connect(5001)
        machine.until(lambda: sock.gone)


def test_a_full_backlog_refuses(machine: Machine) -> None:
    with machine.listen(5000, backlog=0):
        sockets = [machine.guest.connect(5000) for _ in range(4)]
        machine.until(lambda: all(sock.connected or sock.gone for sock in sockets))
        assert [sock.connected for sock in sockets].count(True) == 1


def test_the_program_half_closes(machine: Machine) -> None:
    with machine.open_to_guest() as program:
        sock = machine.guest.accepted[-1]
        program.send(b"last words")
        program.shutdown(socket.SHUT_WR)
        machine.until(lambda: sock.host_shutdown == SEND)
        machine.settle()
        assert sock.data == b"last words"
        sock.send(b"answer")
        assert machine.receive(program, 6) == b"answer"
        sock.close()
        assert machine.receive(program, 1) == b""
    machine.until(lambda: sock.gone)


def test_the_guest_half_closes(machine: Machine) -> None:
    with machine.open_to_guest() as program:
        sock = machine.guest.accepted[-1]
        sock.send(b"last words")
        sock.shutdown(SEND)
        assert machine.receive(program, 100) == b"last words"
        program.send(b"answer")
        machine.until(lambda: sock.data == b"answer")
        # Both directions are shut once the program says so too.
        program.shutdown(socket.SHUT_WR)
        machine.until(lambda: sock.host_shutdown == BOTH)
        machine.until(lambda: sock.gone)
    machine.settle()


def test_the_guest_reads_no_more(machine: Machine) -> None:
    with machine.open_to_guest() as program:
        sock = machine.guest.accepted[-1]
        sock.shutdown(RCV)
        machine.settle()
        with pytest.raises(BrokenPipeError):
            program.send(b"x")
        sock.send(b"still heard")
        assert machine.receive(program, 11) == b"still heard"


def test_the_program_reads_no_more(machine: Machine) -> None:
    with machine.open_to_guest() as program:
        sock = machine.guest.accepted[-1]
        program.shutdown(socket.SHUT_RD)
        sock.send(b"x")
        machine.until(lambda: sock.host_shutdown == RCV)
        program.send(b"but talks")
        machine.until(lambda: sock.data == b"but talks")
        machine.settle()


def test_a_program_closes_without_reading(machine: Machine) -> None:
    program = machine.open_to_guest()
    sock = machine.guest.accepted[-1]
    sock.send(b"never read")
    machine.settle()
    program.send(b"sent before")
    program.close()  # its peer gets ECONNRESET
    machine.until(lambda: sock.gone)
    assert sock.data == b"sent before"
    machine.settle()
    assert connections(machine) == 0


def test_a_program_closes_while_the_guest_has_no_room(machine: Machine) -> None:
    program = machine.open_to_guest()
    sock = machine.guest.accepted[-1]
    sock.reading = False
    with contextlib.suppress(BlockingIOError):
        while True:
            program.send(bytes(65536))
            machine.settle()
    program.close()
    machine.settle()  # EPOLLHUP does not spin
    assert not sock.host_shutdown
    sock.reading = True
    sock.read()
    machine.until(lambda: sock.gone)
    assert len(sock.data) > sock.buf_alloc


def test_a_slow_reader_is_bounded_and_alone(machine: Machine) -> None:
    size = 3 << 20
    with machine.open_to_guest(1) as slow, machine.open_to_guest(2) as fast:
        slow_sock, fast_sock = machine.guest.accepted[-2:]
        slow_sock.send(bytes(size))
        machine.settle()
        assert slow_sock.unsent
        assert 0 < machine.backend.statistics().muxer.buffered_bytes <= muxer.LARGE_BUF_ALLOC
        fast_sock.send(b"quick")
        assert machine.receive(fast, 5) == b"quick"
        assert len(machine.receive(slow, size)) == size
        machine.settle()
        assert machine.backend.statistics().muxer.buffered_bytes == 0


def test_rx_never_freezes(machine: Machine) -> None:
    """The guest posts no buffers for a while, as under memory pressure (CVE-2020-16843)."""
    machine.post_rx = False
    with machine.open_to_guest() as program:
        sock = machine.guest.accepted[-1]
        machine.send(program, bytes(200_000))
        while machine.driver.queues[0].requests:  # eat up the buffers that are left
            machine.send(program, bytes(100_000))
            machine.settle()
        machine.settle()
        before = len(sock.data)
        machine.send(program, b"the end")
        machine.settle()
        assert len(sock.data) == before
        machine.post_rx = True
        machine.refill()
        machine.until(lambda: sock.data.endswith(b"the end"))


def test_descriptors_run_out(machine: Machine) -> None:
    """EMFILE at accept(): the loop neither spins nor loses the program that waits."""
    machine.guest.listening.add(22)
    with machine.connect(b"CONNECT 22\n") as program, no_descriptors():
        machine.settle()
        calls = machine.loop.calls
        for _ in range(20):
            machine.turn()
        assert machine.loop.calls == calls
        assert machine.backend.statistics().accept_pauses == 1
        sock = machine.guest.connect(5000)
        machine.until(lambda: sock.gone)  # refused, not a crash
    with machine.connect(b"CONNECT 22\n") as program:
        assert machine.receive(program, 3) == b"OK "


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_ten_thousand_connections_in_turn(machine: Machine) -> None:
    machine.guest.listening.add(22)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(10_000):
        with machine.connect(b"CONNECT 22\n%d" % number) as program:
            machine.until(lambda: machine.guest.accepted)
            sock = machine.guest.accepted.pop()
            if number % 2:
                sock.close()
            else:
                program.close()
            machine.until(lambda: not machine.guest.sockets)
            if number % 2 == 0:
                assert sock.data == b"%d" % number
    machine.settle()
    assert connections(machine) == 0
    assert not machine.guest.sockets
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert machine.backend.statistics().muxer.violations == 0


def test_a_thousand_connections_at_once(machine: Machine) -> None:
    resource_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert resource_limit > 2200, "raise the limit of open files: ulimit -n 4096"
    machine.guest.listening.add(22)
    programs = []
    for number in range(1000):
        programs.append(machine.connect(b"CONNECT 22\n%d" % number))
        machine.turn()
    machine.until(lambda: len(machine.guest.accepted) == 1000)
    machine.until(lambda: all(sock.data for sock in machine.guest.accepted))
    assert sorted(int(sock.data) for sock in machine.guest.accepted) == list(range(1000))
    for sock in machine.guest.accepted:
        sock.send(bytes(sock.data))
    for number, program in enumerate(programs):
        answer = machine.receive(program, len(b"OK 1073741824\n%d" % number))
        assert answer.split() == [b"OK", answer.split()[1], b"%d" % number]
    for program in programs:
        program.close()
    machine.until(lambda: not machine.guest.sockets)
    machine.settle()
    assert connections(machine) == 0


def test_a_hundred_aborted_connections_and_one_that_works(machine: Machine) -> None:
    for number in range(100):
        program = machine.connect(b"CONNECT 22\n")
        if number % 2:
            machine.turn()
        program.close()
    machine.settle()
    with machine.open_to_guest():
        pass
    machine.settle()
    assert connections(machine) == 0


# The path.


def test_the_socket_is_private_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    loop = EpollLoop()
    backend = UnixBackend(str(path), 3, loop)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    backend.close()
    backend.close()
    assert not path.exists()
    loop.close()


def test_a_live_socket_is_respected_and_a_dead_one_replaced(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    loop = EpollLoop()
    backend = UnixBackend(str(path), 3, loop)
    with pytest.raises(ConfigError, match="in use"):
        UnixBackend(str(path), 3, loop)
    assert path.exists()
    backend.close()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    UnixBackend(str(path), 3, loop).close()
    assert not path.exists()
    loop.close()


def test_a_successors_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    loop = EpollLoop()
    backend = UnixBackend(str(path), 3, loop)
    path.unlink()
    successor = UnixBackend(str(path), 3, loop)
    backend.close()
    assert path.exists()
    successor.close()
    loop.close()


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    loop = EpollLoop()
    regular = tmp_path / "file"
    regular.write_text("precious")
    with pytest.raises(ConfigError, match="no socket"):
        UnixBackend(str(regular), 3, loop)
    assert regular.read_text() == "precious"
    with pytest.raises(ConfigError, match="107 bytes"):
        UnixBackend("/tmp/" + "x" * 103, 3, loop)
    with pytest.raises(ConfigError):
        UnixBackend("", 3, loop)
    with pytest.raises(HostError, match="ENOENT"):
        UnixBackend(str(tmp_path / "none" / "v.sock"), 3, loop)
    loop.close()


def test_a_backend_without_a_path_gets_one_later(tmp_path: Path) -> None:
    """A restored machine lets nobody in before its agent has become another's."""
    loop = EpollLoop()
    backend = UnixBackend(None, 7, loop)
    path = str(tmp_path / "late.sock")
    try:
        assert backend._connect(5000) is None  # the guest's own are refused
        backend.publish(UnixListener(path))
        with socket.socket(socket.AF_UNIX) as program, socket.socket(socket.AF_UNIX) as listener:
            program.connect(path)
            listener.bind(f"{path}_5000")
            listener.listen()
            stream = backend._connect(5000)
            assert stream is not None
            stream.close()
    finally:
        backend.close()
    assert not os.path.exists(path)
