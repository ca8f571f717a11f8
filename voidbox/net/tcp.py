"""One TCP connection with the guest, seen from the other side of it (RFC 9293). No I/O, no clock.

The guest believes it talks to a far server; what it talks to is this. An ordinary socket of the
host carries the data on, so congestion, routing and loss out there are the host kernel's business.
Here the line is a queue in memory: nothing is lost for want of a buffer, and what is lost all the
same, by the guest's own choice, is sent again by go-back-N.

    CONNECTING ── the host is connected ──► SYN_RECEIVED ── ACK ──► ESTABLISHED
    SYN_SENT (a published port) ── SYN+ACK ───────────────────────────► │
    ESTABLISHED ── the guest's FIN ──► CLOSE_WAIT ── ours ──► LAST_ACK ── ACK ──► CLOSED
    ESTABLISHED ── our FIN ──► FIN_WAIT_1 ── ACK ──► FIN_WAIT_2 ── the guest's FIN ──► CLOSED
                                   └── the guest's FIN ──► CLOSING ── ACK ──► CLOSED

TIME_WAIT is left out: it guards against old duplicates on a network, and this line has none.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from voidbox.net.wire import (
    IP_BYTES,
    MTU,
    TCP_ACK,
    TCP_BYTES,
    TCP_FIN,
    TCP_PSH,
    TCP_RST,
    TCP_SYN,
    Tcp,
)

U32 = 0xFFFF_FFFF
_NEVER_NS = 1 << 63
_HALF = 0x8000_0000
MSS = MTU - IP_BYTES - TCP_BYTES  # ours, and the most that a segment of ours has
MSS_DEFAULT = 536  # RFC 9293 §3.7.1, of a SYN without the option
# A guest may announce less, down to nothing; smaller segments would only be work.
MSS_MIN = 64
WSCALE = 7  # windows up to 8 MiB
RTO_NS = 1_000_000_000
RTO_NS_MAX = 60_000_000_000
RETRIES_MAX = 8  # over four minutes
RETRIES_MAX_ENDS = 5  # of a SYN or a FIN: a minute
PROBE_NS = 500_000_000
SILENCE_NS = 240_000_000_000  # probes without any answer
CONNECT_NS = 30_000_000_000
# How long a guest may say nothing until it is asked whether it still has the connection: Linux's
# tcp_keepalive_time, and after the end of one side its tcp_fin_timeout. A kernel that forgot the
# connection, as it does when its program has closed it, answers by RST.
IDLE_NS = 7200_000_000_000
HALF_CLOSED_NS = 60_000_000_000
KEEPALIVE_INTVL_NS, KEEPALIVE_PROBES = 75_000_000_000, 9
DUPLICATE_ACKS = 3
# With so much room left the guest needs no segment of its own about a larger window: the next
# acknowledgement tells it. Else every connection's first data would be answered twice.
WINDOW_ENOUGH_BYTES = 32 << 10
# How long an acknowledgement of less than a segment waits for data to go along with. A guest that
# waits for it before it writes more (Nagle) is held up for so long: Linux takes 40 ms.
DELAYED_ACK_NS = 10_000_000


class State(Enum):
    """Where a connection is in its life."""

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

    HOST_CONNECTED = auto()
    SYN_ACKED = auto()
    GUEST_FIN = auto()
    OUR_FIN = auto()
    FIN_ACKED = auto()
    ABORT = auto()


_TRANSITIONS = {
    (State.CONNECTING, Event.HOST_CONNECTED): State.SYN_RECEIVED,
    (State.SYN_RECEIVED, Event.SYN_ACKED): State.ESTABLISHED,
    (State.SYN_SENT, Event.SYN_ACKED): State.ESTABLISHED,
    (State.ESTABLISHED, Event.GUEST_FIN): State.CLOSE_WAIT,
    (State.ESTABLISHED, Event.OUR_FIN): State.FIN_WAIT_1,
    (State.CLOSE_WAIT, Event.OUR_FIN): State.LAST_ACK,
    (State.FIN_WAIT_1, Event.FIN_ACKED): State.FIN_WAIT_2,
    (State.FIN_WAIT_1, Event.GUEST_FIN): State.CLOSING,
    (State.FIN_WAIT_2, Event.GUEST_FIN): State.CLOSED,
    (State.CLOSING, Event.FIN_ACKED): State.CLOSED,
    (State.LAST_ACK, Event.FIN_ACKED): State.CLOSED,
    **{(state, Event.ABORT): State.CLOSED for state in State},
}

_CAN_SEND = (State.ESTABLISHED, State.CLOSE_WAIT)
_CAN_RECEIVE = (State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2)
_FIN_SENT = (State.FIN_WAIT_1, State.CLOSING, State.LAST_ACK)
_GUEST_ENDED = (State.CLOSE_WAIT, State.CLOSING, State.LAST_ACK)
_HALF_CLOSED = (State.CLOSE_WAIT, State.FIN_WAIT_2)


class Payload(NamedTuple):
    """The part of a segment's payload that is new: `length` bytes from `offset` on."""

    offset: int
    length: int


NO_PAYLOAD = Payload(0, 0)


class Segment(NamedTuple):
    """A segment to send; its data are the `length` bytes at `seq`."""

    seq: int
    flags: int
    length: int


def before(a: int, b: int) -> bool:
    """Whether sequence number a comes before b, modulo 2^32."""
    return (a - b) & U32 >= _HALF


class Connection:
    """One connection. Thread: loop.

    Args:
        iss: the first sequence number of ours.
        receive_bytes: how much of the guest's data its owner is willing to hold.
        send_bytes: how much the owner keeps until the guest has acknowledged it.

    Attributes:
        state: changed by `_step` alone.
        mss: the guest's, without headers.
        rcv_nxt: the next sequence number expected of the guest.
        held_bytes: of the guest's data, those that the owner could not pass on yet.
        ack_due: the guest is owed an acknowledgement or a new window.
        reset_due: the connection ended in a way that the guest must be told by RST.
        ended_by_fin: it is over, and both sides said so.
        last_ns: when the guest last said something.
        deadline_ns: when on_time() is to be called; None for never.
    """

    __slots__ = (
        "_dup_acks",
        "_has_rewound",
        "_is_ack_delayed",
        "_is_probe_due",
        "_is_scaled",
        "_our_fin_seq",
        "_receive_bytes",
        "_reset_seq",
        "_retries",
        "_send_bytes",
        "_snd_wl1",
        "_snd_wl2",
        "_snd_wscale",
        "_unacked_bytes",
        "_waiting_fin",
        "_wants_fin",
        "ack_due",
        "deadline_ns",
        "ended_by_fin",
        "held_bytes",
        "iss",
        "last_ns",
        "mss",
        "rcv_adv",
        "rcv_nxt",
        "reset_due",
        "snd_max",
        "snd_nxt",
        "snd_una",
        "snd_wnd",
        "state",
        "syn_due",
    )

    def __init__(self, iss: int, receive_bytes: int, send_bytes: int, now_ns: int) -> None:
        self.state = State.SYN_SENT
        self.iss = self.snd_una = self.snd_nxt = self.snd_max = iss
        self.snd_wnd = 0
        self.mss = MSS_DEFAULT
        self.rcv_nxt = self.rcv_adv = 0
        self.held_bytes = 0
        self.ack_due = False
        self.syn_due = False
        self.reset_due = False
        self.ended_by_fin = False
        self.deadline_ns: int | None = now_ns + CONNECT_NS
        self._receive_bytes = receive_bytes
        self._send_bytes = send_bytes
        self._snd_wscale = 0
        self._is_scaled = False
        self._snd_wl1 = self._snd_wl2 = 0
        self._our_fin_seq: int | None = None
        self._wants_fin = False
        self._waiting_fin = False
        self._dup_acks = 0
        self._has_rewound = False
        self._is_probe_due = False
        self._reset_seq: int | None = None
        self._retries = 0
        self.last_ns = now_ns
        self._is_ack_delayed = False
        self._unacked_bytes = 0  # received since the last acknowledgement

    @classmethod
    def accept(
        cls, syn: Tcp, iss: int, receive_bytes: int, send_bytes: int, now_ns: int
    ) -> Connection:
        """The guest wants to connect; SYN+ACK follows host_connected()."""
        connection = cls(iss, receive_bytes, send_bytes, now_ns)
        connection.state = State.CONNECTING
        connection._take_syn(syn)
        return connection

    @classmethod
    def connect(cls, iss: int, receive_bytes: int, send_bytes: int, now_ns: int) -> Connection:
        """We want to connect to a port of the guest: a SYN is due."""
        connection = cls(iss, receive_bytes, send_bytes, now_ns)
        connection.syn_due = True
        return connection

    def _take_syn(self, syn: Tcp) -> None:
        self.rcv_nxt = self.rcv_adv = (syn.seq + 1) & U32
        self.mss = min(max(MSS_MIN, syn.mss or MSS_DEFAULT), MSS)
        self._is_scaled = syn.wscale is not None
        if not self._is_scaled:  # no more can be promised
            self._receive_bytes = min(self._receive_bytes, 0xFFFF)
        self._snd_wscale = syn.wscale or 0
        self.snd_wnd = syn.window  # never scaled in a SYN
        # A SYN's acknowledgement field says nothing; 0 would be newer than half of all numbers.
        self._snd_wl1, self._snd_wl2 = syn.seq, self.iss

    def _step(self, event: Event) -> None:
        """The only place where the state changes."""
        state = _TRANSITIONS.get((self.state, event))
        if state is not None:
            self.state = state
            if state in _HALF_CLOSED:
                self.deadline_ns = min(self.deadline_ns or _NEVER_NS, self.last_ns + HALF_CLOSED_NS)
            elif state is State.CLOSED:
                self.deadline_ns = None
                self.ended_by_fin = event is not Event.ABORT

    # What the owner asks.

    @property
    def is_closed(self) -> bool:
        """Whether it is over; reset_due says whether the guest must be told."""
        return self.state is State.CLOSED

    @property
    def sends_data(self) -> bool:
        """Whether data of the host may still go to the guest."""
        return self.state in _CAN_SEND and not self._wants_fin

    @property
    def is_closing(self) -> bool:
        """Whether a new SYN may take its place: we have said that we end, and the guest knows."""
        return self.state in (State.FIN_WAIT_2, State.CLOSING, State.LAST_ACK)

    @property
    def is_half_closed(self) -> bool:
        """Whether one side has ended, and the other may go on for as long as it likes."""
        return self.state in _HALF_CLOSED

    def is_quiet(self, now_ns: int) -> bool:
        """Whether nothing was said for so long that both ends are to be asked."""
        return now_ns - self.last_ns >= self._quiet_ns

    @property
    def _quiet_ns(self) -> int:
        return HALF_CLOSED_NS if self.state in _HALF_CLOSED else IDLE_NS

    @property
    def host_has_ended(self) -> bool:
        """Whether the host's end has said that it sent everything."""
        return self._wants_fin

    @property
    def guest_has_ended(self) -> bool:
        """Whether the guest has said that it sent everything."""
        return self.ended_by_fin or self.state in _GUEST_ENDED

    @property
    def offers_wscale(self) -> bool:
        """Whether our SYN carries a window scale."""
        return self._is_scaled or self.state is State.SYN_SENT

    def room(self) -> int:
        """How many bytes of new data may be sent now.

        Less than a segment only when nothing is in flight (§3.8.6.2.1), and never more than the
        owner keeps until it is acknowledged.
        """
        in_flight = (self.snd_nxt - self.snd_una) & U32
        room = min(self.snd_wnd, self._send_bytes) - in_flight
        if room < self.mss and in_flight:
            return 0
        return max(0, room)

    @property
    def has_rewound(self) -> bool:
        """Whether what was sent before is to be sent again: from the kept copy."""
        return self.snd_nxt != self.snd_max

    def window(self, is_syn: bool = False) -> int:
        """Return the window field for the next segment, and remember what it promises.

        The right edge never moves back (§3.8.6), though the field, which is rounded down to the
        scale, may say a little less: what lies up to the edge is taken. Space for less than a
        segment is not announced as new.
        """
        space = self._receive_bytes - self.held_bytes
        promised = (self.rcv_adv - self.rcv_nxt) & U32
        if space < self.mss:
            space = promised
        if self._is_scaled and not is_syn:
            field = min(space >> WSCALE, 0xFFFF)
            size = field << WSCALE
        else:
            field = size = min(space, 0xFFFF)
        if size > promised:
            self.rcv_adv = (self.rcv_nxt + size) & U32
        return field

    # From the guest.

    def receive(self, tcp: Tcp, payload_bytes: int, now_ns: int) -> Payload:
        """Take a segment (§3.10.7); returns what of its payload is new and has room."""
        self.last_ns = now_ns
        if self.state is State.CONNECTING:
            if tcp.flags & TCP_RST and tcp.seq == self.rcv_nxt:
                self._step(Event.ABORT)
            return NO_PAYLOAD  # SYNs sent again, and what comes too early
        if self.state is State.SYN_SENT:
            self._receive_in_syn_sent(tcp, now_ns)
            return NO_PAYLOAD
        flags = tcp.flags
        if flags & (TCP_RST | TCP_SYN):
            self._receive_control(tcp)
            return NO_PAYLOAD
        if not flags & TCP_ACK:
            return NO_PAYLOAD
        if tcp.seq != self.rcv_nxt and self._is_beyond(tcp.seq):
            self.ack_due = True
            return NO_PAYLOAD
        if not self._acknowledge(tcp, payload_bytes, now_ns):
            return NO_PAYLOAD
        if not payload_bytes and not flags & TCP_FIN:
            if tcp.seq != self.rcv_nxt:
                self.ack_due = True  # a keep-alive, or out of the window: §3.10.7.4
            return NO_PAYLOAD
        return self._place(tcp, payload_bytes)

    def _receive_in_syn_sent(self, tcp: Tcp, now_ns: int) -> None:
        acks_syn = bool(tcp.flags & TCP_ACK) and tcp.ack == (self.iss + 1) & U32
        if tcp.flags & TCP_RST:
            if acks_syn:
                self._step(Event.ABORT)
            return
        if tcp.flags & TCP_SYN and acks_syn:
            self._take_syn(tcp)
            self.snd_una = self.snd_nxt = self.snd_max = tcp.ack
            self._retries = 0
            self.ack_due = True
            self._step(Event.SYN_ACKED)
            self._set_timer(now_ns)
        elif tcp.flags & TCP_ACK and not acks_syn:
            # Of an older connection: the RST rids the guest of it, and the SYN comes again.
            self._reset_seq = tcp.ack
            self.syn_due = True

    def _receive_control(self, tcp: Tcp) -> None:
        """RST and SYN: RFC 5961, so that only the exact number ends a connection."""
        if tcp.flags & TCP_RST:
            if tcp.seq == self.rcv_nxt:
                self._step(Event.ABORT)
            elif (tcp.seq - self.rcv_nxt) & U32 < (self.rcv_adv - self.rcv_nxt) & U32:
                self.ack_due = True
            return
        if self.state is State.SYN_RECEIVED and (tcp.seq + 1) & U32 == self.rcv_nxt:
            self.syn_due = True  # our SYN+ACK did not get there
        else:
            self.ack_due = True

    def _is_beyond(self, seq: int) -> bool:
        """Whether a segment begins past the window; a FIN that waits is not counted yet."""
        ahead = (seq - self.rcv_nxt) & U32
        return ((self.rcv_adv - self.rcv_nxt) & U32) + 1 < ahead < _HALF

    def _acknowledge(self, tcp: Tcp, payload_bytes: int, now_ns: int) -> bool:
        """Process the acknowledgement field; False if the segment is to be dropped."""
        ack = tcp.ack
        newly = (ack - self.snd_una) & U32
        outstanding = (self.snd_max - self.snd_una) & U32
        if newly > outstanding:
            if newly < _HALF:  # of what was never sent
                if self.state is State.SYN_RECEIVED:
                    self.reset_due = True
                    self._step(Event.ABORT)
                self.ack_due = True
                return False
            newly = 0  # an old one
        if self.state is State.SYN_RECEIVED:
            if not newly:
                return False
            self._step(Event.SYN_ACKED)
        old_window = self.snd_wnd
        newer = (tcp.seq - self._snd_wl1) & U32
        if newer < _HALF and (newer or not before(ack, self._snd_wl2)):
            self.snd_wnd = tcp.window << self._snd_wscale
            self._snd_wl1, self._snd_wl2 = tcp.seq, ack
        if newly:
            self.snd_una = ack
            if before(self.snd_nxt, ack):
                self.snd_nxt = ack
            self._dup_acks = self._retries = 0
            self._has_rewound = False
            if self._our_fin_seq is not None and ack == (self._our_fin_seq + 1) & U32:
                self._step(Event.FIN_ACKED)
        elif (
            outstanding
            and ack == self.snd_una
            and not payload_bytes
            and not tcp.flags & TCP_FIN
            and self.snd_wnd == old_window
        ):
            self._count_duplicate()
        if newly or self.snd_wnd != old_window:
            self._is_probe_due = False
            if not old_window:
                self._retries = 0
                if self.snd_max != self.snd_una:
                    self._rewind()  # the guest had no room for it
            self._set_timer(now_ns)
        return True

    def _count_duplicate(self) -> None:
        self._dup_acks += 1
        if self._dup_acks == DUPLICATE_ACKS and not self._has_rewound:
            self._rewind()

    def _rewind(self) -> None:
        """Send everything again that was not acknowledged, a FIN too."""
        self._has_rewound = True
        self.snd_nxt = self.snd_una

    def _place(self, tcp: Tcp, payload_bytes: int) -> Payload:
        """Trim a payload to what is new and in the window; note a FIN at its end."""
        offset = (self.rcv_nxt - tcp.seq) & U32
        if offset:
            self.ack_due = True
        if offset >= _HALF:
            return NO_PAYLOAD  # a gap: the duplicate acknowledgement asks for it
        has_fin = bool(tcp.flags & TCP_FIN)
        if offset > payload_bytes:
            return NO_PAYLOAD  # all of it is old
        length = payload_bytes - offset
        room = (self.rcv_adv - self.rcv_nxt) & U32
        if self.state not in _CAN_RECEIVE or self._waiting_fin:
            self.ack_due = True  # data after the FIN
            return NO_PAYLOAD
        if length > room:
            length, has_fin = room, False
            self.ack_due = True
        if has_fin:
            self._waiting_fin = True
        return Payload(offset, length)

    def accepted(self, length: int, held_bytes: int) -> None:
        """The owner took `length` new bytes; `held_bytes` are with it in all."""
        self.rcv_nxt = (self.rcv_nxt + length) & U32
        if self._unacked_bytes + length < self.mss and not self._waiting_fin:
            self._unacked_bytes += length
            self._delay_ack()
        else:
            self.ack_due = True
        self.held(held_bytes)

    def _delay_ack(self) -> None:
        when_ns = self.last_ns + DELAYED_ACK_NS
        if not self._is_ack_delayed:
            self._is_ack_delayed = True
            if self.deadline_ns is None or self.deadline_ns > when_ns:
                self.deadline_ns = when_ns

    def held(self, held_bytes: int) -> None:
        """The owner has passed data on, and holds so much now."""
        was_small = self._receive_bytes - self.held_bytes < 2 * self.mss
        self.held_bytes = held_bytes
        promised = (self.rcv_adv - self.rcv_nxt) & U32
        space = self._receive_bytes - held_bytes
        # Half of what is there, or a window that was shut: RFC 9293 §3.8.6.2.2.
        is_news = space - promised >= self._receive_bytes // 2
        is_news = is_news or (was_small and space >= 2 * self.mss)
        if is_news and promised < WINDOW_ENOUGH_BYTES:
            self.ack_due = True

    def take_fin(self) -> bool:
        """Whether the guest's FIN is next: with it the host's end is to be shut for writing.

        It is acknowledged only once all data before it is with the host's kernel.
        """
        if not self._waiting_fin or self.held_bytes:
            return False
        self._waiting_fin = False
        self.rcv_nxt = (self.rcv_nxt + 1) & U32
        if before(self.rcv_adv, self.rcv_nxt):
            self.rcv_adv = self.rcv_nxt  # it took no room
        self.ack_due = True
        self._step(Event.GUEST_FIN)
        return True

    # From the host.

    def host_connected(self) -> None:
        """connect() succeeded: SYN+ACK is due."""
        self._step(Event.HOST_CONNECTED)
        self.syn_due = True

    def end_data(self) -> None:
        """The host sends no more: FIN follows the last byte."""
        self._wants_fin = True

    def abort(self) -> None:
        """End it, and tell the guest by RST."""
        if self.state is not State.CLOSED:
            self.reset_due = True
            self._step(Event.ABORT)

    # To the guest.

    def next_control(self, now_ns: int) -> Segment | None:
        """Return the next segment without data that is due, and count it as sent.

        A SYN first; then a FIN, if all data before it is out; then a probe or an acknowledgement.
        """
        if self._reset_seq is not None:
            seq, self._reset_seq = self._reset_seq, None
            return Segment(seq, TCP_RST, 0)
        if self.syn_due:
            self.syn_due = False
            flags = TCP_SYN if self.state is State.SYN_SENT else TCP_SYN | TCP_ACK
            self.snd_nxt = self.snd_max = (self.iss + 1) & U32
            self._after_sending(now_ns)
            return Segment(self.iss, flags, 0)
        if self._is_fin_due():
            return self._send_fin(now_ns)
        if self._is_probe_due:
            self._is_probe_due = False
            # One below: the guest drops it and says what its window is.
            return Segment((self.snd_una - 1) & U32, TCP_ACK, 0)
        if self.ack_due and self.state is not State.CONNECTING:
            self._acknowledged(now_ns)
            return Segment(self.snd_nxt, TCP_ACK, 0)
        return None

    def _is_fin_due(self) -> bool:
        if self._our_fin_seq is not None:
            return self.snd_nxt == self._our_fin_seq and self.state in _FIN_SENT
        return self._wants_fin and self.snd_nxt == self.snd_max and self.state in _CAN_SEND

    def _send_fin(self, now_ns: int) -> Segment:
        seq = self.snd_nxt
        if self._our_fin_seq is None:
            self._our_fin_seq = seq
            self.snd_max = (seq + 1) & U32
            self._step(Event.OUR_FIN)
        self.snd_nxt = (seq + 1) & U32
        self._after_sending(now_ns)
        return Segment(seq, TCP_FIN | TCP_ACK, 0)

    def has_control(self) -> bool:
        """Whether next_control() has something."""
        return (
            self.ack_due
            or self.syn_due
            or self._is_probe_due
            or (self._wants_fin and self._is_fin_due())
        )

    def send_data(self, length: int, now_ns: int) -> Segment:
        """`length` bytes go out: new ones, or after a rewind those of before."""
        segment = Segment(self.snd_nxt, TCP_ACK | TCP_PSH, length)
        self.snd_nxt = (self.snd_nxt + length) & U32
        if before(self.snd_max, self.snd_nxt):
            self.snd_max = self.snd_nxt
        self._after_sending(now_ns)
        return segment

    def again_bytes(self) -> int:
        """How many bytes are to be sent again from the kept copy, as far as the window goes."""
        end = self.snd_max if self._our_fin_seq is None else self._our_fin_seq
        left = (end - self.snd_nxt) & U32
        if left >= _HALF:
            return 0
        return min(left, self.room())

    def _acknowledged(self, now_ns: int) -> None:
        self.ack_due = False
        self._unacked_bytes = 0
        if self._is_ack_delayed:
            self._is_ack_delayed = False
            self._set_timer(now_ns)  # the deadline was the acknowledgement's

    def _after_sending(self, now_ns: int) -> None:
        self._acknowledged(now_ns)  # every segment does
        wait_ns = min(RTO_NS << self._retries, RTO_NS_MAX)
        if self.deadline_ns is None or self.deadline_ns - now_ns > wait_ns:
            self._set_timer(now_ns)

    # Time.

    def _set_timer(self, now_ns: int) -> None:
        if self.state is State.CLOSED:
            return
        if self.snd_max != self.snd_una:  # something is not acknowledged
            wait_ns = min(RTO_NS << self._retries, RTO_NS_MAX)
        else:
            wait_ns = self._quiet_ns
        self.deadline_ns = now_ns + wait_ns

    def await_window(self, now_ns: int) -> None:
        """There is data, and the guest's window is shut: ask now and then (§3.8.6.1)."""
        if self.snd_max == self.snd_una:
            wait_ns = min(PROBE_NS << self._retries, RTO_NS_MAX)
            if self.deadline_ns is None or self.deadline_ns > now_ns + wait_ns:
                self.deadline_ns = now_ns + wait_ns

    def on_time(self, now_ns: int, has_data: bool) -> None:
        """The deadline has come.

        Args:
            has_data: the host has data that the guest's window has no room for.
        """
        if self._is_ack_delayed:
            self._is_ack_delayed = False
            self.ack_due = True
            self._set_timer(now_ns)
            return
        is_opening = self.state in (State.SYN_SENT, State.SYN_RECEIVED)
        if self.snd_max == self.iss:  # nobody has answered the host, or the guest takes nothing
            self.abort()
        elif self.snd_wnd == 0 and not is_opening and (has_data or self.snd_max != self.snd_una):
            self._probe(now_ns)
        elif self.snd_max != self.snd_una:
            self._retries += 1
            if self._retries > (RETRIES_MAX if self.state in _CAN_SEND else RETRIES_MAX_ENDS):
                self.abort()
                return
            if is_opening:
                self.syn_due = True
            else:
                self._rewind()
            self._set_timer(now_ns)
        elif self.is_quiet(now_ns):
            self._keep_alive(now_ns)
        else:
            self._set_timer(self.last_ns)

    def _keep_alive(self, now_ns: int) -> None:
        """Ask whether the guest still has the connection (§3.8.4)."""
        patience_ns = self._quiet_ns + KEEPALIVE_PROBES * KEEPALIVE_INTVL_NS
        if now_ns - self.last_ns >= patience_ns:
            self.abort()
            return
        self._is_probe_due = True
        self.deadline_ns = now_ns + KEEPALIVE_INTVL_NS

    def _probe(self, now_ns: int) -> None:
        """Ask for the window. A guest that answers may keep it shut for as long as it likes."""
        if self._retries == RETRIES_MAX and now_ns - self.last_ns >= SILENCE_NS:
            self.abort()
            return
        self._retries = min(self._retries + 1, RETRIES_MAX)
        if self._our_fin_seq == self.snd_una:
            self._rewind()  # a FIN asks just as well
        else:
            self._is_probe_due = True
        if self.snd_max != self.snd_una:
            self._set_timer(now_ns)
        else:
            self.deadline_ns = None
            self.await_window(now_ns)
