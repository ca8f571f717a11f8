from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox.vsock import connection as module
from voidbox.vsock.connection import Connection, Event, State
from voidbox.vsock.packet import (
    SHUTDOWN_MASK,
    VIRTIO_VSOCK_OP_CREDIT_REQUEST,
    VIRTIO_VSOCK_OP_CREDIT_UPDATE,
    VIRTIO_VSOCK_OP_REQUEST,
    VIRTIO_VSOCK_OP_RESPONSE,
    VIRTIO_VSOCK_OP_RST,
    VIRTIO_VSOCK_OP_RW,
    VIRTIO_VSOCK_OP_SHUTDOWN,
    VIRTIO_VSOCK_SHUTDOWN_RCV,
    VIRTIO_VSOCK_SHUTDOWN_SEND,
    Header,
    PacketError,
)

U32 = 1 << 32


def header(
    op: int, length: int = 0, flags: int = 0, buf_alloc: int = 1000, fwd_cnt: int = 0
) -> Header:
    return Header(42, 2, 5, 6, length, 1, op, flags, buf_alloc, fwd_cnt)


def established(buf_alloc: int = 1000) -> Connection:
    connection = Connection.accept(header(VIRTIO_VSOCK_OP_REQUEST), buf_alloc)
    assert connection.next_op() == VIRTIO_VSOCK_OP_RESPONSE
    return connection


def test_the_table_ends_every_connection() -> None:
    """From every state an end is reachable, and from an end nothing."""
    ends = {State.RESET, State.CLOSED}
    reaches_end = set(ends)
    for _ in State:
        reaches_end |= {
            state for (state, _), target in module._TRANSITIONS.items() if target in reaches_end
        }
    assert reaches_end == set(State)
    assert not {state for state, _ in module._TRANSITIONS} & ends
    for state in set(State) - ends:
        assert (state, Event.VIOLATION) in module._TRANSITIONS


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_what_the_table_lacks_is_refused_without_effect(state: State, event: Event) -> None:
    connection = established()
    connection.state = state
    if (state, event) in module._TRANSITIONS:
        connection._step(event)
        assert connection.state is module._TRANSITIONS[state, event]
    else:
        with pytest.raises(PacketError):
            connection._step(event)
        assert connection.state is state


def test_request_and_response() -> None:
    connection = Connection(6, 5, 1000)
    assert connection.next_op() == VIRTIO_VSOCK_OP_REQUEST
    assert connection.next_op() == 0
    assert connection.credit_bytes == 0
    connection.receive(header(VIRTIO_VSOCK_OP_RESPONSE, buf_alloc=77))
    assert connection.state is State.ESTABLISHED
    assert connection.credit_bytes == 77


@pytest.mark.parametrize(
    "op", [VIRTIO_VSOCK_OP_RW, VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, 8, 65535]
)
def test_only_a_response_or_rst_answers_a_request(op: int) -> None:
    connection = Connection(6, 5, 1000)
    with pytest.raises(PacketError):
        connection.receive(header(op))
    connection.abort()
    assert connection.state is State.RESET


def test_a_refused_request_owes_no_rst() -> None:
    connection = Connection(6, 5, 1000)
    connection.receive(header(VIRTIO_VSOCK_OP_RST))
    assert connection.state is State.CLOSED


def test_our_credit_is_enforced_to_the_byte() -> None:
    connection = established(buf_alloc=100)
    connection.receive(header(VIRTIO_VSOCK_OP_RW, 60))
    connection.receive(header(VIRTIO_VSOCK_OP_RW, 40))
    with pytest.raises(PacketError, match="without credit"):
        connection.receive(header(VIRTIO_VSOCK_OP_RW, 1))


def test_credit_is_announced_at_half_a_window_and_with_every_packet() -> None:
    connection = established(buf_alloc=100)
    connection.receive(header(VIRTIO_VSOCK_OP_RW, 100))
    connection.forwarded(49)
    assert connection.next_op() == 0
    connection.forwarded(1)
    assert connection.owed == 1 << VIRTIO_VSOCK_OP_CREDIT_UPDATE
    connection.sent(10)  # a data packet says it as well
    assert connection.next_op() == 0
    connection.receive(header(VIRTIO_VSOCK_OP_CREDIT_REQUEST))
    assert connection.next_op() == VIRTIO_VSOCK_OP_CREDIT_UPDATE


def test_credit_is_requested_once_until_data_went_out_again() -> None:
    connection = established()
    connection.request_credit()
    assert connection.next_op() == VIRTIO_VSOCK_OP_CREDIT_REQUEST
    connection.request_credit()
    assert connection.next_op() == 0
    connection.receive(header(VIRTIO_VSOCK_OP_CREDIT_UPDATE, buf_alloc=0))
    connection.request_credit()
    assert connection.next_op() == 0
    connection.receive(header(VIRTIO_VSOCK_OP_CREDIT_UPDATE, buf_alloc=10))
    connection.sent(10)
    connection.request_credit()
    assert connection.next_op() == VIRTIO_VSOCK_OP_CREDIT_REQUEST


@given(
    start=st.integers(0, U32 - 1),
    buf_alloc=st.integers(0, U32 - 1),
    in_flight=st.integers(0, U32 - 1),
)
def test_credit_of_the_guest_wraps(start: int, buf_alloc: int, in_flight: int) -> None:
    connection = established()
    connection._tx_cnt = start
    connection.sent(in_flight)
    update = header(VIRTIO_VSOCK_OP_CREDIT_UPDATE, buf_alloc=buf_alloc, fwd_cnt=start)
    connection.receive(update)
    assert connection.credit_bytes == max(0, buf_alloc - in_flight)


def test_a_guest_that_claims_what_was_never_sent_gets_nothing() -> None:
    connection = established()
    connection.sent(10)
    connection.receive(header(VIRTIO_VSOCK_OP_CREDIT_UPDATE, buf_alloc=1000, fwd_cnt=11))
    assert connection.credit_bytes == 0


def test_fwd_cnt_wraps() -> None:
    connection = established(buf_alloc=1000)
    connection.fwd_cnt = connection._fwd_cnt_told = U32 - 300
    connection.receive(header(VIRTIO_VSOCK_OP_RW, 600))
    connection.forwarded(600)
    assert connection.fwd_cnt == 300
    assert connection.owed == 1 << VIRTIO_VSOCK_OP_CREDIT_UPDATE


def test_half_closes_add_up() -> None:
    connection = established()
    connection.receive(
        header(VIRTIO_VSOCK_OP_SHUTDOWN, flags=VIRTIO_VSOCK_SHUTDOWN_RCV | 0xFFFFFFFC)
    )
    assert connection.state is State.ESTABLISHED
    assert connection.peer_shutdown == VIRTIO_VSOCK_SHUTDOWN_RCV
    assert not connection.sends_data
    assert connection.takes_data
    connection.receive(header(VIRTIO_VSOCK_OP_RW, 5))
    connection.receive(header(VIRTIO_VSOCK_OP_SHUTDOWN, flags=VIRTIO_VSOCK_SHUTDOWN_SEND))
    assert connection.state is State.DRAINING
    with pytest.raises(PacketError):
        connection.receive(header(VIRTIO_VSOCK_OP_RW, 5))


def test_data_after_shutdown_is_a_violation() -> None:
    connection = established()
    connection.receive(header(VIRTIO_VSOCK_OP_SHUTDOWN, flags=VIRTIO_VSOCK_SHUTDOWN_SEND))
    with pytest.raises(PacketError, match="after SHUTDOWN"):
        connection.receive(header(VIRTIO_VSOCK_OP_RW, 1))


def test_the_host_half_closes_and_then_leaves() -> None:
    connection = established()
    connection.host_shutdown(VIRTIO_VSOCK_SHUTDOWN_SEND)
    assert connection.next_op() == VIRTIO_VSOCK_OP_SHUTDOWN
    connection.host_shutdown(VIRTIO_VSOCK_SHUTDOWN_SEND)
    assert connection.next_op() == 0
    assert connection.state is State.ESTABLISHED
    connection.host_shutdown(SHUTDOWN_MASK)
    assert connection.next_op() == VIRTIO_VSOCK_OP_SHUTDOWN
    assert connection.state is State.CLOSING
    connection.receive(header(VIRTIO_VSOCK_OP_RW, 5))  # crossed
    connection.receive(header(VIRTIO_VSOCK_OP_RST))
    assert connection.state is State.CLOSED


def test_crossing_shutdowns_end_with_an_rst() -> None:
    connection = established()
    connection.host_shutdown(SHUTDOWN_MASK)
    connection.receive(header(VIRTIO_VSOCK_OP_SHUTDOWN, flags=SHUTDOWN_MASK))
    assert connection.state is State.RESET


def test_a_guest_that_forgot_is_told_nothing() -> None:
    connection = established()
    connection.receive(header(VIRTIO_VSOCK_OP_RW, 1000))
    connection.receive(header(VIRTIO_VSOCK_OP_RST))
    assert connection.state is State.ORPHANED
    connection.forwarded(1000)
    assert connection.owed == 0
    connection.delivered()
    assert connection.state is State.CLOSED


def test_a_guest_that_has_no_more_under_way_than_its_own_buffer_never_waits_for_credit() -> None:
    """Linux caps what it has under way to its own buffer, 256 KiB, though we announce 1 MiB."""
    guest_buffer, packet = 256 << 10, 64 << 10
    connection = Connection.accept(
        header(VIRTIO_VSOCK_OP_REQUEST, buf_alloc=guest_buffer), buf_alloc=1 << 20
    )
    connection.next_op()
    connection.sent()
    sent = told = 0
    while sent < 4 << 20:
        assert sent - told < guest_buffer, "the guest waits for credit that never comes"
        connection.receive(header(VIRTIO_VSOCK_OP_RW, packet, buf_alloc=guest_buffer))
        connection.forwarded(packet)
        sent += packet
        if connection.next_op() == VIRTIO_VSOCK_OP_CREDIT_UPDATE:
            connection.sent()
            told = connection.fwd_cnt
