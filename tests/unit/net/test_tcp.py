"""TCP with the guest, as timed exchanges of segments (RFC 9293, 5961, 6298, 6528, 7323)."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.net.exchange import Exchange, pattern
from tests.unit.net.world import (
    ACK,
    DNS,
    FAR,
    FIN,
    GATEWAY,
    PSH,
    RST,
    SYN,
    URG,
    FakeStream,
    S,
    World,
    assert_served,
    ip_of,
    tcp,
)
from voidbox.net import tcp_table
from voidbox.net.flow_state import FlowState
from voidbox.net.sharing import FLIGHT_BYTES_MAX, FLIGHT_BYTES_MIN
from voidbox.net.tcp import Connection
from voidbox.net.tcp_flow import Kept
from voidbox.net.tcp_outgoing import U32, Outgoing
from voidbox.net.tcp_table import CONNECTING_MAX, TCP_FLOWS_MAX
from voidbox.net.tcp_wire import Tcp

OPEN = """
    guest sends SYN seq 1000 win 65535 mss 1460
    stack answers SYN|ACK seq 0 ack 1001 mss 1460 ws none
    guest sends ACK seq 1001 ack 1
    stack answers nothing
"""
OPEN_SCALED = """
    guest sends SYN seq 1000 win 65535 mss 1460 ws 7
    stack answers SYN|ACK seq 0 ack 1001 mss 1460 ws 7
    guest sends ACK seq 1001 ack 1 win 8000
    stack answers nothing
"""

# --- opening ------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_csum", [False, True])
def test_a_connection_of_the_guest(has_csum: bool) -> None:
    Exchange(
        OPEN + """
        guest sends ACK seq 1001 ack 1 data 100
        stack answers ACK seq 1 ack 1101
        host got 100
        host gives 50
        stack sends ACK seq 1 ack 1101 data 50
        guest sends ACK seq 1101 ack 51
        stack answers nothing
        """,
        world=World(has_csum=has_csum),
    )  # fmt: skip


def test_a_connection_of_the_host() -> None:
    exchange = Exchange("""
        host opens 8080
        stack sends SYN seq 0 mss 1460 ws 7
        guest sends SYN|ACK seq 5000 ack 1 win 65535 mss 1460 ws 5
        stack answers ACK seq 1 ack 5001
        host gives 3000
        stack sends ACK seq 1 ack 5001 data 1460
        stack sends ACK seq 1461 data 1460
        stack sends ACK seq 2921 data 80
        guest sends ACK seq 5001 ack 3001 win 2048 data 10
        stack answers ACK ack 5011
        host got 10
    """)
    assert exchange.flow.connection.snd_wnd == 2048 << 5


def test_the_guest_takes_no_window_scale() -> None:
    Exchange("""
        host opens 8080
        stack sends SYN seq 0 mss 1460 ws 7
        guest sends SYN|ACK seq 5000 ack 1 win 1000 mss 1460
        stack answers ACK seq 1 ack 5001 win 65535
        host gives 3000
        stack sends ACK data 1000
        guest sends ACK seq 5001 ack 1001 win 1000
        stack sends ACK data 1000
        guest sends ACK seq 5001 ack 2001 win 1000
        stack sends ACK data 1000
    """)


def test_no_answer_before_the_host_is_connected() -> None:
    Exchange("""
        host black hole
        guest sends SYN seq 1000 mss 1460
        stack answers nothing
        wait 1 s
        guest sends SYN seq 1000 mss 1460
        stack answers nothing
        host connects
        stack sends SYN|ACK seq 0 ack 1001
        guest sends ACK seq 1001 ack 1
        state ESTABLISHED
    """)


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        ("ECONNREFUSED", "RST|ACK ack 1001"),
        ("ENETUNREACH", "unreachable 0"),
        ("EHOSTUNREACH", "unreachable 1"),
        ("ETIMEDOUT", "RST|ACK ack 1001"),
        ("EMFILE", "RST|ACK ack 1001"),
    ],
)
@pytest.mark.parametrize("is_at_once", [False, True])
def test_a_connection_that_fails(error: str, answer: str, is_at_once: bool) -> None:
    exchange = Exchange()
    if is_at_once:
        exchange.world.host.fails[FAR] = getattr(errno, error)
        exchange.play(f"""
            guest sends SYN seq 1000 mss 1460
            stack answers {answer}
            flows 0
        """)
    else:
        exchange.play(f"""
            host black hole
            guest sends SYN seq 1000 mss 1460
            host fails {error}
            stack answers {answer}
            flows 0
            host is reset
        """)


def test_an_unreachable_quotes_the_packet_alone() -> None:
    world = World()
    world.host.fails[FAR] = errno.ENETUNREACH
    frame = tcp(40000, 80, 1000, 0, SYN)
    (seen,) = world.ask(frame)
    assert seen.source == GATEWAY
    assert seen.body[8:] == frame[14 : 14 + 28]


def test_a_connection_that_nobody_answers_ends_after_30_s() -> None:
    Exchange("""
        host black hole
        guest sends SYN seq 1000 mss 1460
        wait 29.9 s
        stack answers nothing
        flows 1
        wait 0.2 s
        stack answers RST|ACK ack 1001
        flows 0
    """)


def test_a_refusal_by_the_policy() -> None:
    world = World(deny=("192.0.2.0/24",))
    Exchange(
        """
        guest sends SYN seq 1000 mss 1460
        stack answers RST|ACK seq 0 ack 1001
        flows 0
        """,
        world=world,
    )
    assert world.host.opened == 0
    assert world.stack.statistics().refused == {"deny 192.0.2.0/24": 1}
    assert world.log == ["TCP to 192.0.2.7:80: deny 192.0.2.0/24"]


def test_a_guest_that_gives_up_connecting() -> None:
    Exchange("""
        host black hole
        guest sends SYN seq 1000 mss 1460
        guest sends RST seq 999
        guest sends RST seq 1002
        flows 1
        guest sends RST seq 1001
        stack answers nothing
        flows 0
    """)


def test_a_syn_ack_is_sent_again() -> None:
    Exchange("""
        guest sends SYN seq 1000 mss 1460
        stack answers SYN|ACK seq 0 ack 1001
        guest sends SYN seq 1000 mss 1460
        stack answers SYN|ACK seq 0 ack 1001
        wait 1 s
        stack answers SYN|ACK seq 0 ack 1001
        wait 2 s
        stack answers SYN|ACK seq 0 ack 1001
        guest sends ACK seq 1001 ack 1 data 10
        stack answers ACK ack 1011
        host got 10
    """)


def test_a_syn_ack_that_is_never_answered() -> None:
    Exchange("""
        guest sends SYN seq 1000 mss 1460
        stack answers SYN|ACK
        wait 1 s
        stack sends SYN|ACK
        wait 2 s
        stack sends SYN|ACK
        wait 4 s
        stack sends SYN|ACK
        wait 8 s
        stack sends SYN|ACK
        wait 16 s
        stack sends SYN|ACK
        wait 31.9 s
        stack sends nothing
        wait 0.1 s
        stack sends RST|ACK seq 1 ack 1001
        flows 0
        host is reset
    """)


def test_a_published_port_that_is_never_answered() -> None:
    exchange = Exchange("host opens 8080 \n stack sends SYN seq 0")
    for seconds in (1, 2, 4, 8, 16):
        exchange.play(f"wait {seconds} s \n stack sends SYN seq 0")
    exchange.play("wait 32 s \n stack sends RST|ACK \n flows 0 \n host is reset")


@pytest.mark.parametrize(
    "first", ["host opens 8080", "guest sends SYN seq 1000 mss 1460"], ids=["host", "guest"]
)
def test_a_guest_without_a_buffer_for_the_first_segment(first: str) -> None:
    exchange = Exchange(f"guest has 0 buffers \n {first} \n stack sends nothing")
    exchange.world.wait(29)
    exchange.play("flows 1")
    exchange.world.wait(2)
    exchange.play("guest has all buffers \n stack sends RST|ACK \n flows 0 \n host is reset")


def test_a_published_port_where_nobody_listens() -> None:
    Exchange("""
        host opens 8080
        stack sends SYN seq 0
        guest sends RST|ACK seq 0 ack 2
        flows 1
        guest sends RST seq 0
        flows 1
        guest sends RST|ACK seq 0 ack 1
        stack answers nothing
        flows 0
        host is reset
    """)


def test_a_guest_that_remembers_an_older_connection() -> None:
    # RFC 9293 §3.5.2, figure 9: the RST rids the guest of it, the next SYN gets through.
    Exchange("""
        host opens 8080
        stack sends SYN seq 0
        guest sends ACK seq 777 ack 500
        stack answers RST seq 500
        stack answers SYN seq 0
        guest sends SYN|ACK seq 5000 ack 1 mss 1460
        stack answers ACK ack 5001
        state ESTABLISHED
    """)


def test_a_syn_of_an_open_connection_is_challenged() -> None:
    Exchange(OPEN + """
        guest sends SYN seq 2000 mss 1460
        stack answers ACK seq 1 ack 1001
        guest sends SYN seq 1000 mss 1460
        stack answers ACK seq 1 ack 1001
        guest sends SYN|ACK seq 1000 ack 1 mss 1460
        stack answers ACK seq 1 ack 1001
        state ESTABLISHED
    """)  # fmt: skip


@pytest.mark.parametrize("mss", [None, 0, 1, 63, 64, 536, 1460, 1461, 65535])
@pytest.mark.parametrize("has_tso", [False, True])
def test_the_guests_mss(mss: int | None, has_tso: bool) -> None:
    """0 and none at all are 536 (§3.7.1); less than 64 is taken for 64, more than 1460 for 1460."""
    exchange = Exchange(
        f"""
        guest sends SYN seq 1000 win 65535 {"" if mss is None else f"mss {mss}"}
        stack answers SYN|ACK
        guest sends ACK seq 1001 ack 1
        """,
        world=World(has_tso=has_tso, has_csum=has_tso),
    )
    real = min(max(mss or 536, 64), 1460)
    assert exchange.flow.connection.mss == real
    if has_tso:
        exchange.play(f"host gives 4000 \n stack sends ACK seq 1 data 4000 gso {real}")
    else:
        sent = [
            f"stack sends ACK seq {at} data {min(real, 4001 - at)}" for at in range(1, 4001, real)
        ]
        exchange.play("\n".join(["host gives 4000", *sent]))


@pytest.mark.parametrize(("scale", "real"), [(0, 0), (1, 1), (14, 14), (15, 14), (255, 14)])
def test_the_guests_window_scale(scale: int, real: int) -> None:
    exchange = Exchange(f"""
        guest sends SYN seq 1000 win 1000 mss 1460 ws {scale}
        stack answers SYN|ACK ws 7
        guest sends ACK seq 1001 ack 1 win 3
    """)
    assert exchange.flow.connection.snd_wnd == 3 << real


def test_the_first_window_is_not_scaled() -> None:
    Exchange("""
        host black hole
        guest sends SYN seq 1000 win 500 mss 1460 ws 14
        host connects
        stack sends SYN|ACK
        host gives 1000
        guest sends ACK seq 1001 ack 1 win 0
        stack sends nothing
    """)


@pytest.mark.parametrize("flags", [SYN | FIN, SYN | URG, SYN | 0xC0])
def test_odd_syns_open_a_connection(flags: int) -> None:
    world = World()
    (seen,) = world.ask(tcp(40000, 80, 1000, 0, flags, payload=b"early"))
    assert seen.tcp.flags == SYN | ACK and seen.tcp.ack == 1001  # the data comes again


@pytest.mark.parametrize("flags", [SYN | RST, SYN | RST | ACK, RST, RST | ACK])
def test_an_rst_of_no_connection_is_never_answered(flags: int) -> None:
    world = World()
    assert world.ask(tcp(40000, 80, 1000, 5, flags)) == []
    assert world.host.opened == 0


@pytest.mark.parametrize(
    ("flags", "size", "answer"),
    [
        (ACK, 0, (RST, 7777, 0)),
        (ACK | FIN, 3, (RST, 7777, 0)),
        (SYN | ACK, 0, (RST, 7777, 0)),
        (0, 0, (RST | ACK, 0, 1000)),
        (FIN, 0, (RST | ACK, 0, 1001)),
        (URG, 10, (RST | ACK, 0, 1010)),
    ],
)
def test_a_segment_of_no_connection(flags: int, size: int, answer: tuple[int, int, int]) -> None:
    (seen,) = World().ask(tcp(40000, 80, 1000, 7777, flags, payload=bytes(size)))
    assert (seen.tcp.flags, seen.tcp.seq, seen.tcp.ack) == answer


# --- sequence numbers ---------------------------------------------------------------------------


def iss_of(world: World, sport: int, dport: int = 80, destination: int = FAR) -> int:
    (seen,) = world.ask(tcp(sport, dport, 1, 0, SYN, destination=destination))
    return seen.tcp.seq


def test_first_sequence_numbers_depend_on_all_of_the_tuple_and_on_a_secret() -> None:
    def make(**options: bytes) -> list[int]:
        world = World(**options)  # type: ignore[arg-type]
        return [
            iss_of(world, 1), iss_of(world, 2), iss_of(world, 1, 81),
            iss_of(world, 1, 80, ip_of("192.0.2.8")),
        ]  # fmt: skip

    numbers = make() + make(secret=b"another")
    assert len(set(numbers)) == 8
    assert make() == numbers[:4]  # and on nothing else
    spread = sorted(number >> 28 for number in numbers)
    assert len(set(spread)) > 3


def test_the_next_connection_of_a_tuple_begins_later() -> None:
    world = World()
    first = iss_of(world, 1)
    world.send(tcp(1, 80, 2, 0, RST))
    world.wait(0.001)
    second = iss_of(world, 1)
    assert (second - first) & U32 == 250  # 4 µs each


NEAR_WRAP = [0xFFFF_FFFF, 0xFFFF_FFFE, 0xFFFF_FF00, 0xFFFF_F000, 0, 0x7FFF_FFFF, 0x7FFF_FF00]


@pytest.mark.parametrize("isn", NEAR_WRAP)
def test_the_guests_numbers_wrap(isn: int) -> None:
    def at(place: int) -> int:
        return (isn + 1 + place) & U32

    Exchange(f"""
        guest sends SYN seq {isn} mss 1460
        stack answers SYN|ACK ack {at(0)}
        guest sends ACK seq {at(0)} ack 1 data 1000
        stack answers ACK ack {at(1000)}
        guest sends ACK seq {at(500)} ack 1 data 1000
        stack answers ACK ack {at(1500)}
        guest sends ACK seq {at(0)} ack 1 data 1500
        stack answers ACK ack {at(1500)}
        guest sends ACK seq {at(3000)} ack 1 data 10
        stack answers ACK ack {at(1500)}
        guest sends FIN|ACK seq {at(1500)} ack 1 data 10
        stack answers ACK ack {at(1511)}
        host got 1510
        host got FIN
    """)


@pytest.mark.parametrize("iss", NEAR_WRAP)
def test_our_numbers_wrap(iss: int) -> None:
    Exchange(
        OPEN + """
        host gives 4000
        stack sends ACK seq 1 data 1460
        stack sends ACK seq 1461 data 1460
        stack sends ACK seq 2921 data 1080
        guest sends ACK seq 1001 ack 1461
        guest sends ACK seq 1001 ack 1           # an old one
        wait 1 s
        stack sends ACK seq 1461 data 1460
        stack sends ACK seq 2921 data 1080
        guest sends ACK seq 1001 ack 4001
        host ends
        stack sends FIN|ACK seq 4001
        guest sends ACK seq 1001 ack 4002
        state FIN_WAIT_2
        """,
        iss=iss,
    )  # fmt: skip


# --- from the guest -----------------------------------------------------------------------------


def test_a_gap_is_asked_for() -> None:
    Exchange(OPEN + """
        guest sends ACK seq 2001 ack 1 data 1000
        stack answers ACK ack 1001
        guest sends ACK seq 3001 ack 1 data 1000
        stack answers ACK ack 1001
        guest sends ACK seq 1001 ack 1 data 1000
        stack answers ACK ack 2001
        host got 1000
        guest sends ACK seq 2001 ack 1 data 2000
        stack answers ACK ack 4001
        host got 3000
    """)  # fmt: skip


def test_what_comes_twice_or_overlaps_is_passed_on_once() -> None:
    Exchange(OPEN + """
        guest sends ACK seq 1001 ack 1 data 1000
        stack answers ACK ack 2001
        guest sends ACK seq 1001 ack 1 data 1000
        stack answers ACK ack 2001
        guest sends ACK seq 1501 ack 1 data 1000
        stack answers ACK ack 2501
        guest sends ACK seq 900 ack 1 data 2000
        stack answers ACK ack 2900
        guest sends ACK seq 2000 ack 1 data 1
        stack answers ACK ack 2900
        host got 1899
    """)  # fmt: skip


def test_urgent_data_is_in_band() -> None:
    Exchange(OPEN + """
        guest sends URG|ACK seq 1001 ack 1 data 10 urg 0
        stack answers ACK ack 1011
        guest sends URG|ACK seq 1011 ack 1 data 10 urg 65535
        stack answers ACK ack 1021
        guest sends URG|ACK seq 1021 ack 1 data 1 urg 1
        stack answers ACK ack 1022
        host got 21
    """)  # fmt: skip


def test_a_segment_without_ack_is_dropped() -> None:
    Exchange(OPEN + """
        guest sends PSH seq 1001 data 10
        stack answers nothing
        host got 0
        guest sends FIN seq 1001
        stack answers nothing
        host got no FIN
    """)  # fmt: skip


def test_an_acknowledgement_of_what_was_never_sent() -> None:
    Exchange(OPEN + """
        guest sends ACK seq 1001 ack 2 data 10
        stack answers ACK seq 1 ack 1001
        host got 0
        guest sends ACK seq 1001 ack 1000000000 data 10
        stack answers ACK seq 1 ack 1001
        host gives 10
        stack sends ACK seq 1 data 10
        guest sends ACK seq 1001 ack 12
        stack answers ACK seq 11
        guest sends ACK seq 1001 ack 11
        host got 0
        wait 10 s
        stack sends nothing
    """)  # fmt: skip


def test_an_acknowledgement_of_what_was_never_sent_instead_of_the_handshakes() -> None:
    Exchange("""
        guest sends SYN seq 1000 mss 1460
        stack answers SYN|ACK
        guest sends ACK seq 1001 ack 0
        stack answers nothing
        guest sends ACK seq 1001 ack 5
        stack answers RST|ACK
        flows 0
        host is reset
    """)


@pytest.mark.parametrize("scale", ["", "ws 7"])
def test_the_acknowledgement_of_little_data_waits_for_company(scale: str) -> None:
    Exchange(f"""
        guest sends SYN seq 1000 mss 1460 {scale}
        host connects
        stack sends SYN|ACK seq 0 ack 1001
        guest sends ACK seq 1001 ack 1
        guest sends ACK seq 1001 ack 1 data 10
        stack answers nothing
        wait 0.009 s
        stack answers nothing
        wait 0.001 s
        stack sends ACK ack 1011
    """)


def test_keep_alives_are_answered() -> None:
    Exchange(OPEN + """
        guest sends ACK seq 1000 ack 1
        stack answers ACK seq 1 ack 1001
        guest sends ACK seq 1000 ack 1 data 1
        stack answers ACK seq 1 ack 1001
        host got 0
    """)  # fmt: skip


def test_a_segment_beyond_the_window_changes_nothing() -> None:
    exchange = Exchange(OPEN_SCALED)
    before = exchange.flow.connection.snd_wnd
    exchange.play("""
        guest sends ACK seq 900000000 ack 1 win 1
        stack answers ACK ack 1001
        guest sends ACK seq 900000000 ack 1 win 1 data 100
        stack answers ACK ack 1001
    """)
    assert exchange.flow.connection.snd_wnd == before
    # Had its sequence number counted, this update would be older.
    exchange.play("guest sends ACK seq 1001 ack 1 win 77")
    assert exchange.flow.connection.snd_wnd == 77 << 7


def test_a_host_that_takes_little_at_a_time() -> None:
    """What it does not take waits here, within the window; the guest is told when there is room."""
    exchange = Exchange(OPEN, window=10_000)
    exchange.play("""
        host takes 1000
        guest sends ACK seq 1001 ack 1 data 1460
        stack answers ACK ack 2461 win 9540
        guest sends ACK seq 2461 ack 1 data 1460
        stack answers ACK ack 3921 win 8080
        guest sends ACK seq 3921 ack 1 data 7000
        stack answers ACK ack 10921 win 1080    # no less than was promised
        guest sends ACK seq 10921 ack 1 data 1080
        stack answers ACK ack 12001 win 0
        guest sends ACK seq 12001 ack 1 data 1   # a probe
        stack answers ACK ack 12001 win 0
        host got 1000
        host takes 1000
        stack sends nothing                      # less than a segment
        guest sends ACK seq 12001 ack 1 data 1
        stack answers ACK ack 12001 win 0
        host takes 2000
        stack sends ACK ack 12001 win 3000
        host takes all
        stack sends ACK ack 12001 win 10000
        host got 11000
    """)


def test_what_waits_for_the_host_goes_first() -> None:
    exchange = Exchange(OPEN + """
        host takes 10
        guest sends ACK seq 1001 ack 1 data 100
        stack answers ACK ack 1101
    """)  # fmt: skip
    exchange.stream.room = 1 << 62  # which its loop has not said yet
    assert exchange.iss is not None
    exchange.world.send(tcp(40000, 80, 1101, exchange.iss + 1, ACK, payload=pattern(100, 100)))
    exchange.play("stack sends ACK ack 1201 \n host got 200")


def test_a_segment_that_reaches_over_the_windows_edge_is_cut() -> None:
    Exchange(OPEN, window=3000).play("""
        host takes 0
        guest sends ACK seq 1001 ack 1 data 2000
        stack answers ACK ack 3001 win 1000
        guest sends FIN|ACK seq 3001 ack 1 data 1100
        stack answers ACK ack 4001 win 0
        host got 0
        host takes all
        stack sends ACK ack 4001 win 3000
        host got 3000
        host got no FIN                          # it lay beyond what was taken
        guest sends FIN|ACK seq 4001 ack 1 data 100
        stack answers ACK ack 4102
        host got 3100
        host got FIN
    """)


@given(st.lists(st.tuples(st.sampled_from("gthe"), st.integers(0, 4000)), max_size=60),
       st.sampled_from([None, 0, 7]))  # fmt: skip
@settings(deadline=None)
def test_the_right_edge_never_moves_back(steps: list[tuple[str, int]], scale: int | None) -> None:
    """The guest sends as far as it was allowed; the host takes what it likes."""
    exchange = Exchange(OPEN if scale is None else OPEN_SCALED, window=9000)
    exchange.stream.room = 0
    seq = 1001
    for kind, size in steps:
        if kind == "g":
            assert exchange.edge is not None
            size = min(size, (exchange.edge - seq) & U32)
            exchange.world.send(
                tcp(40000, 80, seq, (exchange.iss or 0) + 1, ACK, payload=pattern(seq - 1001, size))
            )
            seq += size
        elif kind == "t":
            exchange.stream.room += size
        elif kind == "h":
            exchange.stream.gives += bytes(size)
        for seen in exchange.world.take():
            exchange._check_edge(seen.tcp.flags, seen.tcp.ack, seen.tcp.window, None)
            if kind != "e":
                assert seen.tcp.ack == seq  # nothing within the window is refused
        exchange.world.check()
    exchange.stream.room = 1 << 62
    exchange.world.take()
    assert bytes(exchange.stream.got) == pattern(0, seq - 1001)


# --- to the guest -------------------------------------------------------------------------------


def test_what_the_guest_does_not_acknowledge_is_sent_again_ever_more_slowly() -> None:
    exchange = Exchange(OPEN + """
        host gives 2000
        stack sends ACK seq 1 data 1460
        stack sends ACK seq 1461 data 540
        wait 0.99 s
        stack sends nothing
    """)  # fmt: skip
    exchange.world.wait(-0.99)
    for seconds in (1, 2, 4, 8, 16, 32, 60, 60):
        exchange.play(f"""
            wait {seconds - 0.01} s
            stack sends nothing
            wait 0.01 s
            stack sends ACK seq 1 data 1460
            stack sends ACK seq 1461 data 540
        """)
    exchange.play("""
        wait 59.9 s
        flows 1
        wait 0.2 s
        stack sends RST|ACK ack 1001
        flows 0
        host is reset
    """)


def test_progress_makes_it_quick_again() -> None:
    Exchange(OPEN + """
        host gives 2920
        stack sends ACK seq 1 data 1460
        stack sends ACK seq 1461 data 1460
        wait 1 s
        stack sends ACK seq 1 data 1460
        stack sends ACK seq 1461 data 1460
        wait 2 s
        stack sends ACK seq 1 data 1460
        stack sends ACK seq 1461 data 1460
        guest sends ACK seq 1001 ack 1461
        stack sends nothing
        wait 1 s
        stack sends ACK seq 1461 data 1460
        guest sends ACK seq 1001 ack 2921
        wait 60 s
        stack sends nothing
    """)  # fmt: skip


def test_an_acknowledgement_in_the_middle_of_a_segment() -> None:
    Exchange(OPEN + """
        host gives 2920
        stack sends ACK seq 1 data 1460
        stack sends ACK seq 1461 data 1460
        guest sends ACK seq 1001 ack 701
        wait 1 s
        stack sends ACK seq 701 data 1460
        stack sends ACK seq 2161 data 760
    """)  # fmt: skip


def test_what_is_sent_again_takes_the_room_there_is() -> None:
    """A driver whose ring is short has few buffers that a frame may be spread over."""
    world = World(has_csum=True, has_tso=True)
    world.rx.room_bytes = 5000 + 54
    exchange = Exchange(OPEN, world=world).play("""
        host gives 9000
        stack sends ACK seq 1 data 5000 gso 1460
        stack sends ACK seq 5001 data 4000 gso 1460
    """)
    world.rx.room_bytes = 3000 + 54
    exchange.play("""
        wait 1 s
        stack sends ACK seq 1 data 3000 gso 1460
        stack sends ACK seq 3001 data 3000 gso 1460
        stack sends ACK seq 6001 data 3000 gso 1460
        guest sends ACK seq 1001 ack 9001
    """)


def test_new_data_does_not_put_off_the_old() -> None:
    Exchange(OPEN + """
        host gives 1460
        stack sends ACK seq 1 data 1460
        wait 0.9 s
        host gives 1460
        stack sends ACK seq 1461 data 1460
        wait 0.1 s
        stack sends ACK seq 1 data 1460
        stack sends ACK seq 1461 data 1460
    """)  # fmt: skip


def test_an_acknowledgement_while_all_is_about_to_be_sent_again() -> None:
    Exchange(OPEN + """
        host gives 2920
        stack sends ACK seq 1 data 1460
        stack sends ACK seq 1461 data 1460
        guest has 0 buffers
        wait 1 s
        guest sends ACK seq 1001 ack 1461
        guest has all buffers
        stack sends ACK seq 1461 data 1460
        guest has 0 buffers
        wait 1 s
        guest sends ACK seq 1001 ack 2921
        guest has all buffers
        stack sends nothing
    """)  # fmt: skip


def test_three_duplicate_acknowledgements() -> None:
    Exchange(OPEN + """
        host gives 4380
        stack sends ACK seq 1 data 1460
        stack sends ACK seq 1461 data 1460
        stack sends ACK seq 2921 data 1460
        guest sends ACK seq 1001 ack 1461
        guest sends ACK seq 1001 ack 1461
        guest sends ACK seq 1001 ack 1461
        stack sends nothing
        guest sends ACK seq 1001 ack 1461
        stack sends ACK seq 1461 data 1460
        stack sends ACK seq 2921 data 1460
        guest sends ACK seq 1001 ack 1461        # once is enough
        guest sends ACK seq 1001 ack 1461
        guest sends ACK seq 1001 ack 1461
        stack sends nothing
        guest sends ACK seq 1001 ack 4381
        stack sends nothing
    """)  # fmt: skip


def test_what_is_no_duplicate_acknowledgement() -> None:
    Exchange(OPEN + """
        host gives 1460
        stack sends ACK seq 1 data 1460
        guest sends ACK seq 1001 ack 1 win 65534    # a window update
        guest sends ACK seq 1001 ack 1 win 65533
        guest sends ACK seq 1001 ack 1 win 65532
        stack sends nothing
        guest sends ACK seq 1001 ack 1 data 1
        stack answers ACK ack 1002
        guest sends ACK seq 1002 ack 1 data 1
        stack answers ACK ack 1003
        guest sends ACK seq 1003 ack 1 data 1
        stack answers ACK ack 1004
    """)  # fmt: skip


def test_a_shut_window_is_probed_ever_more_slowly_and_never_given_up() -> None:
    exchange = Exchange(OPEN + """
        guest sends ACK seq 1001 ack 1 win 0
        host gives 100
        stack sends nothing
    """)  # fmt: skip
    for seconds in (0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60, 60, 60):
        exchange.play(f"""
            wait {seconds - 0.01} s
            stack sends nothing
            wait 0.01 s
            stack sends ACK seq 0
            guest sends ACK seq 1001 ack 1 win 0
            stack answers nothing
        """)
    exchange.play("""
        guest sends ACK seq 1001 ack 1 win 1000
        stack sends ACK seq 1 data 100
        guest sends ACK seq 1001 ack 101
        wait 100 s
        stack sends nothing
    """)


def test_a_shut_window_of_a_guest_that_says_nothing_more() -> None:
    exchange = Exchange(OPEN + """
        guest sends ACK seq 1001 ack 1 win 0
        host gives 100
        wait 0.5 s
        stack sends ACK seq 0
    """)  # fmt: skip
    for seconds in (1, 2, 4, 8, 16, 32, 60, 60):
        exchange.play(f"wait {seconds} s \n stack sends ACK seq 0")
    exchange.play("""
        wait 60 s
        stack sends RST|ACK
        flows 0
        host is reset
    """)


def test_a_shut_window_after_an_hour_without_data() -> None:
    exchange = Exchange(OPEN + """
        guest sends ACK seq 1001 ack 1 win 0
        wait 3600 s
        host gives 100
    """)  # fmt: skip
    exchange.world.pump()
    for seconds in (0.5, 1, 2, 4, 8, 16, 32, 60):
        exchange.play(f"wait {seconds} s \n stack sends ACK seq 0")
    exchange.play("guest sends ACK seq 1001 ack 1 win 1000 \n stack sends ACK seq 1 data 100")


def test_a_window_that_shuts_over_data_under_way() -> None:
    """The guest threw away what it had no memory for, and says so for as long as it likes."""
    exchange = Exchange(OPEN + """
        host gives 1460
        stack sends ACK seq 1 data 1460
        guest sends ACK seq 1001 ack 1 win 0
    """)  # fmt: skip
    for seconds in (1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60):
        exchange.play(f"""
            wait {seconds} s
            stack sends ACK seq 0
            guest sends ACK seq 1001 ack 1 win 0
        """)
    exchange.play("""
        guest sends ACK seq 1001 ack 1 win 2000
        stack sends ACK seq 1 data 1460          # at once, not after another minute
        guest sends ACK seq 1001 ack 1461
        stack sends nothing
    """)


def test_a_small_window_gets_what_fits() -> None:
    Exchange(OPEN + """
        guest sends ACK seq 1001 ack 1 win 100
        host gives 250
        stack sends ACK seq 1 data 100
        guest sends ACK seq 1001 ack 101 win 100
        stack sends ACK seq 101 data 100
        guest sends ACK seq 1001 ack 151 win 100
        stack sends nothing                      # a silly one: 50 bytes
        guest sends ACK seq 1001 ack 201 win 100
        stack sends ACK seq 201 data 50
    """)  # fmt: skip


def test_an_older_segment_does_not_change_the_window() -> None:
    exchange = Exchange(OPEN_SCALED + """
        guest sends ACK seq 1001 ack 1 win 100 data 10
        stack answers ACK ack 1011
        guest sends ACK seq 1011 ack 1 win 200 data 10
        stack answers ACK ack 1021
        guest sends ACK seq 1001 ack 1 win 5 data 10
        stack answers ACK ack 1021
    """)  # fmt: skip
    assert exchange.flow.connection.snd_wnd == 200 << 7
    exchange.play("""
        host gives 100
        stack sends ACK seq 1 data 100
        guest sends ACK seq 1021 ack 101 win 300
        guest sends ACK seq 1021 ack 1 win 5
    """)
    assert exchange.flow.connection.snd_wnd == 300 << 7


def test_a_window_of_a_gib_is_not_believed() -> None:
    """What was not acknowledged is kept here: so much is sent ahead, and no more."""
    exchange = Exchange("""
        guest sends SYN seq 1000 win 65535 mss 1460 ws 14
        stack answers SYN|ACK
        guest sends ACK seq 1001 ack 1 win 65535
    """, window=100_000)  # fmt: skip
    assert exchange.flow.connection.snd_wnd == 65535 << 14
    exchange.stream.gives += bytes(1_000_000)
    sent = sum(len(seen.tcp.payload) for seen in exchange.world.take())
    assert 98_000 < sent <= 100_000 and exchange.flow._kept.size == sent
    assert len(exchange.stream.gives) == 1_000_000 - sent
    assert exchange.stream.wants == (False, False)


def test_an_acknowledgement_waits_longer_where_replies_come() -> None:
    """Eight in a row went along with a reply; one that had to go alone ends that."""
    exchange = Exchange(OPEN)
    asked, answered = 1001, 1
    for _ in range(8):
        exchange.play(f"""
            guest sends ACK seq {asked} ack {answered} data 10
            wait 0.005 s
            host gives 3
            stack sends ACK seq {answered} ack {asked + 10} data 3
        """)
        asked, answered = asked + 10, answered + 3
    for patience in ("0.0399", "0.0099"):
        exchange.play(f"""
            guest sends ACK seq {asked} ack {answered} data 10
            wait {patience} s
            stack sends nothing
            wait 0.0001 s
            stack sends ACK seq {answered} ack {asked + 10}
        """)
        asked += 10


def test_super_frames() -> None:
    exchange = Exchange(OPEN_SCALED, world=World(has_csum=True, has_tso=True))
    exchange.play("""
        host gives 200000
        stack sends ACK seq 1 data 5840 gso 1460
        stack sends ACK seq 5841 data 11680 gso 1460
        stack sends ACK seq 17521 data 23360 gso 1460
        stack sends ACK seq 40881 data 46720 gso 1460
        stack sends ACK seq 87601 data 65495 gso 1460
        stack sends ACK seq 153096 data 46905 gso 1460
        wait 1 s
        stack sends ACK seq 1 data 65495 gso 1460
        stack sends ACK seq 65496 data 65495 gso 1460
        stack sends ACK seq 130991 data 65495 gso 1460
        stack sends ACK seq 196486 data 3515 gso 1460
        guest sends ACK seq 1001 ack 200001
        stack sends nothing
    """)


def test_nothing_is_read_while_the_guest_has_no_buffers() -> None:
    exchange = Exchange(OPEN + """
        guest has 0 buffers
        host gives 5000
        stack sends nothing
    """)  # fmt: skip
    assert len(exchange.stream.gives) == 5000
    exchange.play("""
        guest has 2 buffers
        stack sends ACK seq 1 data 1460
        stack sends ACK seq 1461 data 1460
        guest has all buffers
        stack sends ACK seq 2921 data 1460
        stack sends ACK seq 4381 data 620
    """)


# --- closing ------------------------------------------------------------------------------------


def test_the_guest_closes_first() -> None:
    Exchange(OPEN + """
        guest sends FIN|ACK seq 1001 ack 1 data 10
        stack answers ACK seq 1 ack 1012
        host got 10
        host got FIN
        state CLOSE_WAIT
        host gives 100
        stack sends ACK seq 1 ack 1012 data 100
        guest sends ACK seq 1012 ack 101
        host ends
        stack sends FIN|ACK seq 101 ack 1012
        state LAST_ACK
        guest sends ACK seq 1012 ack 102
        stack answers nothing
        flows 0
        host is closed
    """)  # fmt: skip


def test_the_host_closes_first() -> None:
    Exchange(OPEN + """
        host gives 100
        host ends
        stack sends ACK seq 1 data 100
        stack sends FIN|ACK seq 101 ack 1001
        state FIN_WAIT_1
        guest sends ACK seq 1001 ack 102
        state FIN_WAIT_2
        guest sends ACK seq 1001 ack 102 data 50
        stack answers ACK seq 102 ack 1051
        host got 50
        guest sends FIN|ACK seq 1051 ack 102
        stack answers ACK seq 102 ack 1052       # else the guest sends its FIN again
        flows 0
        host got FIN
        host is closed
    """)  # fmt: skip


def test_the_guest_acknowledges_our_fin_with_its_own() -> None:
    Exchange(OPEN + """
        host ends
        stack sends FIN|ACK seq 1 ack 1001
        guest sends FIN|ACK seq 1001 ack 2 data 5
        stack answers ACK seq 2 ack 1007
        flows 0
        host got 5
        host got FIN
        host is closed
    """)  # fmt: skip


def test_both_close_at_once() -> None:
    Exchange(OPEN + """
        host ends
        stack sends FIN|ACK seq 1 ack 1001
        guest sends FIN|ACK seq 1001 ack 1
        stack answers ACK seq 2 ack 1002
        state CLOSING
        guest sends ACK seq 1002 ack 2
        stack answers nothing
        flows 0
        host is closed
    """)  # fmt: skip


def test_a_fin_of_ours_is_sent_again_with_the_data_before_it() -> None:
    Exchange(OPEN + """
        host gives 100
        host ends
        stack sends ACK seq 1 data 100
        stack sends FIN|ACK seq 101
        wait 1 s
        stack sends ACK seq 1 data 100
        stack sends FIN|ACK seq 101
        guest sends ACK seq 1001 ack 101
        wait 1 s
        stack sends FIN|ACK seq 101
        guest sends ACK seq 1001 ack 102
        state FIN_WAIT_2
        wait 59 s
        stack sends nothing
    """)  # fmt: skip


@pytest.mark.parametrize("guest_closes_too", [False, True])
def test_a_fin_that_is_never_acknowledged_ends_after_a_minute(guest_closes_too: bool) -> None:
    exchange = Exchange(OPEN)
    if guest_closes_too:
        exchange.play("guest sends FIN|ACK seq 1001 ack 1 \n stack answers ACK ack 1002")
    exchange.play("host ends \n stack sends FIN|ACK seq 1")
    for seconds in (1, 2, 4, 8, 16):
        exchange.play(f"wait {seconds} s \n stack sends FIN|ACK seq 1")
    exchange.play("wait 31 s \n flows 1 \n wait 1 s \n stack sends RST|ACK \n flows 0")


def test_the_guests_fin_comes_twice() -> None:
    Exchange(OPEN + """
        guest sends FIN|ACK seq 1001 ack 1
        stack answers ACK seq 1 ack 1002
        guest sends FIN|ACK seq 1001 ack 1
        stack answers ACK seq 1 ack 1002
        host got FIN
        state CLOSE_WAIT
    """)  # fmt: skip


def test_the_guests_fin_comes_too_early() -> None:
    Exchange(OPEN + """
        guest sends FIN|ACK seq 1011 ack 1
        stack answers ACK ack 1001
        host got no FIN
        guest sends FIN|ACK seq 1001 ack 1 data 10
        stack answers ACK ack 1012
        host got FIN
    """)  # fmt: skip


def test_a_fin_waits_for_the_data_before_it() -> None:
    Exchange(OPEN + """
        host takes 4
        guest sends FIN|ACK seq 1001 ack 1 data 10
        stack answers ACK ack 1011
        host got 4
        host got no FIN
        guest sends FIN|ACK seq 1001 ack 1 data 10
        stack answers ACK ack 1011
        host takes all
        stack sends ACK ack 1012
        host got 10
        host got FIN
    """)  # fmt: skip


def test_a_fin_that_waits_behind_a_shut_window_stops_nothing_the_other_way() -> None:
    Exchange(OPEN, window=2000).play("""
        host takes 0
        guest sends FIN|ACK seq 1001 ack 1 data 2000
        stack answers ACK ack 3001 win 0
        host gives 3000
        stack sends ACK seq 1 data 1460
        guest sends ACK seq 3002 ack 1461        # its FIN counts for the guest
        stack sends ACK seq 1461 data 1460
        guest sends ACK seq 3002 ack 2921
        stack sends ACK seq 2921 data 80
        guest sends ACK seq 3002 ack 3001
        stack answers ACK seq 3001 ack 3001 win 0
        host got 0
        host takes all
        stack sends ACK ack 3002 win 2000
        host got FIN
        guest sends ACK seq 3001 ack 3001        # a keep-alive
        stack answers ACK ack 3002 win 2000
    """)


def test_a_fin_of_ours_passes_a_shut_window() -> None:
    exchange = Exchange(OPEN + """
        host ends
        stack sends FIN|ACK seq 1
        guest sends ACK seq 1001 ack 1 win 0
    """)  # fmt: skip
    for seconds in (1, 2, 4, 8, 16, 32, 60, 60, 60):
        exchange.play(f"""
            wait {seconds} s
            stack sends FIN|ACK seq 1
            guest sends ACK seq 1001 ack 1 win 0
        """)
    exchange.play("guest sends ACK seq 1001 ack 2 win 0 \n state FIN_WAIT_2")


def test_data_after_the_fin_is_ignored() -> None:
    Exchange(OPEN + """
        guest sends FIN|ACK seq 1001 ack 1
        stack answers ACK ack 1002
        guest sends ACK seq 1002 ack 1 data 100
        stack answers ACK ack 1002
        guest sends FIN|ACK seq 1002 ack 1 data 100
        stack answers ACK ack 1002
        host got 0
        state CLOSE_WAIT
    """)  # fmt: skip


def test_data_after_a_fin_that_waits_is_ignored() -> None:
    Exchange(OPEN + """
        host takes 0
        guest sends FIN|ACK seq 1001 ack 1 data 10
        stack answers ACK ack 1011
        guest sends ACK seq 1011 ack 1 data 10
        stack answers ACK ack 1011
        host takes all
        stack sends ACK ack 1012
        host got 10
    """)  # fmt: skip


CLOSE_WAIT = OPEN + "guest sends FIN|ACK seq 1001 ack 1 \n stack answers ACK ack 1002 \n"
FIN_WAIT_2 = OPEN + "host ends \n stack sends FIN|ACK seq 1 \n guest sends ACK seq 1001 ack 2 \n"


@pytest.mark.parametrize(
    ("script", "probe", "answer"),
    [
        (CLOSE_WAIT, "ACK seq 0 ack 1002", "ACK seq 1002 ack 1"),
        (FIN_WAIT_2, "ACK seq 1 ack 1001", "ACK seq 1001 ack 2"),
    ],
    ids=["CLOSE_WAIT", "FIN_WAIT_2"],
)
def test_half_closed_for_a_day_while_both_ends_want_it(
    script: str, probe: str, answer: str
) -> None:
    exchange = Exchange(script)
    assert not exchange.stream.is_kept_alive
    exchange.play("wait 59.9 s \n stack sends nothing")
    exchange.world.wait(0.2)
    for _ in range(86400 // 75):
        exchange.play(f"stack sends {probe} \n guest sends {answer}")
        exchange.world.wait(75)
    exchange.play(f"stack sends {probe} \n guest sends {answer}")
    assert exchange.stream.is_kept_alive  # the host's kernel asks the far end too
    if script == CLOSE_WAIT:
        exchange.play("host gives 100 \n stack sends ACK seq 1 data 100")
    else:
        exchange.play("""
            guest sends ACK seq 1001 ack 2 data 100
            stack answers ACK ack 1101
            host got 100
        """)


@pytest.mark.parametrize("script", [CLOSE_WAIT, FIN_WAIT_2], ids=["CLOSE_WAIT", "FIN_WAIT_2"])
def test_half_closed_and_forgotten_by_the_guest(script: str) -> None:
    """Its program has closed the connection, and its kernel waited for the other side's end."""
    number = 1002 if script == CLOSE_WAIT else 1001
    # A far end that reads slowly does not have all of what the guest has sent yet.
    Exchange(script + f"""
        wait 60.1 s
        stack sends ACK ack {number}
        guest sends RST seq {number}
        stack sends nothing
        flows 0
        host is {"closed" if script == CLOSE_WAIT else "reset"}
    """)  # fmt: skip


def test_half_closed_and_gone_at_the_far_end() -> None:
    Exchange(FIN_WAIT_2 + """
        host breaks
        stack sends RST|ACK seq 2 ack 1001
        flows 0
        host is reset
    """)  # fmt: skip


def test_half_closed_with_traffic_is_not_asked() -> None:
    exchange = Exchange(CLOSE_WAIT)
    for number in range(10):
        exchange.play(f"""
            wait 50 s
            host gives 100
            stack sends ACK seq {1 + 100 * number} data 100
            guest sends ACK seq 1002 ack {101 + 100 * number}
        """)


def test_idle_connections_are_asked_after_two_hours() -> None:
    exchange = Exchange(OPEN + """
        wait 3600 s
        guest sends ACK seq 1000 ack 1           # a keep-alive of its own
        stack answers ACK ack 1001
        wait 7199 s
        stack sends nothing
        wait 2 s
        stack sends ACK seq 0 ack 1001
        guest sends ACK seq 1001 ack 1
        wait 7199 s
        stack sends nothing
    """)  # fmt: skip
    assert exchange.stream.is_kept_alive
    for _ in range(9):
        exchange.play("flows 1 \n wait 75 s \n stack sends ACK seq 0 ack 1001")
    exchange.play("wait 75 s \n stack sends RST|ACK seq 1 ack 1001 \n flows 0 \n host is reset")


@pytest.mark.parametrize("script", [CLOSE_WAIT, FIN_WAIT_2], ids=["CLOSE_WAIT", "FIN_WAIT_2"])
def test_half_closed_and_no_answer(script: str) -> None:
    exchange = Exchange(script)
    exchange.world.wait(60 + 9 * 75 - 1)
    assert len(exchange.world.flows) == 1
    exchange.world.wait(2)
    frames = [seen.tcp.flags for seen in exchange.world.take()]
    assert frames == [ACK] * 9 + [RST | ACK]
    exchange.play(f"flows 0 \n host is {'closed' if script == CLOSE_WAIT else 'reset'}")


def test_a_syn_ack_that_finds_no_buffer_does_not_wait_for_ever() -> None:
    exchange = Exchange("""
        guest has 0 buffers
        guest sends SYN seq 1000 mss 1460
        stack answers nothing
        state SYN_RECEIVED
    """)
    exchange.world.wait(7201)
    exchange.play("guest has all buffers \n stack sends RST|ACK \n flows 0 \n host is reset")


# --- by force -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [-1, 1, 1000, 65534])
def test_an_rst_that_does_not_fit_exactly(place: int) -> None:
    challenge = "stack answers ACK seq 1 ack 1001" if place > 0 else ""  # RFC 5961 §3.2
    Exchange(OPEN + f"""
        guest sends RST seq {1001 + place}
        {challenge}
        stack answers nothing
        flows 1
    """)  # fmt: skip


@pytest.mark.parametrize("place", [65535, 70000, 1 << 31, -70000])
def test_an_rst_outside_the_window(place: int) -> None:
    exchange = Exchange(OPEN)
    exchange.play(f"guest sends RST seq {(1001 + place) & U32} \n stack answers nothing \n flows 1")


@pytest.mark.parametrize("flags", ["RST", "RST|ACK"])
def test_an_rst_that_fits_ends_both_sides(flags: str) -> None:
    Exchange(OPEN + f"""
        host takes 0
        host gives 100
        stack sends ACK data 100
        guest sends ACK seq 1001 ack 1 data 100
        stack answers ACK ack 1101
        guest sends {flags} seq 1101 ack 1
        stack answers nothing
        flows 0
        host is reset
    """)  # fmt: skip


def test_an_rst_when_the_window_is_shut() -> None:
    Exchange(OPEN, window=2000).play("""
        host takes 0
        guest sends ACK seq 1001 ack 1 data 2000
        stack answers ACK ack 3001 win 0
        guest sends RST seq 3001
        stack answers nothing
        flows 0
        host is reset
    """)


@pytest.mark.parametrize("when", ["reading", "sending", "flushing"])
def test_a_host_that_breaks_off(when: str) -> None:
    exchange = Exchange(OPEN)
    if when == "flushing":
        exchange.play("""
            host takes 0
            guest sends ACK seq 1001 ack 1 data 10
            stack answers ACK ack 1011
        """)
    exchange.stream.breaks = True
    if when == "sending":  # before the host's loop says anything
        exchange.world.send(tcp(40000, 80, 1001, (exchange.iss or 0) + 1, ACK, payload=b"x"))
    exchange.play(f"""
        stack sends RST|ACK seq 1 ack { {"reading": 1001, "sending": 1002, "flushing": 1011}[when] }
        flows 0
        host is reset
    """)


@pytest.mark.parametrize("when", ["at once", "held"])
@pytest.mark.parametrize(("window", "told"), [(65535, 5000), (3000, 2920), (100, 100), (0, 0)])
def test_what_came_before_the_host_broke_off_is_told(when: str, window: int, told: int) -> None:
    """A server that answers a request it does not want, and closes without reading it."""
    exchange = Exchange(OPEN).play(f"guest sends ACK seq 1001 ack 1 win {window}")
    if when == "held":
        exchange.play("host takes 0 \n guest sends ACK seq 1001 ack 1 data 10")
    exchange.play("""
        guest has 0 buffers
        host gives 5000
        host breaks
    """)
    seq = 1011 if when == "held" else 1001
    exchange.play(f"guest sends ACK seq {seq} ack 1 data 10")
    exchange.world.rx.credits = None
    frames = [seen.tcp for seen in exchange.world.take()]
    told_frames = [frame for frame in frames if frame.payload]
    assert b"".join(frame.payload for frame in told_frames) == pattern(0, told)
    assert frames[: len(told_frames)] == told_frames  # and nothing behind the RST
    assert frames[len(told_frames)].flags == RST | ACK
    exchange.play("flows 0 \n host is reset")


def test_replies_that_were_queued_do_not_follow_an_rst() -> None:
    exchange = Exchange(OPEN + """
        guest has 0 buffers
        host gives 100
    """)  # fmt: skip
    exchange.world.pump()
    assert exchange.world.stack.has_pending()
    exchange.play("""
        guest sends RST seq 1001
        guest has all buffers
        stack sends nothing
        flows 0
    """)


# --- one after the other ------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["FIN_WAIT_2", "CLOSING", "LAST_ACK"])
def test_a_new_syn_takes_the_place_of_a_connection_that_ends(state: str) -> None:
    exchange = Exchange(OPEN)
    if state == "LAST_ACK":
        exchange.play("guest sends FIN|ACK seq 1001 ack 1 \n stack answers ACK ack 1002")
    exchange.play("host ends \n stack sends FIN|ACK seq 1")
    if state == "CLOSING":
        exchange.play("guest sends FIN|ACK seq 1001 ack 1 \n stack answers ACK ack 1002")
    if state == "FIN_WAIT_2":
        exchange.play("guest sends ACK seq 1001 ack 2")
    exchange.play(f"state {state}")
    old = exchange.stream
    exchange.iss = None
    exchange.edge = None
    exchange.world.wait(1e-3)
    exchange.play("""
        guest sends SYN seq 900000 mss 1460
        stack answers SYN|ACK seq 0 ack 900001
        guest sends ACK seq 900001 ack 1 data 10
        stack answers ACK ack 900011
        flows 1
        host got 10
    """)
    assert not old.is_open and old is not exchange.stream
    assert old.was_reset == (state == "FIN_WAIT_2")  # the guest never said that it had sent all


def test_the_syn_of_a_connection_that_ends_does_not_take_its_place() -> None:
    exchange = Exchange("""
        guest sends SYN seq 1000 mss 1460
        stack answers SYN|ACK
        guest sends ACK seq 1001 ack 1
        host ends
        stack sends FIN|ACK seq 1
        guest sends ACK seq 1001 ack 2
        guest sends SYN seq 1000 mss 1460
        stack answers ACK seq 2 ack 1001
        state FIN_WAIT_2
    """)
    assert exchange.world.host.opened == 1


def test_ten_times_the_same_tuple() -> None:
    world = World()
    for number in range(10):
        Exchange(
            f"""
            guest sends SYN seq {number * 100000} mss 1460
            stack answers SYN|ACK seq 0
            guest sends FIN|ACK seq {number * 100000 + 1} ack 1
            stack answers ACK
            host ends
            stack sends FIN|ACK seq 1
            guest sends ACK seq {number * 100000 + 2} ack 2
            flows 0
            host is closed
            """,
            world=world,
        )


# --- many at once -------------------------------------------------------------------------------


def test_black_holes_stop_nobody_else() -> None:
    """As many connections to nowhere as may be under way: the oldest go when others come."""
    world = World()
    hole = ip_of("198.51.100.1")
    world.host.black_holes.add(hole)
    for port in range(CONNECTING_MAX):
        assert world.ask(tcp(1000 + port, 80, 1, 0, SYN, destination=hole)) == []
    assert world.ask(tcp(500, 80, 1, 0, SYN)) == []  # not at once: they may be about to succeed
    assert world.dropped == {"too many TCP connections being opened": 1}
    world.check()
    (dns,) = world.ask(tcp(500, 53, 1, 0, SYN, destination=DNS))
    assert dns.tcp.flags == SYN | ACK  # no socket of the host is needed for it
    world.wait(3.1)
    world.rx.seen.clear()
    frames = world.ask(tcp(500, 80, 1, 0, SYN))  # as every TCP does after a second or three
    assert [(seen.tcp.dport, seen.tcp.flags) for seen in frames] == [
        (1000, RST | ACK), (500, SYN | ACK)
    ]  # fmt: skip
    world.check()
    world.wait(31)
    assert len(world.flows) == 2 and len(world.stack._tcp._connecting) == 0


def fill(world: World, count: int) -> list[tuple[FakeStream, int]]:
    """Open connections, a millisecond after one another."""
    opened = []
    for port in range(count):
        opened.append(world.open(1000 + port))
        world.wait(1e-3)
    return opened


def test_too_many_connections_are_refused_and_places_become_free() -> None:
    world = World()
    fill(world, TCP_FLOWS_MAX)
    (seen,) = world.ask(tcp(1, 80, 1, 0, SYN))
    assert (seen.tcp.flags, seen.tcp.ack) == (RST | ACK, 2)
    assert world.dropped == {"too many TCP connections": 1}
    assert world.log == ["too many TCP connections: 1024, and none is idle"]
    assert world.stack.open_to_guest(80, world.host.accepted(), world.now_ns) is None
    world.host.streams.pop()
    world.send(tcp(1000, 80, 1001, 0, RST))
    world.open(1)
    world.check()


@pytest.mark.parametrize("opener", ["guest", "host"])
@pytest.mark.parametrize("state", ["CLOSE_WAIT", "FIN_WAIT_2", "ESTABLISHED"])
def test_too_many_connections_the_oldest_that_is_idle_makes_room(
    monkeypatch: pytest.MonkeyPatch, state: str, opener: str
) -> None:
    monkeypatch.setattr(tcp_table, "TCP_FLOWS_MAX", 64)
    world = World()
    for number, (stream, iss) in enumerate(fill(world, 64)):
        port = 1000 + number
        if state == "CLOSE_WAIT":
            world.send(tcp(port, 80, 1001, iss + 1, FIN | ACK))
        elif state == "FIN_WAIT_2":
            stream.has_ended = True
            world.pump()
            world.send(tcp(port, 80, 1001, iss + 2, ACK))
        elif number:  # the first stays silent
            world.wait(1)
            world.send(tcp(port, 80, 1000, iss + 1, ACK))
    world.take()
    assert {flow.connection.state.name for flow in world.flows} == {state}
    oldest = world.flows[0].stream
    assert isinstance(oldest, FakeStream)
    if opener == "guest":
        seen = world.ask(tcp(1, 80, 1, 0, SYN))
        assert [(s.tcp.dport, s.tcp.flags) for s in seen] == [(1000, RST | ACK), (1, SYN | ACK)]
    else:
        stream = world.host.accepted()
        flow = world.stack.open_to_guest(22, stream, world.now_ns)
        assert flow is not None
        stream.owner = flow
        assert [s.tcp.flags for s in world.take()] == [RST | ACK, SYN]
    assert not oldest.is_open and oldest.was_reset == (state != "CLOSE_WAIT")
    assert len(world.flows) == 64
    assert world.dropped == {"oldest idle TCP connection, for a new one": 1}
    kind = "idle" if state == "ESTABLISHED" else "half-closed"
    (line,) = world.log
    assert line.startswith(f"too many TCP connections: ended one, {kind} and silent for ")
    assert line.endswith("between the guest's port 1000 and 192.0.2.7:80")
    world.check()


def test_a_thousand_half_closed_connections_after_another() -> None:
    """They do not close the network, whoever opened them, and however many come."""
    world = World()
    for number in range(TCP_FLOWS_MAX + 100):
        _, iss = world.open(1000 + number)
        world.send(tcp(1000 + number, 80, 1001, iss + 1, FIN | ACK))
    world.take()
    world.check()
    assert_served(world)


def test_the_first_flows_get_large_windows_and_the_rest_small_ones() -> None:
    world = World()
    for port in range(100):
        world.open(1000 + port, options=b"\x03\x03\x07\x01")
    sizes = [flow.connection._receive_bytes for flow in world.flows]
    assert sizes == [2 << 20] * 32 + [256 << 10] * 68


def test_a_reset_of_the_device_ends_everything() -> None:
    world = World()
    stream, _ = world.open(1000)
    _, iss = world.open(1001)
    finished = world.host.last
    world.send(tcp(1001, 80, 1001, iss + 1, FIN | ACK))
    world.take()
    world.stack.reset()
    assert world.take() == [] and not world.host.streams
    assert stream.was_reset  # what was sent so far is not all
    assert finished is not None and not finished.was_reset  # here it is
    world.check()
    world.open(1000)


# --- both ways at once ----------------------------------------------------------------------------


def test_streams_both_ways_share_the_line() -> None:
    """Else the acknowledgements of the guest's own data would wait behind megabytes."""
    world = World(has_csum=True, has_tso=True)
    down, _ = world.open(1000, options=b"\x03\x03\x07\x01", window=60000)
    up, up_iss = world.open(1001, options=b"\x03\x03\x07\x01", window=60000)
    sent = 0

    def in_flight() -> int:
        world.take()
        connection = world.flows[0].connection
        return (connection.snd_nxt - connection.snd_una) & U32

    def acknowledge(size: int, count: int = 1) -> None:
        """The guest works off what it got, and sends something in between."""
        nonlocal sent
        down.gives += bytes(4_000_000)
        end = world.flows[0].connection.snd_nxt
        world.send(tcp(1000, 80, 1001, end, ACK, 60000), needs_csum=True)
        for _ in range(count):
            frame = tcp(1001, 80, 1001 + sent, up_iss + 1, ACK, 60000, b"x" * size)
            world.send(frame, needs_csum=True)
            world.take()
            sent += size
        world.wait(0.021)

    acknowledge(1)
    assert in_flight() == FLIGHT_BYTES_MAX  # all that is kept for it
    for _ in range(10):
        acknowledge(9000)
    assert FLIGHT_BYTES_MIN - 1460 < in_flight() <= FLIGHT_BYTES_MIN
    for _ in range(3):  # the guest's stream takes its share, and more
        acknowledge(60000, 9)
    assert in_flight() > FLIGHT_BYTES_MIN
    for _ in range(4):  # requests and what is small are no stream
        acknowledge(1)
    assert in_flight() == FLIGHT_BYTES_MAX
    assert len(up.got) == sent


# --- the parts ----------------------------------------------------------------------------------


def syn(seq: int = 1000, window: int = 65535, mss: int = 1460, wscale: int | None = 7) -> Tcp:
    return Tcp(40000, 80, seq, 0, SYN, window, 40, mss, wscale)


@given(st.binary(min_size=1, max_size=40).map(list), st.data())
def test_kept_data_is_what_was_sent(sizes: list[int], data: st.DataObject) -> None:
    kept, whole, dropped = Kept(), bytearray(), 0
    for number, size in enumerate(sizes):
        size *= 1 + number % 20
        kept.add(pattern(len(whole), size))
        whole += pattern(len(whole), size)
        if data.draw(st.booleans()):
            count = data.draw(st.integers(0, len(whole) - dropped))
            kept.drop(count)
            dropped += count
        assert kept.size == len(whole) - dropped
        offset = data.draw(st.integers(0, kept.size))
        wanted = data.draw(st.integers(1, 5000))
        assert kept.read(offset, wanted) == whole[dropped + offset :][:wanted]


@given(st.integers(0, U32), st.integers(0, U32), st.integers(0, 1 << 20))
def test_old_and_new_acknowledgements_wherever_the_numbers_are(
    iss: int, isn: int, size: int
) -> None:
    connection = Connection.accept(syn(isn), iss, 1 << 20, 1 << 20, 0)
    connection.host_connected()
    assert connection.next_control(0) is not None

    def receive(place: int) -> None:
        tcp_ack = Tcp(40000, 80, (isn + 1) & U32, (iss + place) & U32, ACK, 65535, 20, 0, None)
        connection.receive(tcp_ack, 0, 0)

    receive(1)
    connection.send_data(size, 0)
    receive(0)
    assert connection.snd_una == (iss + 1) & U32
    receive(size + 1)
    assert connection.snd_una == connection.snd_nxt == connection.snd_max == (iss + 1 + size) & U32
    receive(size + 2)
    assert connection.snd_una == (iss + 1 + size) & U32
    assert connection.ack_due


def test_an_acknowledgement_may_lead_past_what_is_sent_again() -> None:
    """The guest had kept what came after a loss: nothing is left to be sent again."""
    connection = Connection.accept(syn(1000), 1000, 1 << 18, 1 << 18, 0)
    connection.host_connected()
    connection.next_control(0)
    first = (connection.iss + 1) & U32
    connection.receive(Tcp(40000, 80, 1001, first, ACK, 500, 20, 0, None), 0, 0)
    for _ in range(4):
        connection.send_data(1000, 0)
    for _ in range(3):  # the first got lost
        connection.receive(Tcp(40000, 80, 1001, first, ACK, 500, 20, 0, None), 0, 0)
    assert connection.has_rewound
    connection.send_data(100, 0)
    for ack in (first + 50, first + 4000):
        if not connection.receive_expected(1001, ack & U32, 500, 0, 0):
            connection.receive(Tcp(40000, 80, 1001, ack & U32, ACK, 500, 20, 0, None), 0, 0)
    assert not connection.has_rewound and connection.room() > 0


def state_of(connection: Connection) -> dict[str, object]:
    return {name: getattr(connection, name) for name in Outgoing.__slots__}


# What may happen to a connection: a segment of the guest (how far from the expected number, how
# much of what is in flight it acknowledges, flags, window, payload, how much of that the host does
# not take at once), data of the host, the same once more, an answer that is due, time.
segments = st.tuples(
    st.just("segment"),
    st.one_of(st.just(0), st.just(0), st.integers(-3000, 3000)),
    st.sampled_from([0, 0, 1, 1, 0.5, 2, -1]),
    st.sampled_from([ACK, ACK, ACK | PSH, ACK | FIN, SYN, RST]),
    st.sampled_from([0, 1, 500, 500, 500]),
    st.sampled_from([0, 0, 1, 1460, 9000, 1 << 18]),
    st.sampled_from([0, 0, 700]),
)
events = st.one_of(
    segments,
    segments,
    st.tuples(st.just("sends"), st.integers(1, 64000)),
    st.tuples(st.just("sends again"), st.integers(1, 64000)),
    st.tuples(st.just("answers")),
    st.tuples(st.just("waits"), st.sampled_from([1, 20_000_000, 1_500_000_000, 100_000_000_000])),
    st.tuples(st.just("flushes")),
    st.tuples(st.just("ends")),
)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(st.lists(events, min_size=3, max_size=30), st.sampled_from([1000, U32 - 2000]))
def test_the_short_way_does_what_the_long_one_does(steps: list[tuple], isn: int) -> None:
    long, short = (Connection.accept(syn(isn), isn, 1 << 18, 1 << 18, 0) for _ in range(2))
    now_ns = 0
    for connection in (long, short):
        connection.host_connected()
        connection.next_control(0)
        connection.window(is_syn=True)
    for kind, *values in [("segment", 0, 1, ACK, 500, 0, 0), *steps]:
        if kind == "segment":
            place, share, flags, window, size, held = values
            in_flight = (long.snd_max - long.snd_una) & U32
            seq, ack = (long.rcv_nxt + place) & U32, (long.snd_una + int(share * in_flight)) & U32
            segment = Tcp(40000, 80, seq, ack, flags, window, 20, 0, None)
            new = long.receive(segment, size, now_ns)
            if flags in (ACK, ACK | PSH) and short.receive_expected(seq, ack, window, size, now_ns):
                assert tuple(new) == (0, size)
            else:
                assert short.receive(segment, size, now_ns) == new
            for connection in (long, short):
                if new.length:
                    connection.accepted(new.length, min(held, new.length))
                connection.take_fin()
        for connection in (long, short):
            if kind == "sends" and connection.sends_data and (room := connection.room()):
                connection.send_data(min(values[0], room), now_ns)
            elif kind == "sends again" and (again := connection.again_bytes()):
                connection.send_data(min(values[0], again), now_ns)
            elif kind == "answers" and connection.has_control():
                connection.next_control(now_ns)
                connection.window()
            elif kind == "waits" and (connection.deadline_ns or now_ns + 1) <= now_ns:
                connection.on_time(now_ns, False)
            elif kind == "flushes":
                connection.held(0)
                connection.take_fin()
            elif kind == "ends":
                connection.end_data()
        now_ns += values[0] if kind == "waits" else 1000
        assert state_of(long) == state_of(short), (kind, values)
        if long.is_closed:
            break


HANDSHAKE = """
    guest sends SYN seq 1000 win 65535 mss 1460 ws 7
    stack answers SYN|ACK seq 0 ack 1001
    guest sends ACK seq 1001 ack 1
"""


def test_little_data_is_acknowledged_a_moment_later_or_along_with_the_answer() -> None:
    Exchange(HANDSHAKE).play("""
        guest sends ACK seq 1001 ack 1 data 1
        stack answers ACK seq 1 ack 1002  # at once: it opens the window
        guest sends ACK seq 1002 ack 1 data 10
        stack answers nothing
        wait 0.009 s
        stack answers nothing
        wait 0.002 s
        stack answers ACK seq 1 ack 1012
        guest sends ACK seq 1012 ack 1 data 10
        stack answers nothing
        host gives 20
        stack sends ACK seq 1 ack 1022 data 20
        wait 0.5 s
        stack answers nothing
    """)


@pytest.mark.parametrize("flags", ["ACK", "ACK|URG"], ids=["short", "long"])
@pytest.mark.parametrize("acknowledged", [101, 51])
def test_what_comes_meanwhile_does_not_put_an_acknowledgement_off(
    flags: str, acknowledged: int
) -> None:
    """Little data of the guest's crosses ours, and the acknowledgement of ours comes after it."""
    exchange = Exchange(HANDSHAKE).play("""
        guest sends ACK seq 1001 ack 1 data 1
        stack answers ACK seq 1 ack 1002
        host gives 100
        stack sends ACK seq 1 data 100
        guest sends ACK seq 1002 ack 1 data 10
        stack answers nothing
    """)
    exchange.play(f"""
        guest sends {flags} seq 1012 ack {acknowledged}
        wait 0.009 s
        stack answers nothing
        wait 0.002 s
        stack answers ACK seq 101 ack 1012
    """)
    if acknowledged < 101:  # what is not acknowledged has its time-out, from then on
        exchange.play("wait 1.1 s \n stack sends ACK seq 51 data 50")


def test_a_segments_worth_is_acknowledged_at_once() -> None:
    Exchange(HANDSHAKE).play("""
        guest sends ACK seq 1001 ack 1 data 1460
        stack answers ACK seq 1 ack 2461
        guest sends ACK seq 2461 ack 1 data 1000
        stack answers nothing
        guest sends ACK seq 3461 ack 1 data 460
        stack answers ACK seq 1 ack 3921
    """)


# --- snapshots ----------------------------------------------------------------------------------


def test_a_restored_guest_is_told_that_its_connections_are_over() -> None:
    """One RST each, with the number that the guest expects: silent readers would wait for ever."""
    world = World()
    stream, iss = world.open()
    stream.gives += b"x" * 500
    world.take()  # sent, and not acknowledged
    world.send(tcp(40001, 80, 7000, 0, SYN))  # nobody has answered yet: the guest asks again
    states = world.stack.flow_states()
    assert [(each.guest_port, each.port) for each in states] == [(40000, 80)]
    other = World()
    other.stack.reset_flows(states)
    (frame,) = other.take()
    answer = frame.tcp
    assert (answer.sport, answer.dport, frame.source) == (80, 40000, FAR)
    assert answer.flags == RST | ACK
    assert answer.seq == (iss + 1 + 500) & U32
    assert answer.ack == 1001
    assert not other.flows
    # And what is a byte off is put right by the guest's own question (RFC 5961).
    (again,) = other.ask(tcp(40000, 80, 1001, answer.seq, ACK))
    assert (again.tcp.flags, again.tcp.seq) == (RST, answer.seq)


def test_many_flows_are_all_told() -> None:
    world = World()
    state = FlowState(1, FAR, 80, 5, 6)
    world.stack.reset_flows([state._replace(guest_port=port) for port in range(2000)])
    assert len(world.take()) == TCP_FLOWS_MAX


@pytest.mark.parametrize(
    "script",
    [
        "host gives 100 \n stack sends ACK seq 1 data 100",
        "host ends \n stack sends FIN|ACK seq 1",
        "guest sends FIN|ACK seq 1001 ack 1 \n stack answers ACK ack 1002",
        "stack sends nothing",
    ],
    ids=["data", "our FIN", "half-closed", "idle"],
)
def test_a_guest_that_stood_still_for_a_day_is_not_late(script: str) -> None:
    exchange = Exchange(OPEN).play(script)
    world = exchange.world
    world.stack.pause()
    world.now_ns += 24 * 3600 * S
    world.stack.resume(world.now_ns)
    exchange.play("wait 0.9 s \n stack sends nothing \n flows 1")
    if "sends ACK" in script:  # but it has lost what it does not answer now
        exchange.play("wait 0.2 s \n stack sends ACK seq 1 data 100")
        exchange.play("guest sends ACK seq 1001 ack 101")
    elif "stack sends FIN" in script:
        exchange.play("wait 0.2 s \n stack sends FIN|ACK seq 1")
    exchange.play("host is open")


def test_a_pause_does_not_put_an_acknowledgement_off() -> None:
    exchange = Exchange(OPEN).play("""
        guest sends ACK seq 1001 ack 1 data 1
        stack answers ACK ack 1002
        guest sends ACK seq 1002 ack 1 data 10
        stack sends nothing
    """)
    exchange.world.stack.pause()
    exchange.world.stack.resume(exchange.world.now_ns)
    exchange.play("wait 0.011 s \n stack sends ACK seq 1 ack 1012")


def test_a_pause_leaves_sockets_with_data_unwatched() -> None:
    """They stay ready, and a level-triggered loop would spin."""
    world = World()
    stream, _ = world.open()
    world.take()
    world.stack.pause()
    stream.gives += b"x" * 100
    stream.poll()
    assert not stream.poll(), "the loop would call again and again"
    assert len(world.take()) == 1
