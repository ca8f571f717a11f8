"""One TCP connection with the guest, seen from the other side of it (RFC 9293). No I/O, no clock.

The guest believes it talks to a far server; what it talks to is this. An ordinary socket of the
host carries the data on, so congestion, routing and loss out there are the host kernel's business.
Here the line is a queue in memory. Half of it is in tcp_outgoing: what goes to the guest, and when.
"""

from __future__ import annotations

from voidbox.named_tuple import NamedTuple
from voidbox.net.tcp_outgoing import HALF, IDLE_NS, MSS_DEFAULT, RTO_NS, U32, Outgoing
from voidbox.net.tcp_states import (
    CAN_RECEIVE,
    CLOSE_WAIT,
    CONNECTING,
    ESTABLISHED,
    SYN_RECEIVED,
    SYN_SENT,
    Event,
)
from voidbox.net.tcp_wire import TCP_ACK, TCP_BYTES, TCP_FIN, TCP_RST, TCP_SYN, Tcp
from voidbox.net.wire import IP_BYTES, MTU

MSS = MTU - IP_BYTES - TCP_BYTES  # ours, and the most that a segment of ours has
# A guest may announce less, down to nothing; smaller segments would only be work.
MSS_MIN = 64
WSCALE = 7  # windows up to 8 MiB
DUPLICATE_ACKS = 3
# With so much room left the guest needs no segment of its own about a larger window: the next
# acknowledgement tells it. Else every connection's first data would be answered twice.
WINDOW_ENOUGH_BYTES = 32 << 10
# How long an acknowledgement of less than a segment waits for data to go along with. A guest that
# waits for it before it writes more (Nagle) is held up for so long: Linux takes 40 ms.
DELAYED_ACK_NS = 10_000_000
# Where so many in a row did go along with data, requests and replies alternate, and one may take
# longer: then as long as Linux's. One that went alone ends that, for such a guest.
INTERACTIVE_REPLIES, INTERACTIVE_ACK_NS = 8, 40_000_000


class Payload(NamedTuple):
    """The part of a segment's payload that is new: `length` bytes from `offset` on."""

    offset: int
    length: int


NO_PAYLOAD = Payload(0, 0)


def before(a: int, b: int) -> bool:
    """Whether sequence number a comes before b, modulo 2^32."""
    return (a - b) & U32 >= HALF


class Connection(Outgoing):
    """One connection: what the guest sends, and all of Outgoing. Thread: loop."""

    __slots__ = ()

    @classmethod
    def accept(
        cls, syn: Tcp, iss: int, receive_bytes: int, send_bytes: int, now_ns: int
    ) -> Connection:
        """The guest wants to connect; SYN+ACK follows host_connected()."""
        connection = cls(iss, receive_bytes, send_bytes, now_ns)
        connection.state = CONNECTING
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
        elif self._receive_bytes % (1 << WSCALE) == 0:  # else the SYN promises a little more
            self._full_window = min(self._receive_bytes >> WSCALE, 0xFFFF)
        self._snd_wscale = syn.wscale or 0
        self.snd_wnd = syn.window  # never scaled in a SYN
        # A SYN's acknowledgement field says nothing; 0 would be newer than half of all numbers.
        self._snd_wl1, self._snd_wl2 = syn.seq, self.iss

    def window(self, is_syn: bool = False) -> int:
        """Return the window field for the next segment, and remember what it promises.

        The right edge never moves back (§3.8.6), though the field, which is rounded down to the
        scale, may say a little less: what lies up to the edge is taken. Space for less than a
        segment is not announced as new.
        """
        if self._full_window and not (self.held_bytes or is_syn):  # further than ever, or as far
            self.rcv_adv = (self.rcv_nxt + (self._full_window << WSCALE)) & U32
            return self._full_window
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

    def receive(self, tcp: Tcp, payload_bytes: int, now_ns: int) -> Payload:
        """Take a segment (§3.10.7); returns what of its payload is new and has room."""
        self.last_ns = now_ns
        if self.state is CONNECTING:
            if tcp.flags & TCP_RST and tcp.seq == self.rcv_nxt:
                self._step(Event.ABORT)
            return NO_PAYLOAD  # SYNs sent again, and what comes too early
        if self.state is SYN_SENT:
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

    def receive_expected(
        self, seq: int, ack: int, window: int, payload_bytes: int, now_ns: int
    ) -> bool:
        """Take the next segment of an open connection, with data or an acknowledgement that is new.

        That is what nearly all are; receive() would do the same, and does for all others.

        Returns:
            False: it is another. Else all of its payload is new and has room.
        """
        newly = (ack - self.snd_una) & U32
        outstanding = (self.snd_max - self.snd_una) & U32
        if (
            self.state is not ESTABLISHED
            or seq != self.rcv_nxt
            or newly > outstanding
            or not (newly or payload_bytes)
            or payload_bytes > (self.rcv_adv - seq) & U32
            or (seq - self._snd_wl1) & U32 >= HALF
            or not self.snd_wnd
            or self._has_rewound
            or self.snd_nxt != self.snd_max  # an acknowledgement may lead past what is sent again
            or self._waiting_fin
        ):
            return False
        self.last_ns = now_ns
        window <<= self._snd_wscale
        if newly:
            self.snd_una = ack
            self._dup_acks = self._retries = 0
        if newly or window != self.snd_wnd:
            self.snd_wnd = window
            self._is_probe_due = False
            if not self._is_ack_delayed:
                wait_ns = RTO_NS if newly != outstanding else IDLE_NS
                self.deadline_ns = now_ns + wait_ns
        self._snd_wl1, self._snd_wl2 = seq, ack
        return True

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
        if self.state is SYN_RECEIVED and (tcp.seq + 1) & U32 == self.rcv_nxt:
            self.syn_due = True  # our SYN+ACK did not get there
        else:
            self.ack_due = True

    def _is_beyond(self, seq: int) -> bool:
        """Whether a segment begins past the window; a FIN that waits is not counted yet."""
        ahead = (seq - self.rcv_nxt) & U32
        return ((self.rcv_adv - self.rcv_nxt) & U32) + 1 < ahead < HALF

    def _acknowledge(self, tcp: Tcp, payload_bytes: int, now_ns: int) -> bool:
        """Process the acknowledgement field; False if the segment is to be dropped."""
        ack = tcp.ack
        newly = (ack - self.snd_una) & U32
        outstanding = (self.snd_max - self.snd_una) & U32
        if newly > outstanding:
            if newly < HALF:  # of what was never sent
                if self.state is SYN_RECEIVED:
                    self.reset_due = True
                    self._step(Event.ABORT)
                self.ack_due = True
                return False
            newly = 0  # an old one
        if self.state is SYN_RECEIVED:
            if not newly:
                return False
            self._step(Event.SYN_ACKED)
        old_window = self.snd_wnd
        newer = (tcp.seq - self._snd_wl1) & U32
        if newer < HALF and (newer or not before(ack, self._snd_wl2)):
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

    def _place(self, tcp: Tcp, payload_bytes: int) -> Payload:
        """Trim a payload to what is new and in the window; note a FIN at its end."""
        offset = (self.rcv_nxt - tcp.seq) & U32
        if offset:
            self.ack_due = True
        if offset >= HALF:
            return NO_PAYLOAD  # a gap: the duplicate acknowledgement asks for it
        has_fin = bool(tcp.flags & TCP_FIN)
        if offset > payload_bytes:
            return NO_PAYLOAD  # all of it is old
        length = payload_bytes - offset
        room = (self.rcv_adv - self.rcv_nxt) & U32
        if self.state not in CAN_RECEIVE or self._waiting_fin:
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
        self.rcv_nxt = rcv_nxt = (self.rcv_nxt + length) & U32
        self._unacked_bytes += length
        if self._unacked_bytes >= self.mss or self._waiting_fin:
            self.ack_due = True
        elif not self._is_ack_delayed:
            self._delay_ack()
        if held_bytes or self.held_bytes or (self.rcv_adv - rcv_nxt) & U32 < WINDOW_ENOUGH_BYTES:
            self.held(held_bytes)

    def _delay_ack(self) -> None:
        is_interactive = self._replies >= INTERACTIVE_REPLIES
        when_ns = self.last_ns + (INTERACTIVE_ACK_NS if is_interactive else DELAYED_ACK_NS)
        self._is_ack_delayed = True
        if self.deadline_ns is None or self.deadline_ns > when_ns:
            self.deadline_ns = when_ns

    def held(self, held_bytes: int) -> None:
        """The owner has passed data on, and holds so much now."""
        held_before, self.held_bytes = self.held_bytes, held_bytes
        promised = (self.rcv_adv - self.rcv_nxt) & U32
        if promised >= WINDOW_ENOUGH_BYTES:
            return
        space = self._receive_bytes - held_bytes
        was_small = self._receive_bytes - held_before < 2 * self.mss
        # Half of what is there, or a window that was shut: RFC 9293 §3.8.6.2.2.
        is_news = space - promised >= self._receive_bytes // 2
        if is_news or (was_small and space >= 2 * self.mss):
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
        self.guest_has_ended = True
        self._step(Event.GUEST_FIN)
        if self.state is not CLOSE_WAIT:
            self.ack_due = True
        elif not self._is_ack_delayed:
            self._delay_ack()  # the host's FIN, which acknowledges it, is often next
        return True
