"""The muxer joined to a model of a guest, with programs that are lists: no socket, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.vsock.guest import (
    BOTH,
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    GUEST_CID,
    HDR,
    RCV,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SEND,
    SHUTDOWN,
    Guest,
    GuestSocket,
    raw,
)
from voidbox.vsock import muxer as module
from voidbox.vsock.link import Link
from voidbox.vsock.muxer import Muxer

S = 1_000_000_000


class Program:
    """A host program's end: what it has sent, what it took, and how much it takes at once."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.outgoing = bytearray()
        self.taken = bytearray()
        self.takes = 1 << 30
        self.ended = False
        self.broken = False
        self.watched = (False, False)
        self.flags = 0
        self.host_port: int | None = None
        self.closed = False
        self.reads: list[int] = []

    def recv_into(self, buffers: list[memoryview]) -> int | None:
        assert sum(map(len, buffers)) > 0, "a read of nothing looks like the end"
        if not self.outgoing:
            return 0 if self.ended else None
        count = 0
        for buffer in buffers:
            part = self.outgoing[: len(buffer)]
            buffer[: len(part)] = part
            del self.outgoing[: len(part)]
            count += len(part)
        self.reads.append(count)
        return count

    def send(self, buffers: list[memoryview]) -> int | None:
        if self.broken:
            return None
        data = b"".join(buffers)[: self.takes]
        self.taken += data
        self.takes -= len(data)
        return len(data)

    def shutdown(self, flags: int) -> None:
        self.flags |= flags

    def established(self, host_port: int) -> None:
        self.host_port = host_port

    def watch(self, readable: bool, writable: bool) -> None:
        self.watched = (readable, writable)

    def close(self) -> None:
        self.closed = True


class Lab:
    """Muxer and guest; RX buffers are a list, and delivery happens in `run`.

    Args:
        is_short: take the short way for data, where it does.
        is_split: the guest's RX buffers are two each, as Linux's up to 6.2.
    """

    def __init__(self, is_short: bool = True, is_split: bool = True) -> None:
        self.is_short = is_short
        self.is_split = is_split
        self.now_ns = 0
        self.programs: dict[int, Program] = {}
        self.connected: list[Program] = []
        self.to_host: deque[bytes] = deque()
        self.guest = Guest(self.to_host.append)
        self.muxer = Muxer(GUEST_CID, self._connect)
        self.rx_free = 256
        self.rx_bytes = 44 + 4096
        self._taken: list[bytearray] = []
        self.delivered: list[bytes] = []

    def _connect(self, port: int) -> Program | None:
        if port not in self.programs:
            return None
        self.connected.append(self.programs[port])
        return self.programs[port]

    def listen(self, port: int) -> Program:
        self.programs[port] = Program()
        return self.programs[port]

    # RxBuffers

    def take(self, count: int) -> list[list[memoryview]]:
        self._taken = [bytearray(self.rx_bytes) for _ in range(min(count, self.rx_free))]
        views = [memoryview(buffer) for buffer in self._taken]
        return [[view[:44], view[44:]] if self.is_split else [view] for view in views]

    def commit(self, written_bytes: Sequence[int]) -> None:
        self.rx_free -= len(written_bytes)
        for buffer, written in zip(self._taken, written_bytes, strict=False):
            assert 44 <= written <= len(buffer)
            self.delivered.append(bytes(buffer[:written]))

    def take_one(self) -> list[memoryview] | None:
        buffers = self.take(1)
        return buffers[0] if buffers else None

    def commit_one(self, written_bytes: int) -> None:
        self.commit([written_bytes])

    def send(self, packet: list[memoryview]) -> None:
        """The guest sends: by the short way, if that does."""
        if not (self.is_short and self.muxer.send_data(packet)):
            self.muxer.send_pkt(packet, self.now_ns)

    def receive(self) -> bool:
        """Have one of the guest's buffers or more be filled; False if there was none."""
        if self.is_short and self.muxer.recv_data(self):
            return True
        return self.muxer.recv_pkt(self, self.now_ns) > 0

    def to_guest(self) -> int:
        """Pass on what waits for the guest; returns the number of packets."""
        count = 0
        while self.muxer.has_pending_rx() and self.receive():
            for data in self.delivered:
                self.rx_free += 1
                count += 1
                self.guest.deliver(data)
            self.delivered.clear()
        return count

    def run(self) -> None:
        for _ in range(10_000):
            while self.to_host:
                data = self.to_host.popleft()
                self.send([memoryview(data)])
            if not self.to_guest() and not self.to_host:
                return
        raise AssertionError("the two never come to rest")

    def ready(self, program: Program, *, hung_up: bool = False, writable: bool = False) -> None:
        """What level-triggered epoll would say, until it would say no more."""
        for _ in range(1000):
            link = program.link
            if link is None:
                return
            readable = bool(program.outgoing or program.ended) and program.watched[0]
            if not (readable or writable or hung_up):
                return
            self.muxer.host_ready(
                link,
                readable=readable,
                writable=writable or hung_up,
                hung_up=hung_up,
                now_ns=self.now_ns,
            )
            self.to_guest()
            self.muxer.update_watch(link)
            self.run()
            writable = hung_up = False
        raise AssertionError("the loop spins")

    def guest_opens(self, port: int = 80) -> tuple[GuestSocket, Program]:
        program = self.listen(port)
        sock = self.guest.connect(port)
        self.run()
        assert sock.connected
        return sock, program

    def host_opens(self, port: int = 22) -> tuple[GuestSocket, Program]:
        self.guest.listening.add(port)
        program = Program()
        assert self.muxer.open(program, port, self.now_ns) is not None
        self.run()
        return self.guest.accepted[-1], program

    @property
    def connections(self) -> int:
        return self.muxer.statistics().connections


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_both_ways_both_directions(lab: Lab) -> None:
    for sock, program in (lab.guest_opens(), lab.host_opens()):
        sock.send(b"from the guest")
        lab.run()
        program.outgoing += b"from the host"
        lab.ready(program)
        assert program.taken == b"from the guest"
        assert sock.data == b"from the host"
    assert program.host_port == sock.host_port >= module.FIRST_HOST_PORT


@pytest.mark.parametrize("first_cnt", [0, (1 << 32) - 300_000])
def test_bulk_both_ways_past_every_window(lab: Lab, first_cnt: int) -> None:
    """4 MiB each way, on counters that wrap in the middle in the second case."""
    sock, program = lab.guest_opens()
    assert program.link is not None
    sock.fwd_cnt = sock.rx_cnt = sock.tx_cnt = sock.told_fwd_cnt = first_cnt
    sock.host_fwd_cnt = first_cnt
    connection = program.link.connection
    connection.fwd_cnt = connection._fwd_cnt_told = connection._tx_cnt = first_cnt
    connection._peer_fwd_cnt = first_cnt
    data = bytes(range(256)) * (4 << 12)
    program.outgoing += data
    lab.ready(program)
    sock.send(data)
    lab.run()
    assert sock.data == data
    assert program.taken == data
    assert max(program.reads) == 64 * 4096  # one read filled that many buffers
    assert connection.fwd_cnt == (first_cnt + len(data)) % (1 << 32)


def test_no_credit_no_read(lab: Lab) -> None:
    sock, program = lab.guest_opens()
    sock.reading = False
    program.outgoing += bytes(1 << 20)
    lab.ready(program)
    assert len(sock.unread) == sock.buf_alloc
    assert len(program.outgoing) == (1 << 20) - sock.buf_alloc
    assert program.watched == (False, False)  # or a level-triggered loop would spin
    assert sock.ops.count(CREDIT_REQUEST) == 1  # and not again at the answer "none yet"
    assert not lab.muxer.has_pending_rx()
    sock.reading = True
    sock.read()
    lab.run()
    assert len(sock.data) == 1 << 20
    assert program.watched == (True, False)


def test_no_rx_buffer_no_read_and_no_freeze(lab: Lab) -> None:
    sock, program = lab.guest_opens()
    lab.rx_free = 0
    program.outgoing += b"later"
    lab.ready(program)
    assert program.outgoing == b"later"
    assert program.watched == (False, False)
    lab.rx_free = 1
    lab.run()
    assert sock.data == b"later"
    assert program.watched == (True, False)


def test_a_slow_reader_is_bounded_and_alone(lab: Lab) -> None:
    slow_sock, slow = lab.guest_opens(1)
    slow.takes = 10
    fast_sock, fast = lab.guest_opens(2)
    data = bytes(range(256)) * (12 << 10)
    slow_sock.send(data)
    fast_sock.send(data)
    lab.run()
    assert fast.taken == data
    assert slow.taken == data[:10]
    assert slow_sock.unsent
    held = lab.muxer.statistics().buffered_bytes
    assert held == module.LARGE_BUF_ALLOC - 10
    assert slow.watched == (True, True)
    while slow.taken != data:
        before = len(slow.taken)
        slow.takes = 100_000
        lab.ready(slow, writable=True)
        assert len(slow.taken) > before
    assert lab.muxer.statistics().buffered_bytes == 0
    assert slow.watched == (True, False)


def test_data_stays_in_order_when_room_comes_unnoticed(lab: Lab) -> None:
    sock, program = lab.guest_opens()
    program.takes = 3
    sock.send(b"first, ")
    lab.run()
    program.takes = 1 << 30  # but no event said so yet
    sock.send(b"second")
    lab.run()
    lab.ready(program, writable=True)
    assert program.taken == b"first, second"


def test_the_window_shrinks_with_many_connections(lab: Lab) -> None:
    sockets = [lab.guest_opens(port)[0] for port in range(1, 66)]
    assert sockets[63].host_buf_alloc == module.LARGE_BUF_ALLOC
    assert sockets[64].host_buf_alloc == module.BUF_ALLOC


def test_data_without_credit_costs_the_connection(lab: Lab) -> None:
    sock, program = lab.guest_opens()
    program.takes = 0
    for _ in range(16):
        lab.to_host.append(raw(RW, sock.port, 80, bytes(65536)))
    lab.run()
    assert not sock.gone
    lab.to_host.append(raw(RW, sock.port, 80, b"x"))
    lab.run()
    assert sock.gone
    assert program.closed
    assert lab.muxer.statistics().violations == 1


def test_refused_and_unknown(lab: Lab) -> None:
    sock = lab.guest.connect(81)
    lab.run()
    assert sock.gone
    assert not sock.connected
    for op in (RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 0, 8, 65535):
        lab.to_host.append(raw(op, 7, 8))
        lab.run()
        assert lab.guest.stray.pop()[3:7:3] == (7, RST)
    lab.to_host.append(raw(RST, 7, 8))
    lab.run()
    assert not lab.guest.stray
    assert lab.connections == 0


def test_another_socket_type_gets_an_rst_of_its_type(lab: Lab) -> None:
    lab.listen(80)
    for type_ in (0, 2, 99):
        lab.to_host.append(raw(REQUEST, 7, 80, type=type_))
        lab.run()
        assert lab.guest.stray.pop()[5:7] == (type_, RST)


def test_a_second_request_on_a_live_connection_resets_it(lab: Lab) -> None:
    sock, program = lab.guest_opens()
    sock.packet(REQUEST)
    lab.run()
    assert sock.gone
    assert program.closed
    assert lab.connections == 0


def test_host_opens_a_port_nobody_listens_on(lab: Lab) -> None:
    program = Program()
    lab.muxer.open(program, 5, 0)
    lab.run()
    assert program.closed
    assert program.host_port is None
    assert lab.connections == 0


def test_a_guest_that_does_not_answer(lab: Lab) -> None:
    lab.guest.answers = False
    program = Program()
    lab.muxer.open(program, 5, 0)
    lab.run()
    assert lab.muxer.next_deadline_ns() == 2 * S
    lab.muxer.expire(2 * S - 1)
    assert not program.closed
    lab.muxer.expire(2 * S)
    lab.run()
    assert program.closed
    assert lab.guest.stray[-1][6] == RST
    assert lab.muxer.next_deadline_ns() is None
    assert lab.muxer.statistics().expired == 1


def test_an_answer_stops_the_clock(lab: Lab) -> None:
    lab.host_opens()
    assert lab.muxer.next_deadline_ns() is None


def test_a_program_that_leaves_while_the_guest_is_asked(lab: Lab) -> None:
    program = Program()
    lab.muxer.open(program, 5, 0)
    lab.ready(program, hung_up=True)
    assert program.closed
    assert lab.connections == 0


@pytest.mark.parametrize("opener", ["guest_opens", "host_opens"])
def test_the_guest_half_closes(lab: Lab, opener: str) -> None:
    sock, program = getattr(lab, opener)()
    program.takes = 3
    sock.send(b"last words")
    sock.shutdown(SEND)
    lab.run()
    assert program.flags == 0  # not before the last byte
    program.takes = 100
    lab.ready(program, writable=True)
    assert program.taken == b"last words"
    assert program.flags == SEND
    program.outgoing += b"answer"
    lab.ready(program)
    assert sock.data == b"answer"
    sock.shutdown(RCV)
    lab.run()
    assert sock.gone
    assert program.closed
    assert lab.connections == 0


def test_the_guest_stops_reading_only(lab: Lab) -> None:
    sock, program = lab.guest_opens()
    sock.shutdown(RCV)
    lab.run()
    assert program.flags == RCV
    assert program.watched == (False, False)
    sock.send(b"still heard")
    lab.run()
    assert program.taken == b"still heard"


def test_the_host_half_closes(lab: Lab) -> None:
    sock, program = lab.guest_opens()
    program.outgoing += b"last words"
    program.ended = True
    lab.ready(program)
    assert sock.data == b"last words"
    assert sock.host_shutdown == SEND
    sock.send(b"answer")
    lab.run()
    assert program.taken == b"answer"
    sock.close()
    lab.run()
    assert sock.gone
    assert program.closed
    assert lab.connections == 0


def test_the_host_hangs_up_with_data_in_the_socket(lab: Lab) -> None:
    sock, program = lab.guest_opens()
    program.outgoing += bytes(500_000)
    program.ended = True
    lab.ready(program, hung_up=True)
    assert len(sock.data) == 500_000
    assert sock.host_shutdown == BOTH
    assert sock.gone
    assert lab.connections == 0
    assert lab.muxer.next_deadline_ns() is None


def test_the_host_hangs_up_and_the_guest_keeps_its_socket(lab: Lab) -> None:
    sock, program = lab.guest_opens()
    sock.reading = False
    program.outgoing += b"unread"
    program.ended = True
    lab.ready(program, hung_up=True)
    assert program.closed
    assert lab.connections == 1
    sock.send(b"into the void")
    lab.run()
    lab.muxer.expire(2 * S)
    lab.run()
    assert sock.gone
    assert sock.unread == b"unread"
    assert lab.connections == 0


def test_a_program_that_reads_no_more(lab: Lab) -> None:
    sock, program = lab.guest_opens()
    program.broken = True
    sock.send(b"lost")
    lab.run()
    assert sock.host_shutdown == RCV
    program.outgoing += b"but it still talks"
    lab.ready(program)
    assert sock.data == b"but it still talks"


@pytest.mark.parametrize("impatient", [False, True])
def test_what_a_guest_sent_before_it_closed_arrives(lab: Lab, impatient: bool) -> None:
    """The guest's own time-out, an RST after 8 s in Linux, loses nothing either."""
    sock, program = lab.guest_opens()
    program.takes = 0
    data = bytes(200_000)
    sock.send(data)
    sock.close()
    lab.run()
    assert not sock.gone
    if impatient:
        sock.packet(RST)
        lab.guest.forget(sock)
        lab.run()
        # The guest may use its port again before that is done.
        lab.to_host.append(raw(REQUEST, sock.port, 80))
        lab.run()
        assert lab.guest.stray.pop()[6] == RST
    program.takes = 1 << 30
    lab.ready(program, writable=True)
    assert program.taken == data
    assert program.closed
    assert lab.connections == 0
    assert sock.gone is not impatient
    assert not lab.guest.stray  # no RST for one who has forgotten


def test_the_program_of_a_draining_connection_dies(lab: Lab) -> None:
    sock, program = lab.guest_opens()
    program.takes = 0
    sock.send(bytes(1000))
    sock.close()
    lab.run()
    program.broken = True
    lab.ready(program, hung_up=True)
    assert sock.gone
    assert lab.connections == 0


def test_an_abort_by_the_guest(lab: Lab) -> None:
    sock, program = lab.guest_opens()
    sock.packet(RST)
    lab.guest.forget(sock)
    lab.run()
    assert program.closed
    assert not lab.guest.stray


def test_turns_are_fair(lab: Lab) -> None:
    """With one RX buffer at a time, three floods get one packet each in turn."""
    pairs = [lab.guest_opens(port) for port in (1, 2, 3)]
    lab.rx_free = 0
    for _, program in pairs:
        program.outgoing += bytes(200_000)
        lab.ready(program)
    for turn in range(1, 4):
        for _ in pairs:
            lab.rx_free = 1
            assert lab.muxer.recv_pkt(lab, 0) == 1
        for data in lab.delivered:
            lab.guest.deliver(data)
        lab.delivered.clear()
        assert [len(sock.data) for sock, _ in pairs] == 3 * [turn * 4096]


def test_a_short_message_costs_one_buffer(lab: Lab) -> None:
    _, program = lab.guest_opens()
    program.outgoing += bytes(300_000)
    lab.ready(program)
    assert program.link is not None
    for _ in range(6):
        program.outgoing += b"short"
        lab.ready(program)
    assert program.link.batch == 1


def test_capacity(lab: Lab) -> None:
    for _ in range(module.CONNECTIONS_MAX):
        lab.programs[80] = Program()
        lab.guest.connect(80)
        lab.run()
    assert lab.connections == module.CONNECTIONS_MAX
    lab.programs[80] = Program()
    refused = lab.guest.connect(80)
    lab.run()
    assert refused.gone
    assert not lab.programs[80].link
    assert lab.muxer.open(Program(), 1, 0) is None
    first = next(iter(lab.guest.sockets.values()))
    first.close()
    again = lab.guest.connect(80)
    lab.run()
    assert again.connected


def test_owed_resets_are_bounded(lab: Lab) -> None:
    lab.rx_free = 0
    for port in range(module.RESETS_MAX + 10):
        lab.muxer.send_pkt([memoryview(raw(RW, port, 1))], 0)
    assert lab.muxer.statistics().resets_dropped == 10
    lab.rx_free = 256
    lab.run()
    assert len(lab.guest.stray) == module.RESETS_MAX


def test_host_ports_are_not_used_twice(lab: Lab) -> None:
    lab.guest.listening.add(22)
    lab.muxer._next_port = module._HOST_PORTS - 1
    ports = []
    for _ in range(2):
        program = Program()
        lab.muxer.open(program, 22, 0)
        lab.run()
        ports.append(program.host_port)
    assert ports == [(1 << 31) - 1, 1 << 30]
    lab.muxer._next_port = module._HOST_PORTS - 1
    program = Program()
    lab.muxer.open(program, 22, 0)
    lab.run()
    assert program.host_port == (1 << 30) + 1


def test_reset_forgets_all_in_silence(lab: Lab) -> None:
    _, program = lab.guest_opens()
    other = Program()
    lab.muxer.open(other, 5, 0)
    lab.muxer.reset()
    assert program.closed
    assert other.closed
    assert not lab.muxer.has_pending_rx()
    assert lab.muxer.next_deadline_ns() is None
    assert lab.connections == 0
    lab.guest_opens(81)


def test_one_byte_of_room_at_a_time(lab: Lab) -> None:
    lab.guest.buf_alloc = 1
    sock, program = lab.guest_opens()
    program.outgoing += b"drop by drop"
    lab.ready(program)
    assert sock.data == b"drop by drop"


PORTS = st.integers(0, 3)
PACKETS = st.builds(
    lambda op, src, dst, payload, fields: raw(op, src, 80 + dst, payload, **fields),
    st.integers(0, 9),
    PORTS,
    PORTS,
    st.binary(max_size=40),
    st.fixed_dictionaries(
        {},
        optional={
            "src_cid": st.sampled_from([GUEST_CID, 0, 1 << 63]),
            "length": st.integers(0, (1 << 32) - 1),
            "type": st.integers(0, 3),
            "flags": st.integers(0, 7),
            "buf_alloc": st.integers(0, (1 << 32) - 1),
            "fwd_cnt": st.integers(0, (1 << 32) - 1),
        },
    ),
)
# Of connections that work, so that data meets some.
OPENING = st.one_of(
    st.builds(lambda src, dst: raw(REQUEST, src, 80 + dst, buf_alloc=1 << 16), PORTS, st.just(0)),
    st.builds(
        lambda src, payload, buf_alloc: raw(RW, src, 80, payload, buf_alloc=buf_alloc),
        PORTS,
        st.binary(max_size=40),
        st.sampled_from([1 << 16, 1 << 12, 60, 0]),
    ),
)
HOST_ACTIONS = st.sampled_from(["data", "end", "hang up", "take", "stall", "break", "open", "time"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(PACKETS, st.binary(max_size=60), HOST_ACTIONS), max_size=60))
def test_nothing_that_a_guest_sends_does_harm(steps: list[bytes | str]) -> None:
    """A hostile guest and lively programs: no exception, and the bounds hold after each step."""
    play(Lab(), steps)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(OPENING, PACKETS, HOST_ACTIONS), max_size=60), st.booleans())
def test_the_short_way_leads_to_the_same(steps: list[bytes | str], is_split: bool) -> None:
    assert play(Lab(True, is_split), steps) == play(Lab(False, is_split), steps)


def test_the_short_way_is_taken(lab: Lab) -> None:
    """Else the test above would say nothing."""
    sock, program = lab.guest_opens()
    assert lab.muxer.send_data([memoryview(raw(RW, sock.port, 80, b"request"))])
    assert bytes(program.taken) == b"request"
    program.outgoing += b"reply"
    assert program.link is not None
    assert lab.muxer.host_has_data(program.link)
    assert lab.muxer.recv_data(lab)
    assert [packet[44:] for packet in lab.delivered] == [b"reply"]


@pytest.mark.parametrize("packet", [(CREDIT_REQUEST, 0), (SHUTDOWN, RCV)])
def test_data_waits_for_what_is_owed_before(lab: Lab, packet: tuple[int, int]) -> None:
    sock, program = lab.guest_opens()
    program.outgoing += b"data"
    assert program.link is not None
    assert lab.muxer.host_has_data(program.link)
    lab.send([memoryview(raw(packet[0], sock.port, 80, flags=packet[1]))])
    assert not lab.muxer.recv_data(lab)
    assert bytes(program.outgoing) == b"data"


def play(lab: Lab, steps: list[bytes | str]) -> list[object]:
    """Have it all happen; returns what came of it."""
    programs: list[Program] = []

    def connect(port: int) -> Program | None:
        if port == 83:
            return None
        programs.append(Program())
        return programs[-1]

    lab.muxer._connect = connect
    received: list[bytes] = []
    for step in steps:
        program = next((p for p in reversed(programs) if not p.closed), None)
        if isinstance(step, bytes):
            packet = memoryview(step)
            lab.send([packet[:44], packet[44:]] if lab.is_split else [packet])
        elif step == "open":
            programs.append(Program())
            lab.muxer.open(programs[-1], 1, lab.now_ns)
        elif step == "time":
            lab.now_ns += 2 * S
            lab.muxer.expire(lab.now_ns)
        elif program is not None and program.link is not None:
            program.outgoing += b"data" * (step == "data")
            program.ended |= step in ("end", "hang up")
            program.broken |= step == "break"
            program.takes = 0 if step == "stall" else 1 << 30
            lab.muxer.host_ready(
                program.link,
                readable=program.ended or bool(program.outgoing),
                writable=True,
                hung_up=step == "hang up",
                now_ns=lab.now_ns,
            )
        while lab.muxer.has_pending_rx() and lab.receive():
            received += lab.delivered
            lab.delivered.clear()
            lab.rx_free = 256
        statistics = lab.muxer.statistics()
        assert statistics.buffered_bytes <= statistics.connections * module.LARGE_BUF_ALLOC
        assert statistics.connections == sum(not p.closed for p in programs if p.link) + sum(
            link.stream is None for link in lab.muxer._links.values()
        )
        assert not lab.muxer.has_pending_rx()
    for data in received:
        fields = HDR.unpack(data[:44])
        assert fields[:2] == (2, GUEST_CID)
        assert fields[4] == len(data) - 44
    lab.muxer.reset()
    assert all(program.closed for program in programs)
    ends = [(bytes(p.taken), p.watched, p.flags, p.reads) for p in programs]
    return [received, lab.muxer.statistics(), ends]


def test_a_muxer_that_goes_on_gives_other_ports(lab: Lab) -> None:
    _, program = lab.host_opens()
    after = module.Muxer(lab.muxer.guest_cid, lambda port: None, lab.muxer.next_port)
    again = Program()
    assert after.open(again, 22, 0) is not None
    assert again.link is not None
    assert again.link.connection.local_port == program.host_port + 1
    for wild in (-5, 1 << 70):
        assert 0 <= module.Muxer(3, lambda port: None, wild).next_port < 1 << 30
