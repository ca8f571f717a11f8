"""What of a TCP connection goes to the guest, and when: numbers, windows, timers. No I/O, no clock.

Nothing is lost on the way for want of a buffer. What the guest does not acknowledge all the same
is sent again by go-back-N, ever more slowly (RFC 6298); a shut window is asked for (RFC 9293
§3.8.6.1), and so is a guest that was silent for long (§3.8.4).
"""

from __future__ import annotations

from voidbox.net.tcp_states import (
    CAN_SEND,
    CLOSED,
    CLOSING,
    CONNECTING,
    ESTABLISHED,
    FIN_SENT,
    FIN_WAIT_2,
    HALF_CLOSED,
    LAST_ACK,
    SYN_RECEIVED,
    SYN_SENT,
    TRANSITIONS,
    Event,
    State,
)
from voidbox.net.tcp_wire import TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN

U32 = 0xFFFF_FFFF
HALF = 0x8000_0000
_NEVER_NS = 1 << 63
MSS_DEFAULT = 536  # RFC 9293 §3.7.1, of a SYN without the option
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


class Outgoing:
    """What of a connection goes to the guest. Thread: loop.

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
        guest_has_ended: the guest has said that it sent everything, and the host has all of it.
        last_ns: when the guest last said something.
        deadline_ns: when on_time() is to be called; None for never.
    """

    __slots__ = (
        "_dup_acks",
        "_full_window",
        "_has_rewound",
        "_is_ack_delayed",
        "_is_probe_due",
        "_is_scaled",
        "_our_fin_seq",
        "_receive_bytes",
        "_replies",
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
        "guest_has_ended",
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
        self.state: State = SYN_SENT
        self.iss = self.snd_una = self.snd_nxt = self.snd_max = iss
        self.snd_wnd = 0
        self.mss = MSS_DEFAULT
        self.rcv_nxt = self.rcv_adv = 0
        self.held_bytes = 0
        self.ack_due = False
        self.syn_due = False
        self.reset_due = False
        self.ended_by_fin = False
        self.guest_has_ended = False
        self.deadline_ns: int | None = now_ns + CONNECT_NS
        self._receive_bytes = receive_bytes
        self._send_bytes = send_bytes
        self._snd_wscale = 0
        self._is_scaled = False
        self._full_window = 0  # the field that says _receive_bytes; 0 without scale
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
        self._replies = 0  # delayed acknowledgements in a row that went along with data
        self._unacked_bytes = 0  # received since the last acknowledgement

    def _step(self, event: Event) -> None:
        """The only place where the state changes."""
        state = TRANSITIONS.get((self.state, event))
        if state is not None:
            self.state = state
            if state in HALF_CLOSED:
                self.deadline_ns = min(self.deadline_ns or _NEVER_NS, self.last_ns + HALF_CLOSED_NS)
            elif state is CLOSED:
                self.deadline_ns = None
                self.ended_by_fin = event is not Event.ABORT

    # What the owner asks.

    @property
    def is_closed(self) -> bool:
        """Whether it is over; reset_due says whether the guest must be told."""
        return self.state is CLOSED

    @property
    def sends_data(self) -> bool:
        """Whether data of the host may still go to the guest."""
        return self.state in CAN_SEND and not self._wants_fin

    @property
    def is_closing(self) -> bool:
        """Whether a new SYN may take its place: we have said that we end, and the guest knows."""
        return self.state in (FIN_WAIT_2, CLOSING, LAST_ACK)

    @property
    def is_half_closed(self) -> bool:
        """Whether one side has ended, and the other may go on for as long as it likes."""
        return self.state in HALF_CLOSED

    def is_quiet(self, now_ns: int) -> bool:
        """Whether nothing was said for so long that both ends are to be asked."""
        return now_ns - self.last_ns >= self._quiet_ns

    @property
    def _quiet_ns(self) -> int:
        return HALF_CLOSED_NS if self.state in HALF_CLOSED else IDLE_NS

    @property
    def host_has_ended(self) -> bool:
        """Whether the host's end has said that it sent everything."""
        return self._wants_fin

    @property
    def offers_wscale(self) -> bool:
        """Whether our SYN carries a window scale."""
        return self._is_scaled or self.state is SYN_SENT

    def room(self, flight_bytes_max: int = U32) -> int:
        """How many bytes of new data may be sent now.

        Less than a segment only when nothing is in flight (§3.8.6.2.1), and never more than the
        owner keeps until it is acknowledged.

        Args:
            flight_bytes_max: the most that may be in flight, whatever the guest's window says.
        """
        in_flight = (self.snd_nxt - self.snd_una) & U32
        room = min(self.snd_wnd, self._send_bytes, flight_bytes_max) - in_flight
        if room < self.mss and in_flight:
            return 0
        return max(0, room)

    @property
    def has_rewound(self) -> bool:
        """Whether what was sent before is to be sent again: from the kept copy."""
        return self.snd_nxt != self.snd_max

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
        if self.state is not CLOSED:
            self.reset_due = True
            self._step(Event.ABORT)

    # To the guest.

    def next_control(self, now_ns: int) -> tuple[int, int] | None:
        """Return the next segment without data that is due, and count it as sent.

        A SYN first; then a FIN, if all data before it is out; then a probe or an acknowledgement.

        Returns:
            Its sequence number and its flags.
        """
        if self._reset_seq is not None:
            seq, self._reset_seq = self._reset_seq, None
            return seq, TCP_RST
        if self.syn_due:
            self.syn_due = False
            flags = TCP_SYN if self.state is SYN_SENT else TCP_SYN | TCP_ACK
            self.snd_nxt = self.snd_max = (self.iss + 1) & U32
            self._after_sending(now_ns)
            return self.iss, flags
        if self._is_fin_due():
            return self._send_fin(now_ns)
        if self._is_probe_due:
            self._is_probe_due = False
            # One below: the guest drops it and says what its window is.
            return (self.snd_una - 1) & U32, TCP_ACK
        if self.ack_due and self.state is not CONNECTING:
            self._acknowledged(now_ns)
            return self.snd_nxt, TCP_ACK
        return None

    def _is_fin_due(self) -> bool:
        if self._our_fin_seq is not None:
            return self.snd_nxt == self._our_fin_seq and self.state in FIN_SENT
        return self._wants_fin and self.snd_nxt == self.snd_max and self.state in CAN_SEND

    def _send_fin(self, now_ns: int) -> tuple[int, int]:
        seq = self.snd_nxt
        if self._our_fin_seq is None:
            self._our_fin_seq = seq
            self.snd_max = (seq + 1) & U32
            self._step(Event.OUR_FIN)
        self.snd_nxt = (seq + 1) & U32
        self._after_sending(now_ns)
        return seq, TCP_FIN | TCP_ACK

    @property
    def is_at_rest(self) -> bool:
        """Whether it is open, and nothing is due to the guest but data that is new."""
        return (
            self.state is ESTABLISHED
            and not (self.ack_due or self.syn_due or self._is_probe_due or self._wants_fin)
            and self.snd_nxt == self.snd_max
        )

    def has_control(self) -> bool:
        """Whether next_control() has something."""
        return (
            self.ack_due
            or self.syn_due
            or self._is_probe_due
            or (self._wants_fin and self._is_fin_due())
        )

    def send_data(self, length: int, now_ns: int) -> int:
        """`length` bytes go out, at the number that is returned; after a rewind those of before."""
        if self._is_ack_delayed:
            self._replies += 1
        seq = self.snd_nxt
        self.snd_nxt = end = (seq + length) & U32
        if (end - self.snd_max) & U32 < HALF:
            self.snd_max = end
        self._after_sending(now_ns)
        return seq

    def again_bytes(self) -> int:
        """How many bytes are to be sent again from the kept copy, as far as the window goes."""
        end = self.snd_max if self._our_fin_seq is None else self._our_fin_seq
        left = (end - self.snd_nxt) & U32
        if left >= HALF:
            return 0
        return min(left, self.room())

    def _rewind(self) -> None:
        """Send everything again that was not acknowledged, a FIN too."""
        self._has_rewound = True
        self.snd_nxt = self.snd_una

    def _acknowledged(self, now_ns: int) -> None:
        self.ack_due = False
        self._unacked_bytes = 0
        if self._is_ack_delayed:
            self._is_ack_delayed = False
            self._set_timer(now_ns)  # the deadline was the acknowledgement's

    def _after_sending(self, now_ns: int) -> None:
        """A segment went out that is to be acknowledged."""
        self.ack_due = False  # every segment acknowledges
        self._unacked_bytes = 0
        rto_ns = now_ns + (min(RTO_NS << self._retries, RTO_NS_MAX) if self._retries else RTO_NS)
        deadline_ns = self.deadline_ns
        if self._is_ack_delayed or deadline_ns is None or deadline_ns > rto_ns:
            self._is_ack_delayed = False  # the deadline was the acknowledgement's
            self.deadline_ns = rto_ns

    # Time.

    def _set_timer(self, now_ns: int) -> None:
        if self.state is CLOSED or self._is_ack_delayed:  # which comes first, and sets it anew
            return
        if self.snd_max != self.snd_una:  # something is not acknowledged
            wait_ns = min(RTO_NS << self._retries, RTO_NS_MAX)
        else:
            wait_ns = self._quiet_ns
        self.deadline_ns = now_ns + wait_ns

    def resume(self, now_ns: int) -> None:
        """The guest stood still until now: its silence says nothing."""
        self.last_ns = now_ns
        if self.deadline_ns is not None and not self._is_ack_delayed:
            self.deadline_ns = max(self.deadline_ns, now_ns + RTO_NS)

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
            self._replies = 0
            self.ack_due = True
            self._set_timer(now_ns)
            return
        is_opening = self.state in (SYN_SENT, SYN_RECEIVED)
        if self.snd_max == self.iss:  # nobody has answered the host, or the guest takes nothing
            self.abort()
        elif self.snd_wnd == 0 and not is_opening and (has_data or self.snd_max != self.snd_una):
            self._probe(now_ns)
        elif self.snd_max != self.snd_una:
            self._retries += 1
            if self._retries > (RETRIES_MAX if self.state in CAN_SEND else RETRIES_MAX_ENDS):
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
