"""One vsock connection: a state machine and the credit of both directions. No I/O, no clock.

    REQUESTED ──RESPONSE──► ESTABLISHED ──the program is gone──► CLOSING ──RST, SHUTDOWN──► end
        │                        │
        │                        ├──SHUTDOWN of both──► DRAINING ──all delivered──► RESET
        └──RST, time-out──► end  └──RST──► ORPHANED ──all delivered──► CLOSED

"Draining": what the guest sent before it closed still goes to the host's program, however slow
that is; it can be no more than the buf_alloc we announced. There are two ends, because the guest
must be told of some (RESET: an RST is owed) and must not be of others (CLOSED).

A half-close is no state but a flag: each side's SHUTDOWN flags only grow, and a state changes when
one side's reach both.
"""

from __future__ import annotations

from enum import Enum, auto

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

_U32 = 0xFFFF_FFFF


class State(Enum):
    """Where a connection is in its life."""

    REQUESTED = auto()  # ours: REQUEST owed or sent
    ESTABLISHED = auto()
    CLOSING = auto()  # the host's program is gone; the guest's RST is awaited
    DRAINING = auto()  # the guest closed and waits for our RST
    ORPHANED = auto()  # the guest closed and has forgotten the connection
    RESET = auto()  # over; an RST is owed
    CLOSED = auto()  # over


class Event(Enum):
    """What may happen to it."""

    RESPONSE = auto()
    RST = auto()
    DATA = auto()
    CREDIT = auto()
    SHUTDOWN_HALF = auto()
    SHUTDOWN_BOTH = auto()
    HOST_GONE = auto()  # the host's program neither sends nor receives any more
    DELIVERED = auto()  # all data of the guest is with the host's program
    EXPIRED = auto()
    VIOLATION = auto()


_REQUESTED, _ESTABLISHED, _CLOSING = State.REQUESTED, State.ESTABLISHED, State.CLOSING
_DRAINING, _ORPHANED = State.DRAINING, State.ORPHANED

# What is not here may not happen: a violation if the guest caused it, else our bug.
_TRANSITIONS = {
    (_REQUESTED, Event.RESPONSE): _ESTABLISHED,
    (_REQUESTED, Event.RST): State.CLOSED,
    (_REQUESTED, Event.HOST_GONE): State.RESET,
    (_REQUESTED, Event.EXPIRED): State.RESET,
    (_REQUESTED, Event.VIOLATION): State.RESET,
    (_ESTABLISHED, Event.DATA): _ESTABLISHED,
    (_ESTABLISHED, Event.CREDIT): _ESTABLISHED,
    (_ESTABLISHED, Event.SHUTDOWN_HALF): _ESTABLISHED,
    (_ESTABLISHED, Event.SHUTDOWN_BOTH): _DRAINING,
    (_ESTABLISHED, Event.RST): _ORPHANED,
    (_ESTABLISHED, Event.HOST_GONE): _CLOSING,
    (_ESTABLISHED, Event.VIOLATION): State.RESET,
    # The guest's packets may cross our SHUTDOWN.
    (_CLOSING, Event.DATA): _CLOSING,
    (_CLOSING, Event.CREDIT): _CLOSING,
    (_CLOSING, Event.SHUTDOWN_HALF): _CLOSING,
    (_CLOSING, Event.SHUTDOWN_BOTH): State.RESET,
    (_CLOSING, Event.RST): State.CLOSED,
    (_CLOSING, Event.EXPIRED): State.RESET,
    (_CLOSING, Event.VIOLATION): State.RESET,
    # The guest may still read what it has, which gives credit.
    (_DRAINING, Event.CREDIT): _DRAINING,
    (_DRAINING, Event.SHUTDOWN_BOTH): _DRAINING,
    (_DRAINING, Event.RST): _ORPHANED,
    (_DRAINING, Event.DELIVERED): State.RESET,
    (_DRAINING, Event.HOST_GONE): State.RESET,
    (_DRAINING, Event.VIOLATION): State.RESET,
    (_ORPHANED, Event.DELIVERED): State.CLOSED,
    (_ORPHANED, Event.HOST_GONE): State.CLOSED,
    (_ORPHANED, Event.VIOLATION): State.CLOSED,
}

# In the other states the guest does not listen any more.
_SPEAKING = (_REQUESTED, _ESTABLISHED, _CLOSING)

_EVENT_OF_OP = {
    VIRTIO_VSOCK_OP_RESPONSE: Event.RESPONSE,
    VIRTIO_VSOCK_OP_RST: Event.RST,
    VIRTIO_VSOCK_OP_CREDIT_UPDATE: Event.CREDIT,
    VIRTIO_VSOCK_OP_CREDIT_REQUEST: Event.CREDIT,
}

# Control packets in the order in which they go out. Data comes after them: a SHUTDOWN that says
# "I send no more" is owed only once the last byte is out.
_SEND_ORDER = (
    VIRTIO_VSOCK_OP_REQUEST,
    VIRTIO_VSOCK_OP_RESPONSE,
    VIRTIO_VSOCK_OP_SHUTDOWN,
    VIRTIO_VSOCK_OP_CREDIT_UPDATE,
    VIRTIO_VSOCK_OP_CREDIT_REQUEST,
)


class Connection:
    """One connection, seen from the host. Thread: loop.

    Args:
        local_port: the host's port.
        peer_port: the guest's port.
        buf_alloc: how much of the guest's data we are willing to hold.

    Attributes:
        state: changed by `_step` alone.
        buf_alloc: as above.
        fwd_cnt: bytes of the guest that went on to the host's program, modulo 2^32.
        buffered_bytes: bytes of the guest that did not yet.
        owed: control packets to send, a mask of 1 << op.
        peer_shutdown: VIRTIO_VSOCK_SHUTDOWN_* that the guest sent.
        local_shutdown: the same of the host's program.
    """

    __slots__ = (
        "_credit_requested",
        "_fwd_cnt_told",
        "_peer_buf_alloc",
        "_peer_fwd_cnt",
        "_tx_cnt",
        "_untold_max",
        "buf_alloc",
        "buffered_bytes",
        "fwd_cnt",
        "local_port",
        "local_shutdown",
        "owed",
        "peer_port",
        "peer_shutdown",
        "state",
    )

    def __init__(self, local_port: int, peer_port: int, buf_alloc: int) -> None:
        self.local_port = local_port
        self.peer_port = peer_port
        self.buf_alloc = buf_alloc
        self.state = State.REQUESTED
        self.owed = 1 << VIRTIO_VSOCK_OP_REQUEST
        self.fwd_cnt = 0
        self.buffered_bytes = 0
        self.peer_shutdown = 0
        self.local_shutdown = 0
        self._fwd_cnt_told = 0  # the fwd_cnt in the last header that we sent
        self._tx_cnt = 0  # bytes sent to the guest
        self._peer_buf_alloc = 0
        self._peer_fwd_cnt = 0
        self._untold_max = 1  # how far fwd_cnt may be ahead of _fwd_cnt_told
        self._credit_requested = False

    @classmethod
    def accept(cls, request: Header, buf_alloc: int) -> Connection:
        """The guest asked for it and the host's program has it: a RESPONSE is owed."""
        connection = cls(request.dst_port, request.src_port, buf_alloc)
        connection.state = State.ESTABLISHED
        connection.owed = 1 << VIRTIO_VSOCK_OP_RESPONSE
        connection._note_credit(request.buf_alloc, request.fwd_cnt)
        return connection

    def _step(self, event: Event) -> None:
        """The only place where the state changes."""
        state = _TRANSITIONS.get((self.state, event))
        if state is None:
            raise PacketError(f"{event.name} in state {self.state.name}")
        self.state = state
        if state not in _SPEAKING:
            self.owed = 0

    def _owe(self, op: int) -> None:
        if self.state in _SPEAKING:
            self.owed |= 1 << op

    # From the guest.

    def receive(self, header: Header) -> None:
        """Take a packet of the guest.

        Raises:
            PacketError: the connection is in no state for it, or it exceeds its credit.
        """
        self._note_credit(header.buf_alloc, header.fwd_cnt)
        if header.op == VIRTIO_VSOCK_OP_RW:
            self._receive_data(header.length)
            return
        if header.op == VIRTIO_VSOCK_OP_SHUTDOWN:
            self.peer_shutdown |= header.flags & SHUTDOWN_MASK
            both = self.peer_shutdown == SHUTDOWN_MASK
            self._step(Event.SHUTDOWN_BOTH if both else Event.SHUTDOWN_HALF)
            return
        event = _EVENT_OF_OP.get(header.op)
        if event is None:
            raise PacketError(f"op {header.op} on a connection")
        self._step(event)
        if header.op == VIRTIO_VSOCK_OP_CREDIT_REQUEST:
            self._owe(VIRTIO_VSOCK_OP_CREDIT_UPDATE)

    def receive_expected(self, length: int, buf_alloc: int, fwd_cnt: int) -> bool:
        """Take data, if the connection is open in both directions and the data within its credit.

        Then receive() would do the same.
        """
        buffered_bytes = self.buffered_bytes + length
        if (
            self.state is not _ESTABLISHED
            or self.peer_shutdown
            or self.local_shutdown
            or buffered_bytes > self.buf_alloc
        ):
            return False
        self.buffered_bytes = buffered_bytes
        self._peer_fwd_cnt = fwd_cnt
        if buf_alloc != self._peer_buf_alloc:
            self._note_credit(buf_alloc, fwd_cnt)
        return True

    def _note_credit(self, buf_alloc: int, fwd_cnt: int) -> None:
        self._peer_buf_alloc = buf_alloc
        self._peer_fwd_cnt = fwd_cnt
        # Half a window: the guest never runs dry while we forward, and is told seldom. The window
        # is the smaller buffer: Linux has no more under way than it would itself take ("cap TX
        # credit to local buffer size", in the stable series of 2026), whatever we announce.
        self._untold_max = max(1, min(self.buf_alloc, buf_alloc) // 2)

    def _receive_data(self, length: int) -> None:
        if self.state is not _ESTABLISHED:  # there it changes nothing
            self._step(Event.DATA)
        if self.peer_shutdown & VIRTIO_VSOCK_SHUTDOWN_SEND:
            raise PacketError("data after SHUTDOWN")
        if self.buffered_bytes + length > self.buf_alloc:
            raise PacketError(f"{length} bytes without credit")
        self.buffered_bytes += length

    # From the host's program.

    @property
    def takes_data(self) -> bool:
        """Whether the host's program still wants the guest's data."""
        return self.state is not _CLOSING and not self.local_shutdown & VIRTIO_VSOCK_SHUTDOWN_RCV

    @property
    def sends_data(self) -> bool:
        """Whether data of the host's program may still go to the guest."""
        return (
            self.state is _ESTABLISHED
            and not self.local_shutdown & VIRTIO_VSOCK_SHUTDOWN_SEND
            and not self.peer_shutdown & VIRTIO_VSOCK_SHUTDOWN_RCV
        )

    @property
    def is_at_rest(self) -> bool:
        """Whether it is open in both directions, and owes the guest nothing but data."""
        return self.state is _ESTABLISHED and not (
            self.owed or self.local_shutdown or self.peer_shutdown
        )

    def forwarded(self, count: int) -> None:
        """`count` buffered bytes went to the host's program, or were dropped with it."""
        self.buffered_bytes -= count
        self.fwd_cnt = fwd_cnt = (self.fwd_cnt + count) & _U32
        if (fwd_cnt - self._fwd_cnt_told) & _U32 >= self._untold_max:
            self._owe(VIRTIO_VSOCK_OP_CREDIT_UPDATE)

    def host_shutdown(self, flags: int) -> None:
        """The host's program sends no more (SEND), receives no more (RCV), or both."""
        shutdown = self.local_shutdown | flags
        if shutdown == self.local_shutdown:
            return
        self.local_shutdown = shutdown
        self._owe(VIRTIO_VSOCK_OP_SHUTDOWN)
        if shutdown == SHUTDOWN_MASK:
            self._step(Event.HOST_GONE)

    def delivered(self) -> None:
        """The last byte of a guest that closed went to the host's program."""
        self._step(Event.DELIVERED)

    def expire(self) -> None:
        """The guest did not answer in time."""
        self._step(Event.EXPIRED)

    def abort(self) -> None:
        """The guest broke the protocol."""
        self._step(Event.VIOLATION)

    # To the guest.

    @property
    def credit_bytes(self) -> int:
        """How much data the guest has room for now."""
        in_flight = (self._tx_cnt - self._peer_fwd_cnt) & _U32
        # A guest that shrinks its buffer, or claims to have read what was never sent, gets none.
        return max(0, self._peer_buf_alloc - in_flight)

    def request_credit(self) -> None:
        """There is data but no credit: ask, once.

        The answer may be "none yet", and to ask again at that would never end; a guest that makes
        room says so unasked.
        """
        if not self._credit_requested:
            self._credit_requested = True
            self._owe(VIRTIO_VSOCK_OP_CREDIT_REQUEST)

    def next_op(self) -> int:
        """Take the next control packet that is owed; 0 if none is."""
        for op in _SEND_ORDER:
            if self.owed & 1 << op:
                self.owed &= ~(1 << op)
                return op
        return 0

    def sent(self, data_bytes: int = 0) -> None:
        """A packet went out, with our fwd_cnt in its header."""
        if data_bytes:
            self._tx_cnt = (self._tx_cnt + data_bytes) & _U32
            self._credit_requested = False
        self._fwd_cnt_told = self.fwd_cnt
        self.owed &= ~(1 << VIRTIO_VSOCK_OP_CREDIT_UPDATE)
