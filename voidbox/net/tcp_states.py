"""The states of a TCP connection with the guest, and the one table of what leads to which.

    CONNECTING ── the host is connected ──► SYN_RECEIVED ── ACK ──► ESTABLISHED
    SYN_SENT (a published port) ── SYN+ACK ───────────────────────────► │
    ESTABLISHED ── the guest's FIN ──► CLOSE_WAIT ── ours ──► LAST_ACK ── ACK ──► CLOSED
    ESTABLISHED ── our FIN ──► FIN_WAIT_1 ── ACK ──► FIN_WAIT_2 ── the guest's FIN ──► CLOSED
                                   └── the guest's FIN ──► CLOSING ── ACK ──► CLOSED

TIME_WAIT is left out: it guards against old duplicates on a network, and this line has none.
"""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    """Where a connection is in its life."""

    __hash__ = object.__hash__  # Enum's own is of Python, and each step pays it

    CONNECTING = auto()  # the guest's SYN is here, the host's connect() is under way
    SYN_SENT = auto()
    SYN_RECEIVED = auto()
    ESTABLISHED = auto()
    CLOSE_WAIT = auto()
    FIN_WAIT_1 = auto()
    FIN_WAIT_2 = auto()
    CLOSING = auto()
    LAST_ACK = auto()
    CLOSED = auto()


class Event(Enum):
    """What may happen to it."""

    __hash__ = object.__hash__

    HOST_CONNECTED = auto()
    SYN_ACKED = auto()
    GUEST_FIN = auto()
    OUR_FIN = auto()
    FIN_ACKED = auto()
    ABORT = auto()


# To look a member up in its class takes 0.15 µs, which each segment would pay several times.
(
    CONNECTING, SYN_SENT, SYN_RECEIVED, ESTABLISHED, CLOSE_WAIT,
    FIN_WAIT_1, FIN_WAIT_2, CLOSING, LAST_ACK, CLOSED,
) = State  # fmt: skip

TRANSITIONS = {
    (CONNECTING, Event.HOST_CONNECTED): SYN_RECEIVED,
    (SYN_RECEIVED, Event.SYN_ACKED): ESTABLISHED,
    (SYN_SENT, Event.SYN_ACKED): ESTABLISHED,
    (ESTABLISHED, Event.GUEST_FIN): CLOSE_WAIT,
    (ESTABLISHED, Event.OUR_FIN): FIN_WAIT_1,
    (CLOSE_WAIT, Event.OUR_FIN): LAST_ACK,
    (FIN_WAIT_1, Event.FIN_ACKED): FIN_WAIT_2,
    (FIN_WAIT_1, Event.GUEST_FIN): CLOSING,
    (FIN_WAIT_2, Event.GUEST_FIN): CLOSED,
    (CLOSING, Event.FIN_ACKED): CLOSED,
    (LAST_ACK, Event.FIN_ACKED): CLOSED,
    **{(state, Event.ABORT): CLOSED for state in State},
}

CAN_SEND = (ESTABLISHED, CLOSE_WAIT)
CAN_RECEIVE = (ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2)
FIN_SENT = (FIN_WAIT_1, CLOSING, LAST_ACK)
HALF_CLOSED = (CLOSE_WAIT, FIN_WAIT_2)
