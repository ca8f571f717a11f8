"""A TCP connection of the guest and its socket on the host, joined.

    guest's frame ─► Connection (what is new?) ─► socket; what that does not take waits in `held`
    socket ─► the guest's own buffers ─► a copy in `kept` until the guest has acknowledged it

Data is read only when the guest's window and its buffers have room: otherwise it stays in the
host's kernel, whose own window then closes, and the far sender waits. So memory is bounded by the
two windows, whatever either side does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from voidbox.buffers import clip, skip, write_bytes
from voidbox.net.host import RESET, Stream
from voidbox.net.line import Line, RxFrames
from voidbox.net.sharing import STREAM_BYTES_MIN
from voidbox.net.tcp import MSS, WSCALE, Connection
from voidbox.net.tcp_kept import Kept
from voidbox.net.tcp_outgoing import U32
from voidbox.net.tcp_wire import (
    HEADER_BYTES,
    TCP_BYTES,
    TCP_CHECKSUM_AT,
    TCP_SYN,
    Headers,
    Tcp,
    syn_options,
)
from voidbox.net.wire import IP_BYTES, TRANSPORT_AT, residue

GSO_BYTES_MAX = 65535 - IP_BYTES - TCP_BYTES  # of payload: an IPv4 packet has no more
# What is asked of a socket at first; then twice as much each time that there is more, and half as
# much when there is less. A segment's worth is in one buffer of the guest's, as most replies are.
BATCH_BYTES, BATCH_BYTES_MIN = 4 * MSS, MSS
_READABLE, _WRITABLE = 1, 2
_HELD_CHUNK_BYTES = 65536

TimerEntry = list[Any]  # [when, order, flow or None]: see TcpTable._watch_time


class TcpFlow:
    """One flow: the StreamOwner of its stream. Thread: loop.

    Args:
        key: the connection's ends (tcp_wire.ENDS).
        remote: the address and port that the guest believes to talk to.
        guest_port: the guest's.
        on_change: called when something happened that was not the guest's doing.

    Attributes:
        readable: the stream has data or its end, as far as we know.
        is_queued: it is in the queue of those with something for the guest.
        error: the errno of a connect() that failed, or 0.
        quote: the start of the guest's SYN, for an ICMP error about it.
        timer: the stack's.
    """

    __slots__ = (
        "_batch_bytes",
        "_headers",
        "_held",
        "_is_broken",
        "_kept",
        "_kept_seq",
        "_line",
        "_on_change",
        "_watched",
        "connection",
        "error",
        "guest_port",
        "is_queued",
        "key",
        "quote",
        "readable",
        "remote",
        "stream",
        "timer",
    )

    def __init__(
        self,
        line: Line,
        connection: Connection,
        key: bytes,
        remote: tuple[int, int],
        guest_port: int,
        on_change: Callable[[TcpFlow], None],
    ) -> None:
        self.connection = connection
        self.key = key
        self.remote = remote
        self.guest_port = guest_port
        self.stream: Stream | None = None
        self.readable = False
        self.is_queued = False
        self.error = 0
        self.quote = b""
        self.timer: TimerEntry | None = None
        self._headers = Headers(line.link, remote, (line.guest_ip, guest_port))
        self._line = line
        self._on_change = on_change
        self._held: deque[bytearray] = deque()
        self._kept = Kept()
        self._kept_seq = (connection.iss + 1) & U32  # of the first byte in _kept
        self._batch_bytes = BATCH_BYTES
        self._watched = 0  # what the stream was asked for last, of _READABLE and _WRITABLE
        self._is_broken = False  # the host's end takes nothing more; see _break_off

    # From the host.

    def connected(self, error: int) -> None:
        """See StreamOwner."""
        if error:
            self.error = error
        else:
            self.connection.host_connected()
        self._on_change(self)

    def ready(self, readable: bool, writable: bool) -> None:
        """See StreamOwner."""
        line = self._line
        if not (writable or line.is_stalled or line.sharing.is_active) and self.is_at_rest:
            self.readable = True  # as nearly always nothing else follows from it
            line.enqueue(self)
            return
        self.readable |= readable
        if writable and self._held:
            self._flush()
        if readable and self.connection.host_has_ended and self.stream and self.stream.is_broken():
            self.connection.abort()
        self._on_change(self)

    def _flush(self) -> None:
        held, stream = self._held, self.stream
        while held and stream is not None:
            sent = stream.send(list(held))
            if sent is None:
                self._break_off()
                return
            if not sent:
                break
            while held and sent >= len(held[0]):
                sent -= len(held.popleft())
            if sent:
                del held[0][:sent]
        self.connection.held(sum(map(len, held)))
        self._pass_fin_on()

    def _break_off(self) -> None:
        """The host's end was broken off, but what came before that may still be in the socket.

        Servers do so to a request that is too long: they answer, and close. The guest gets what it
        has room for, and then RST; what it sends meanwhile nobody wants.
        """
        self._held.clear()
        self.connection.held_bytes = 0
        if self.connection.sends_data:
            self._is_broken = self.readable = True
        else:
            self.connection.abort()

    def _pass_fin_on(self) -> None:
        if self.connection.take_fin() and self.stream is not None:
            self.stream.shutdown_write()

    def on_time(self, now_ns: int) -> None:
        """The connection's deadline has come."""
        if self.stream is not None and self.connection.is_quiet(now_ns):
            self.stream.keep_alive()
        self.connection.on_time(now_ns, self.waits_for_window)

    def update_watch(self) -> None:
        """Ask the stream for what is of interest now."""
        wants = _READABLE if not self.readable and self.connection.sends_data else 0
        if self._held:
            wants |= _WRITABLE
        if wants != self._watched and self.stream is not None:
            self._watched = wants
            self.stream.watch(bool(wants & _READABLE), bool(wants & _WRITABLE))

    @property
    def is_at_rest(self) -> bool:
        """Whether it is open, waits for either side, and its socket is watched for that alone."""
        return (
            self._watched == _READABLE
            and not self.readable
            and not self._held
            and self.connection.is_at_rest
        )

    # From the guest.

    def receive(
        self, tcp: Tcp, frame: list[memoryview], at: int, payload_bytes: int, now_ns: int
    ) -> None:
        """Take a segment whose payload begins `at` bytes into the frame."""
        connection = self.connection
        new = connection.receive(tcp, payload_bytes, now_ns)
        if self._kept.size:
            self._forget_acknowledged()
        if new.length:
            self._to_host(frame, at + new.offset, new.length)
        self._pass_fin_on()

    def receive_expected(
        self, seq: int, ack: int, window: int, frame: list[memoryview], at: int,
        payload_bytes: int, now_ns: int,
    ) -> bool:  # fmt: skip
        """Take a segment if it is the one that is expected next; False: see receive()."""
        connection = self.connection
        if not connection.receive_expected(seq, ack, window, payload_bytes, now_ns):
            return False
        kept = self._kept
        if kept.size:
            snd_una = connection.snd_una
            if snd_una == connection.snd_max:
                kept.clear()
                self._kept_seq = snd_una
            else:
                self._forget_acknowledged()
        if payload_bytes:
            self._to_host(frame, at, payload_bytes)
        return True

    def _forget_acknowledged(self) -> None:
        acknowledged = (self.connection.snd_una - self._kept_seq) & U32
        if 0 < acknowledged <= self._kept.size + 1:  # one more for our FIN
            acknowledged = min(acknowledged, self._kept.size)
            self._kept.drop(acknowledged)
            self._kept_seq = (self._kept_seq + acknowledged) & U32

    def _to_host(self, frame: list[memoryview], start: int, length: int) -> None:
        """Hand the guest's data on; keep what is not taken at once."""
        connection, stream = self.connection, self.stream
        if len(frame) == 1:
            payload = [frame[0][start : start + length]]
        else:
            payload = clip(skip(frame, start), length)
        if length >= STREAM_BYTES_MIN:
            self._line.sharing.took(length, connection.last_ns)
        sent: int | None = 0
        if not self._held and stream is not None:
            sent = stream.send(payload)
            if sent == length:  # as nearly always
                connection.accepted(length, 0)
                return
        if sent is None:
            self._break_off()
            sent = length
        for part in skip(payload, sent) if sent else payload:
            self._hold(part)
        connection.accepted(length, connection.held_bytes + length - sent)

    def _hold(self, part: memoryview) -> None:
        held = self._held
        if held and len(held[-1]) + len(part) <= _HELD_CHUNK_BYTES:
            held[-1] += part
        else:
            held.append(bytearray(part))

    # To the guest.

    @property
    def has_pending(self) -> bool:
        """Whether transmit() may have something."""
        connection = self.connection
        if connection.has_control():
            return True
        if connection.snd_nxt != connection.snd_max and connection.again_bytes():
            return True
        return self.readable and connection.sends_data and (self._room() > 0 or self._is_broken)

    def _room(self) -> int:
        sharing = self._line.sharing
        return self.connection.room(sharing.flight_bytes_max if sharing.is_active else U32)

    @property
    def holds_data(self) -> bool:
        """Whether some of the guest's data waits for the host's socket."""
        return bool(self._held)

    @property
    def waits_for_window(self) -> bool:
        """Whether there is data that the guest's window has no room for."""
        connection = self.connection
        has_data = connection.has_rewound or (self.readable and connection.sends_data)
        return has_data and self._room() == 0

    def transmit(self, rx: RxFrames, now_ns: int) -> bool:
        """Send the next frame, if there is one; False if the guest has no buffer for it."""
        connection = self.connection
        if connection.snd_nxt != connection.snd_max:
            size = min(connection.again_bytes(), self._segment_bytes_max)
            if size:
                return self._send_again(rx, size, now_ns)
        if self.readable and connection.sends_data and not connection.syn_due:
            room = self._room()
            if room:
                done = self._send_new(rx, room, now_ns)
                if done is not None:
                    return done
            elif self._is_broken:
                connection.abort()
        if not connection.has_control():
            return True
        return self._send_control(rx, now_ns)

    def _send_control(self, rx: RxFrames, now_ns: int) -> bool:
        """Send a segment without data."""
        connection, line = self.connection, self._line
        buffers = rx.reserve(HEADER_BYTES + TCP_BYTES)
        if buffers is None:
            return False
        control = connection.next_control(now_ns)
        if control is None:
            rx.cancel()
            return True
        seq, flags = control
        is_syn = bool(flags & TCP_SYN)
        options = b""
        if is_syn:
            options = syn_options(MSS, WSCALE if connection.offers_wscale else None)
        header = self._headers.pack(
            seq, connection.rcv_nxt, flags, connection.window(is_syn), 0,
            None if line.has_csum else 0, options,
        )  # fmt: skip
        write_bytes(buffers, header)
        rx.commit(
            len(header),
            csum_start=TRANSPORT_AT if line.has_csum else 0,
            csum_offset=TCP_CHECKSUM_AT,
        )
        line.sent(buffers, len(header))
        return True

    @property
    def _segment_bytes_max(self) -> int:
        return GSO_BYTES_MAX if self._line.has_tso else self.connection.mss

    def _send_new(self, rx: RxFrames, room: int, now_ns: int) -> bool | None:
        """Read from the host into the guest's buffers; None if there was nothing to send."""
        connection, stream, line = self.connection, self.stream, self._line
        if stream is None:
            self.readable = False
            return None
        wanted, mss = self._batch_bytes, connection.mss
        if wanted > room:
            wanted = room
        least = wanted if wanted < mss else mss
        if not line.has_tso:
            wanted = least
        buffers = rx.reserve(HEADER_BYTES + wanted, HEADER_BYTES + least)
        if buffers is None:
            return False
        if len(buffers[0]) > HEADER_BYTES:
            area = [buffers[0][HEADER_BYTES:], *buffers[1:]]
        else:
            area = skip(buffers, HEADER_BYTES)
        count = stream.recv_into(area)
        if count is None or count <= 0:
            rx.cancel()
            self.readable = False
            if count == RESET or self._is_broken:
                connection.abort()
            elif count == 0:
                connection.end_data()
            return None
        if line.sharing.is_active:
            line.sharing.gave(count)
        if count < wanted:
            # A short read left the socket empty; if not, level-triggered epoll says so.
            self.readable = self._is_broken
            if self._batch_bytes > BATCH_BYTES_MIN:
                self._batch_bytes = max(BATCH_BYTES_MIN, count, self._batch_bytes // 2)
        elif count == self._batch_bytes:
            self._batch_bytes = min(2 * count, GSO_BYTES_MAX)
        kept = bytes(area[0][:count]) if count <= len(area[0]) else b"".join(clip(area, count))
        self._kept.add(kept)
        self._send_data(rx, buffers, kept, now_ns)
        return True

    def _send_again(self, rx: RxFrames, size: int, now_ns: int) -> bool:
        connection = self.connection
        # What the guest has no more room for now comes later, as with new data.
        buffers = rx.reserve(HEADER_BYTES + size, HEADER_BYTES + min(size, connection.mss))
        if buffers is None:
            return False
        size = sum(map(len, buffers)) - HEADER_BYTES
        offset = (connection.snd_nxt - self._kept_seq) & U32
        data = self._kept.read(offset, size)
        write_bytes(skip(buffers, HEADER_BYTES), data)
        self._send_data(rx, buffers, data, now_ns)
        return True

    def _send_data(self, rx: RxFrames, buffers: list[memoryview], data: bytes, now_ns: int) -> None:
        """Write the headers before the data, which is in the buffers already."""
        connection, line, size = self.connection, self._line, len(data)
        seq = connection.send_data(size, now_ns)
        header = self._headers.pack_data(
            seq, connection.rcv_nxt, connection.window(), size,
            None if line.has_csum else residue(data),
        )  # fmt: skip
        if len(buffers[0]) >= HEADER_BYTES:
            buffers[0][:HEADER_BYTES] = header
        else:
            write_bytes(buffers, header)
        length, mss = HEADER_BYTES + size, connection.mss
        rx.commit(
            length,
            gso_size=mss if size > mss else 0,
            csum_start=TRANSPORT_AT if line.has_csum else 0,
            csum_offset=TCP_CHECKSUM_AT,
            header_bytes=HEADER_BYTES,
        )
        line.sent(buffers, length)

    # The end.

    def close(self) -> None:
        """Let go of the host's end."""
        if self.stream is not None:
            stream, self.stream = self.stream, None
            # The far end must not take what it got so far for all. But what the guest has sent up
            # to its FIN may be on its way still, in the host's kernel, however the guest ends then:
            # one that has closed forgets the connection after a minute, and says so by RST.
            stream.close(is_reset=not self.connection.guest_has_ended)
        self._held.clear()
