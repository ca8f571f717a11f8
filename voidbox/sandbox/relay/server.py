"""The relay of one sandbox: serves its guest's programs on a Unix socket.

guest's program ─► vsock, CID 2, port 5001 ─► the socket `vsock.sock_5001` ─► RelayServer
    send, broadcast ─► Courier ─► control socket of the other's owner ─► its Mailbox
    receive         ─► own Mailbox ◄─ control socket ◄─ Courier of the other

The guest is hostile. Whatever it does costs a bounded number of connections, bytes, threads and
requests a second, and none of it happens on a thread of the owner's own.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from collections.abc import Callable

from voidbox.errors import ConfigError
from voidbox.event_loop import EventLoop, TimerHandle
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.relay import protocol, requests
from voidbox.sandbox.relay.courier import PEERS_MAX, Courier, CourierError
from voidbox.sandbox.relay.mailbox import Mailbox, Message
from voidbox.sandbox.relay.protocol import ProtocolError
from voidbox.sandbox.relay.rate import Rate
from voidbox.sandbox.relay.requests import Request, RequestError
from voidbox.sandbox.relay.workers import Workers
from voidbox.vsock.unix_listener import UnixListener

HOST_NAME = "@host"  # the sender of what a host program sends: no sandbox can be called so
CONNECTIONS_MAX = 64
REQUEST_S = 10.0  # for a whole request to come, and for a reply to be taken
REQUESTS_PER_S, REQUESTS_BURST = 200, 400
WORKERS_MAX, JOBS_MAX = 4, 128

_RECV_BYTES = 16 << 10
_ACCEPTS_PER_PASS = 16  # few, so that those that left are noticed in between
_ACCEPT_PAUSE_S = 0.1  # after running out of descriptors: the listener would be ready all the time
_GONE = select.EPOLLHUP | select.EPOLLERR
_FAULTS_LOGGED_MAX = 20


def deliver_op(mailbox: Mailbox, values: dict[str, object]) -> dict[str, object]:
    """Do the control socket's `deliver {from, text}`: from another owner, or a host program.

    Raises:
        ConfigError: values that cannot be a message.
    """
    from_name, text = values.get("from", HOST_NAME), values.get("text")
    if not isinstance(from_name, str) or not isinstance(text, str):
        raise ConfigError("deliver: 'from' and 'text' must be strings")
    return {"outcome": mailbox.put(from_name, text)}


class RelayStatistics(NamedTuple):
    """Counters of one relay."""

    connections: int  # now
    accepted: int
    refused: int  # connections beyond CONNECTIONS_MAX
    cut_off: int  # for breaking the protocol, or for being slow
    requests: int


class _Connection:
    """One program of the guest.

    Attributes:
        is_busy: a request is under way or its reply is; nothing is read.
        taken: what it received and has not confirmed.
        timer: its deadline; while it waits for a message, the end of that.
    """

    __slots__ = (
        "count_max",
        "decoder",
        "is_busy",
        "is_waiting",
        "outgoing",
        "socket",
        "taken",
        "timer",
    )

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.decoder = protocol.Decoder(protocol.REQUEST_BYTES_MAX)
        self.outgoing = b""
        self.taken: list[Message] = []
        self.timer: TimerHandle | None = None
        self.is_busy = self.is_waiting = False
        self.count_max = 0


class RelayServer:
    """Thread: its own loop, but for what says otherwise.

    Args:
        path: the socket to listen on.
        mailbox: the sandbox's; the server takes its `on_put`.
        courier: called on worker threads; close() waits for calls that are under way, so that
            they should take a few seconds at most.
        log: takes a line about a fault of ours.
        rate: what limits the guest's requests.

    Raises:
        ConfigError: the path cannot be used.
        HostError: the socket or the loop could not be made.
    """

    def __init__(
        self,
        path: str,
        mailbox: Mailbox,
        courier: Courier,
        log: Callable[[str], None] = lambda line: None,
        rate: Rate | None = None,
    ) -> None:
        self._mailbox = mailbox
        self._courier = courier
        self._log = log
        self._rate = rate or Rate(REQUESTS_PER_S, REQUESTS_BURST)
        self._connections: dict[int, _Connection] = {}  # by descriptor
        self._waiting: dict[_Connection, None] = {}  # for a message, in turn
        self._accepted = self._refused = self._cut_off = self._requests = self._faults = 0
        self._is_closed = False
        self._listener = UnixListener(path)
        try:
            self._loop = EventLoop(self._on_fault)
        except BaseException:
            self._listener.close()
            raise
        self._workers = Workers(WORKERS_MAX, JOBS_MAX, self._on_fault)

    def start(self) -> None:
        """Serve. Thread: any."""
        self._mailbox.on_put = lambda: self._loop.call_soon(self._serve_waiting)
        self._loop.call_soon(self._resume_accepting)
        self._loop.start()

    def statistics(self) -> RelayStatistics:
        """Return the counters. Thread: any."""
        return RelayStatistics(
            len(self._connections), self._accepted, self._refused, self._cut_off, self._requests
        )

    def close(self) -> None:
        """End every connection, remove the socket. Idempotent. Thread: any but the loop."""
        if self._is_closed:
            return
        self._is_closed = True
        self._mailbox.on_put = lambda: None
        self._loop.stop()  # from here on this thread acts in its place
        self._loop.unwatch(self._listener.socket.fileno())
        self._listener.close()
        for connection in list(self._connections.values()):
            self._end(connection)
        self._workers.close()
        self._loop.close()

    def __enter__(self) -> RelayServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Connections.

    def _resume_accepting(self) -> None:
        self._loop.watch(
            self._listener.socket.fileno(), select.EPOLLIN, lambda events: self._accept()
        )

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_PASS):
            try:
                sock, _ = self._listener.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.ECONNABORTED, errno.EINTR):
                    continue
                self._loop.unwatch(self._listener.socket.fileno())
                self._loop.call_later(_ACCEPT_PAUSE_S, self._resume_accepting)
                return
            sock.setblocking(False)
            if len(self._connections) >= CONNECTIONS_MAX:
                self._refused += 1
                with contextlib.suppress(OSError):
                    sock.send(requests.encode_error("too many programs use the relay at once"))
                sock.close()
                continue
            self._accepted += 1
            connection = self._connections[sock.fileno()] = _Connection(sock)
            self._expect_request(connection)

    def _end(self, connection: _Connection) -> None:
        """Forget a connection; what it took and did not confirm waits again. Idempotent."""
        fd = connection.socket.fileno()
        if fd < 0:
            return
        self._set_timer(connection, None)
        self._waiting.pop(connection, None)
        del self._connections[fd]
        self._loop.unwatch(fd)
        connection.socket.close()
        taken, connection.taken = connection.taken, []
        self._mailbox.give_back(taken)
        if taken and self._waiting:
            self._loop.call_soon(self._serve_waiting)

    def _cut(self, connection: _Connection) -> None:
        self._cut_off += 1
        self._end(connection)

    def _set_timer(
        self,
        connection: _Connection,
        delay_s: float | None,
        callback: Callable[[], None] = lambda: None,
    ) -> None:
        if connection.timer is not None:
            connection.timer.cancel()
        connection.timer = None if delay_s is None else self._loop.call_later(delay_s, callback)

    def _watch(self, connection: _Connection, events: int) -> None:
        # With no events at all the end of the connection is still reported.
        self._loop.watch(
            connection.socket.fileno(), events, lambda ready: self._on_ready(connection, ready)
        )

    def _on_ready(self, connection: _Connection, events: int) -> None:
        if connection.outgoing:
            self._guard(connection, lambda: self._write(connection))
        elif not connection.is_busy:
            self._guard(connection, lambda: self._read(connection))
        elif events & _GONE:
            self._end(connection)

    def _guard(self, connection: _Connection, call: Callable[[], None]) -> None:
        try:
            call()
        except ProtocolError as error:
            with contextlib.suppress(OSError):
                connection.socket.send(requests.encode_error(str(error)))
            self._cut(connection)
        except OSError:
            self._end(connection)
        except Exception:  # left alone it would be ready, and fail, again and again
            self._end(connection)
            raise

    # Requests: one at a time on a connection.

    def _expect_request(self, connection: _Connection) -> None:
        connection.is_busy = False
        self._set_timer(connection, REQUEST_S, lambda: self._cut(connection))
        self._watch(connection, select.EPOLLIN)

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(_RECV_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._end(connection)
            return
        connection.decoder.feed(data)
        self._take_request(connection)

    def _take_request(self, connection: _Connection) -> None:
        payload = connection.decoder.next()
        if payload is None:
            return
        connection.is_busy = True
        self._requests += 1
        self._set_timer(connection, None)
        self._watch(connection, 0)
        # It has read the last reply, or would not go on.
        self._mailbox.confirm(connection.taken)
        connection.taken = []
        try:
            request = requests.parse(payload)
        except RequestError as error:
            self._refuse(connection, str(error))
            return
        delay_s = self._rate.charge(time.monotonic_ns())
        if delay_s is None:
            self._refuse(connection, "too many requests: try again later")
        elif delay_s:
            self._set_timer(connection, delay_s, lambda: self._serve(connection, request))
        else:
            self._serve(connection, request)

    def _serve(self, connection: _Connection, request: Request) -> None:
        if request.op == "receive":
            connection.count_max = request.count_max
            connection.is_waiting = True
            self._set_timer(connection, request.wait_s, lambda: self._stop_waiting(connection))
            self._waiting[connection] = None
            self._serve_waiting()
            if connection.is_waiting and not request.wait_s:
                self._stop_waiting(connection)
        elif request.op == "taken":
            self._reply(connection, requests.encode_reply({}))
        elif not self._workers.submit(lambda: self._work(connection, request)):
            self._refuse(connection, "too many messages are under way: try again later")

    def _work(self, connection: _Connection, request: Request) -> None:
        """Do what may block. Thread: a worker."""
        reply = requests.encode_error("the relay failed: see the sandbox's log")
        try:
            reply = self._ask_courier(request)
        except CourierError as error:
            reply = requests.encode_error(str(error))
        finally:
            self._loop.call_soon(lambda: self._reply(connection, reply))

    def _ask_courier(self, request: Request) -> bytes:
        if request.op == "send":
            outcome = self._courier.send(request.to, request.text)
            return requests.encode_reply({"outcome": outcome})
        if request.op == "broadcast":
            outcomes = self._courier.broadcast(request.text)
            self._loop.call_soon(lambda: self._rate.charge_more(len(outcomes)))
            return requests.encode_reply({"outcomes": outcomes})
        name, peers = self._courier.peers()
        omitted = max(0, len(peers) - PEERS_MAX)
        return requests.encode_reply({"name": name, "peers": peers[:PEERS_MAX], "omitted": omitted})

    # Messages.

    def _serve_waiting(self) -> None:
        """Hand out what there is, in the order in which programs asked."""
        while self._waiting and len(self._mailbox):
            connection = next(iter(self._waiting))
            room = protocol.REPLY_BYTES_MAX - protocol.HEADER.size - 64  # for the map around them
            connection.taken = self._mailbox.take(connection.count_max, room)
            self._stop_waiting(connection)

    def _stop_waiting(self, connection: _Connection) -> None:
        connection.is_waiting = False
        self._waiting.pop(connection, None)
        self._reply(connection, requests.encode_messages(connection.taken, len(self._mailbox)))

    # Replies.

    def _refuse(self, connection: _Connection, message: str) -> None:
        self._reply(connection, requests.encode_error(message))

    def _reply(self, connection: _Connection, reply: bytes) -> None:
        if connection.socket.fileno() < 0:
            return  # it left while it was being served
        connection.outgoing = reply
        self._set_timer(connection, REQUEST_S, lambda: self._cut(connection))
        self._watch(connection, select.EPOLLOUT)

    def _write(self, connection: _Connection) -> None:
        with contextlib.suppress(BlockingIOError):
            sent = connection.socket.send(connection.outgoing)
            connection.outgoing = connection.outgoing[sent:]
        if not connection.outgoing:
            self._expect_request(connection)
            # What it sent ahead is here already, and no event will tell of it.
            self._loop.call_soon(lambda: self._go_on(connection))

    def _go_on(self, connection: _Connection) -> None:
        if connection.socket.fileno() >= 0 and not connection.is_busy:
            self._guard(connection, lambda: self._take_request(connection))

    # Faults of ours.

    def _on_fault(self, error: BaseException) -> None:
        self._faults += 1
        if self._faults <= _FAULTS_LOGGED_MAX:  # a guest that finds one must not fill the disk
            self._log(f"relay: a fault of voidbox's own: {error!r}")
