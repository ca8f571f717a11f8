"""The vsock backend on Unix sockets: works everywhere, needs no privilege.

host program ─► PATH        writes "CONNECT <guest port>\\n"; reads "OK <host port>\\n" once the
                            guest has accepted, or the end if it has not
guest, to port P of CID 2 ─► PATH_P        a socket that a host program listens on
"""

from __future__ import annotations

import errno
import re
import select
import socket
import time
from collections.abc import Callable, Sequence

from voidbox.loop_api import Loop, TimerHandle
from voidbox.named_tuple import NamedTuple
from voidbox.vsock.dial import connect_unix
from voidbox.vsock.link import MuxerStatistics, RxBuffers
from voidbox.vsock.muxer import Muxer
from voidbox.vsock.packet import VMADDR_PORT_ANY
from voidbox.vsock.unix_listener import HandedListener, UnixListener
from voidbox.vsock.unix_stream import UnixStream

CONNECT_LINE = re.compile(rb"CONNECT ([0-9]{1,10})\r?\n", re.IGNORECASE)
CONNECT_LINE_BYTES_MAX = 32
CONNECT_LINE_TIMEOUT_NS = 2_000_000_000
# Programs that connected and have not said where to. While there are so many, others wait in the
# listener's backlog.
GREETERS_MAX = 128
ACCEPTS_PER_PASS = 64
# How long to leave the listener alone after accept() ran out of descriptors: it stays ready, and a
# level-triggered loop would spin on it.
ACCEPT_PAUSE_S = 0.1

_IN, _GONE = select.EPOLLIN, select.EPOLLHUP | select.EPOLLERR


class UnixStatistics(NamedTuple):
    """The muxer's counters, and the listener's."""

    muxer: MuxerStatistics
    greeters: int
    bad_greetings: int
    accept_pauses: int


class _Greeter:
    """A program that connected to PATH and is to say which port it wants."""

    __slots__ = ("deadline_ns", "line", "socket")

    def __init__(self, sock: socket.socket, deadline_ns: int) -> None:
        self.socket = sock
        self.line = b""
        self.deadline_ns = deadline_ns


class UnixBackend:
    """The host's side of one guest's vsock. Thread: loop.

    Args:
        path: the socket to listen on; None for none, or none before publish(): then only adopt()
            makes connections, and the guest's own are refused.
        guest_cid: the guest's address.
        loop: reports on the sockets.
        next_port: see Muxer.
        dial: connects to the socket that listens for a port of the host, or raises OSError; this
            process by default. It must not block.
    Raises:
        ConfigError: the path cannot be used.
        HostError: the socket could not be made.

    Attributes:
        on_pending: set by the device: serve the guest's RX queue, for has_pending_rx() is true.
        has_pending_rx, send_data, recv_data: the muxer's.
    """

    def __init__(
        self,
        path: str | None,
        guest_cid: int,
        loop: Loop,
        next_port: int = 0,
        dial: Callable[[int], socket.socket] | None = None,
    ) -> None:
        self.path = path
        self._dial = dial or self._dial_here
        self.on_pending: Callable[[], None] = lambda: None
        self._loop = loop
        self._muxer = Muxer(guest_cid, self._connect, next_port)
        self.has_pending_rx = self._muxer.has_pending_rx
        self.send_data, self.recv_data = self._muxer.send_data, self._muxer.recv_data
        self._greeters: dict[int, _Greeter] = {}  # by descriptor, in order of deadline
        self._bad_greetings = self._accept_pauses = 0
        self._timer: TimerHandle | None = None
        self._resume_timer: TimerHandle | None = None
        self._accepting = False
        self._closed = False
        self._listener: UnixListener | HandedListener | None = None
        if path is not None:
            self._listener = UnixListener(path)
        self._resume_accepting()

    def publish(self, listener: UnixListener | HandedListener) -> None:
        """Listen on a socket, where there was none until now; it is this object's. Thread: loop.

        From now on the guest reaches the host's programs, too.
        """
        assert self._listener is None
        if self._closed:
            listener.close()
            return
        self._listener = listener
        if isinstance(listener, UnixListener):
            self.path = listener.path
        self._resume_accepting()

    # The device's three methods, and reset.

    def send_pkt(self, buffers: Sequence[memoryview]) -> None:
        """Take one packet of the guest."""
        self._muxer.send_pkt(buffers, time.monotonic_ns())
        if self._muxer.has_new_deadline and self._timer is None:
            self._start_timer()

    def recv_pkt(self, rx: RxBuffers) -> int:
        """Fill RX buffers with what is next; returns the number of packets."""
        count = self._muxer.recv_pkt(rx, time.monotonic_ns())
        if self._muxer.has_new_deadline and self._timer is None:
            self._start_timer()
        return count

    @property
    def next_port(self) -> int:
        """For a snapshot; see Muxer."""
        return self._muxer.next_port

    def reset(self) -> None:
        """End every connection; the listener stays."""
        self._muxer.reset()

    # Connections that the guest opens.

    def _connect(self, port: int) -> UnixStream | None:
        if self._listener is None:
            return None
        try:
            return UnixStream(self._dial(port), self._loop, self._stream_ready)
        except OSError:
            # Nobody listens, the backlog is full (EAGAIN; a Unix socket cannot wait for it without
            # blocking), or we are out of descriptors: in each case the guest is refused.
            return None

    def _dial_here(self, port: int) -> socket.socket:
        return connect_unix(f"{self.path}_{port}")

    # Connections that host programs open.

    def _resume_accepting(self) -> None:
        self._resume_timer = None
        if self._listener is not None and not self._accepting and not self._closed:
            self._accepting = True
            listener = self._listener.socket
            self._loop.watch(listener.fileno(), select.EPOLLIN, lambda _: self._accept(listener))

    def _pause_accepting(self) -> None:
        if self._listener is not None and self._accepting:
            self._accepting = False
            self._loop.unwatch(self._listener.socket.fileno())

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_PASS):
            if len(self._greeters) >= GREETERS_MAX:
                self._pause_accepting()  # until one of them is done
                return
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.ECONNABORTED, errno.EINTR):
                    continue
                self._accept_pauses += 1
                self._pause_accepting()
                self._resume_timer = self._loop.call_later(ACCEPT_PAUSE_S, self._resume_accepting)
                return
            self._greet(sock)

    def _greet(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        fd = sock.fileno()
        self._greeters[fd] = _Greeter(sock, time.monotonic_ns() + CONNECT_LINE_TIMEOUT_NS)
        # Most programs wrote their line by now; one that did not is waited for.
        self._greeting_ready(fd)
        if fd in self._greeters:
            self._loop.watch(fd, select.EPOLLIN, lambda _events: self._greeting_ready(fd))
            if self._timer is None:
                self._start_timer()

    def _greeting_ready(self, fd: int) -> None:
        greeter = self._greeters.get(fd)
        if greeter is None:
            return
        try:
            ended = self._read_line(greeter)
        except BlockingIOError:
            return
        except OSError:
            ended = True
        line = greeter.line
        if line.endswith(b"\n"):
            self._open(greeter)
        elif ended or len(line) >= CONNECT_LINE_BYTES_MAX:
            self._end_greeting(greeter, refused=True)

    @staticmethod
    def _read_line(greeter: _Greeter) -> bool:
        """Read up to the end of the line and not beyond it: what follows is the guest's."""
        sock = greeter.socket
        seen = sock.recv(CONNECT_LINE_BYTES_MAX - len(greeter.line), socket.MSG_PEEK)
        line, newline, _ = seen.partition(b"\n")
        greeter.line += sock.recv(len(line + newline)) if seen else b""
        return not seen

    def _open(self, greeter: _Greeter) -> None:
        match = CONNECT_LINE.fullmatch(greeter.line)
        port = int(match[1]) if match else VMADDR_PORT_ANY
        if port >= VMADDR_PORT_ANY:
            self._end_greeting(greeter, refused=True)
            return
        self._end_greeting(greeter)
        self.adopt(greeter.socket, port)

    def adopt(self, sock: socket.socket, port: int) -> None:
        """Connect a program's socket to a port of the guest, as if it had sent CONNECT.

        It reads "OK <host port>\\n" once the guest has accepted, or the end if it has not.
        """
        sock.setblocking(False)
        stream = UnixStream(sock, self._loop, self._stream_ready)
        if self._muxer.open(stream, port, time.monotonic_ns()) is None:
            stream.close()
            return
        if self._timer is None:
            self._start_timer()
        self.on_pending()

    def _end_greeting(self, greeter: _Greeter, *, refused: bool = False) -> None:
        fd = greeter.socket.fileno()
        del self._greeters[fd]
        self._loop.unwatch(fd)
        if refused:
            self._bad_greetings += 1
            greeter.socket.close()
        if not self._accepting and self._resume_timer is None:
            self._resume_accepting()

    # Connected sockets.

    def _stream_ready(self, stream: UnixStream, events: int) -> None:
        link = stream.link
        if link is None:
            return
        if events == _IN and self._muxer.host_has_data(link):
            self.on_pending()
            if link.readable:
                self._muxer.update_watch(link)
            return
        gone = bool(events & _GONE)
        if gone:
            stream.has_hung_up = True
        self._muxer.host_ready(
            link,
            readable=bool(events & _IN),
            writable=gone or bool(events & select.EPOLLOUT),
            hung_up=gone,
            now_ns=time.monotonic_ns(),
        )
        if self._muxer.has_pending_rx():
            self.on_pending()
        if link.readable or events != _IN:
            self._muxer.update_watch(link)
        if self._timer is None:
            self._start_timer()

    # Time-outs: one timer, for the earliest of them.

    def _start_timer(self) -> None:
        self._muxer.has_new_deadline = False
        deadline_ns = self._muxer.next_deadline_ns()
        greeter = next(iter(self._greeters.values()), None)
        if greeter is not None and (deadline_ns is None or greeter.deadline_ns < deadline_ns):
            deadline_ns = greeter.deadline_ns
        if deadline_ns is not None and not self._closed:
            delay_s = max(0, deadline_ns - time.monotonic_ns()) / 1e9
            self._timer = self._loop.call_later(delay_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now_ns = time.monotonic_ns()
        self._muxer.expire(now_ns)
        for greeter in list(self._greeters.values()):
            if greeter.deadline_ns > now_ns:
                break
            self._end_greeting(greeter, refused=True)
        if self._muxer.has_pending_rx():
            self.on_pending()
        self._start_timer()

    # Life.

    def statistics(self) -> UnixStatistics:
        """Return the counters."""
        return UnixStatistics(
            muxer=self._muxer.statistics(),
            greeters=len(self._greeters),
            bad_greetings=self._bad_greetings,
            accept_pauses=self._accept_pauses,
        )

    def close(self) -> None:
        """End every connection, stop listening, remove the socket. Idempotent.

        Thread: loop, or any once the loop is stopped.
        """
        if self._closed:
            return
        self._closed = True
        for timer in (self._timer, self._resume_timer):
            if timer is not None:
                timer.cancel()
        self._pause_accepting()
        for greeter in list(self._greeters.values()):
            self._end_greeting(greeter, refused=True)
        self._muxer.reset()
        if self._listener is not None:
            self._listener.close()
