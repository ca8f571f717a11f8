"""The thread that moves bytes between a connection and the protocol's core."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from voidbox.agent import protocol
from voidbox.agent.call import Call
from voidbox.agent.core import ClientCore, Failure, Pong, Result, Writable
from voidbox.agent.protocol import ProtocolError
from voidbox.agent.serial_link import CLOSED, OPEN, SerialLink
from voidbox.errors import AgentError, ConfigError, SandboxTimeout
from voidbox.event_loop import EventLoop
from voidbox.loop_api import TimerHandle
from voidbox.named_tuple import NamedTuple

_IO_BYTES = 256 << 10
# Those that may last for ever leave room for others: who has them all must be able to end some.
_LASTING = frozenset((protocol.EXEC, protocol.ATTACH, protocol.FILE_WATCH, protocol.DIAL))
_LASTING_MAX = protocol.REQUESTS_MAX - 64


class _Ping:
    """A PING on its way.

    Attributes:
        done: it was answered, or the connection is lost.
    """

    def __init__(self) -> None:
        self.done = threading.Event()
        self.pong: Pong | None = None


class _Waiting(NamedTuple):
    """A request that waits for its place."""

    call: Call
    type: int
    values: dict[str, Any]


class Link:
    """One connection to the agent. Thread: whoever holds `_lock`, where nothing else is said.

    What arrives is the loop's to read. What is to be sent goes out on the thread that wants it
    sent, unless another is at it: a hand-over to the loop's costs more than the sending.

    Once it is lost, its thread and its descriptors are gone, though nobody has closed it.

    Args:
        sock: connected to the agent; the link owns it.
        serial: what makes a stream of it, where it is a serial line.
        explain: called on the thread of a caller whose request ends because the connection is
            lost, with the reason: returns the error to raise.
        is_daemon: the thread does not keep the process from its end; whoever asks for this closes
            the link then.
    """

    def __init__(
        self,
        sock: socket.socket,
        serial: SerialLink | None = None,
        explain: Callable[[str], AgentError] = AgentError,
        is_daemon: bool = False,
    ) -> None:
        self._socket = sock
        self._serial = serial
        self._explain = explain
        self._core = ClientCore()
        self._calls: dict[int, Call] = {}
        # For one of protocol.REQUESTS_MAX places: those of _LASTING, and the others.
        self._waiting: dict[bool, deque[_Waiting]] = {False: deque(), True: deque()}
        self._inputs: dict[int, None] = {}  # calls that may have something to send, in turn
        self._chunk_bytes = protocol.SERIAL_CHUNK_BYTES if serial else protocol.CHUNK_BYTES
        self._outgoing_bytes_max = (
            protocol.SERIAL_OUTGOING_BYTES_MAX if serial else protocol.OUTGOING_BYTES_MAX
        )
        self._unwritten = b""
        self._timer: TimerHandle | None = None
        self._lost: str | None = None  # why
        self._is_broken = False  # and about to be lost
        self._lost_error: AgentError | None = None
        self._explain_lock = threading.Lock()  # covers _lost_error
        self._lock = threading.Lock()  # never waited for but by the loop
        self._work: deque[Callable[[], None]] = deque()  # for the loop, in order
        self._events = 0  # that the loop watches for
        self._pings: deque[_Ping] = deque()  # in the order in which they will be answered
        self._is_closed = False
        self._capabilities: frozenset[str] = frozenset()
        self._loop = EventLoop(on_error=self._on_fault, is_daemon=is_daemon)
        sock.setblocking(False)
        self._loop.start()
        self._give_to_loop(self._begin)

    @property
    def is_serial(self) -> bool:
        """Whether this is the slow way. Thread: any."""
        return self._serial is not None

    @property
    def is_lost(self) -> bool:
        """Whether nothing will ever flow again. Thread: any."""
        return self._lost is not None or self._is_closed

    @property
    def capabilities(self) -> frozenset[str]:
        """Names of what the agent can do; none before the handshake. Thread: any."""
        return self._capabilities

    @property
    def is_open(self) -> bool:
        """Whether bytes can flow; on a serial line once the agent has answered. Thread: any."""
        return self._lost is None and (self._serial is None or self._serial.state == OPEN)

    def handshake(self, secret: bytes, timeout_s: float) -> Pong:
        """Show the secret; return what the agent says of itself. Thread: any but the loop.

        Raises:
            AgentError: the agent wants another secret, or the connection is lost.
            SandboxTimeout: no answer within `timeout_s` seconds.
        """
        ping = _Ping()
        self._do(partial(self._ping, secret, ping))
        if self._is_closed:  # else whoever closes us ends the wait too
            raise AgentError("the connection to the guest's agent is closed")
        if self._lost is not None:  # else the loop still sees to it
            ping.done.set()
        if not ping.done.wait(timeout_s):
            raise SandboxTimeout(f"the guest's agent did not answer within {timeout_s:g} s")
        if ping.pong is None:
            raise self._error()
        if not ping.pong.is_authenticated:
            raise AgentError("the guest's agent does not accept our secret: is it another guest?")
        self._capabilities = frozenset(ping.pong.capabilities)
        return ping.pong

    def call(self, type: int, values: dict[str, Any], what: str) -> Call:
        """Begin a request, once there is a place for it. Thread: any."""
        call = Call(what, self._do)
        self._do(partial(self._start_call, call, type, values))
        if self._is_closed:  # else whoever closes us ends the call too
            call.fail(partial(AgentError, f"{what}: the connection to the guest's agent is closed"))
        elif self._lost is not None:  # else the loop still sees to it
            call.fail(self._error)
        return call

    def hang_up(self) -> None:
        """Break the connection; the loop notices. Never waits. Thread: any, a collector's too."""
        with contextlib.suppress(OSError):  # it is broken already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection and all calls. Idempotent. Thread: any but the loop."""
        if not self._is_closed:
            self._is_closed = True
            self._give_to_loop(partial(self._lose, "it was closed here"))
            self._loop.close()
            self._socket.close()

    def _do(self, work: Callable[[], None]) -> None:
        """Do it now, if nobody is at anything, else have the loop do it. Thread: any."""
        # A serial line has timers, which are the loop's. What waits for the loop comes first.
        if self._serial is None and not self._work and self._lock.acquire(blocking=False):
            try:
                if not self._work:
                    work()
                    return
            finally:
                self._lock.release()
        self._give_to_loop(work)

    def _give_to_loop(self, work: Callable[[], None]) -> None:
        """Thread: any."""
        self._work.append(work)
        self._loop.call_soon(self._work_off)

    def _work_off(self) -> None:
        """Thread: loop."""
        with self._lock:
            while self._work:  # all of it: it is waited for by nobody, and never much
                self._work.popleft()()

    # Under the lock.

    def _begin(self) -> None:
        self._watch()
        self._pump()

    def _ping(self, secret: bytes, ping: _Ping) -> None:
        if self._lost is not None:
            ping.done.set()
            return
        self._pings.append(ping)
        self._core.ping(secret)
        self._pump()

    def _start_call(self, call: Call, type: int, values: dict[str, Any]) -> None:
        if self._lost is not None:
            call.fail(self._error)
        elif not self._has_place(type):
            waiting = _Waiting(call, type, values)
            self._waiting[type in _LASTING].append(waiting)
            call.is_waiting = True
            call.on_cancel = partial(self._on_cancel_waiting, waiting)
        else:
            self._begin_call(call, type, values)

    def _has_place(self, type: int) -> bool:
        places = _LASTING_MAX if type in _LASTING else protocol.REQUESTS_MAX
        return len(self._calls) < places

    def _on_cancel_waiting(self, waiting: _Waiting) -> None:
        with contextlib.suppress(ValueError):  # it has just been given its place
            self._waiting[waiting.type in _LASTING].remove(waiting)
            message = f"{waiting.call.what}: it was cancelled before it began"
            waiting.call.deliver(Failure(0, protocol.CANCELLED, message))

    def _begin_waiting(self) -> None:
        """Begin those that have a place now."""
        for queue in self._waiting.values():
            while queue and self._has_place(queue[0].type):
                waiting = queue.popleft()
                waiting.call.is_waiting = False
                self._begin_call(*waiting)

    def _begin_call(self, call: Call, type: int, values: dict[str, Any]) -> None:
        try:
            number = self._core.begin(type, values)
        except (RuntimeError, ValueError, TypeError, OverflowError) as error:
            call.fail(partial(ConfigError, f"{call.what}: {error}"))
            return
        self._calls[number] = call
        call.on_consumed = partial(self._on_consumed, number)
        call.on_input = partial(self._send_input, number)
        call.on_cancel = partial(self._on_cancel, number)
        self._send_input(number)  # what was written before it had a number

    def _on_consumed(self, number: int, cost: int) -> None:
        self._core.consumed(number, cost)
        self._pump()

    def _on_cancel(self, number: int) -> None:
        self._core.cancel(number)
        self._pump()

    def _send_input(self, number: int) -> None:
        self._inputs[number] = None
        self._pump()

    def _move_inputs(self) -> bool:
        """Hand the calls' data to the core, a chunk each in turn; False if nothing could move.

        Only while little waits for the connection: a long transfer must not hold up a short call.
        """
        has_moved = False
        for number in list(self._inputs):
            if self._core.outgoing_bytes >= self._outgoing_bytes_max:
                break
            del self._inputs[number]
            call = self._calls.get(number)
            if call is not None:
                has_moved |= self._move_input(number, call)
        return has_moved

    def _move_input(self, number: int, call: Call) -> bool:
        data = call.take_input(self._chunk_bytes)
        if not data:
            end = call.take_input_end()
            if end is not None:
                self._core.end_data(number, end)
            return end is not None
        sent = self._core.send_data(number, data)
        if sent < len(data):
            call.give_back(data[sent:])  # Writable comes when there is room again
        else:
            self._inputs[number] = None  # to the end of the queue
        return sent > 0

    def _on_ready(self, ready: int) -> None:
        """Thread: loop."""
        with self._lock:
            self._serve(ready)

    def _serve(self, ready: int) -> None:
        if ready & ~select.EPOLLOUT:
            try:
                data = self._socket.recv(_IO_BYTES)
            except BlockingIOError:
                data = None
            except OSError as error:
                self._lose(error.strerror or "it broke")
                return
            if data == b"":
                self._lose("the guest's end closed it")
                return
            if data:
                self._receive(data)
        self._pump()

    def _receive(self, data: bytes) -> None:
        if self._serial is not None:
            self._serial.feed(data, time.monotonic_ns())
            data = self._serial.receive()
        try:
            for event in self._core.feed(data):
                if isinstance(event, Pong):
                    ping = self._pings.popleft()
                    ping.pong = event
                    ping.done.set()
                elif isinstance(event, Writable):
                    self._send_input(event.request)
                elif isinstance(event, Result | Failure):
                    self._calls.pop(event.request).deliver(event)
                    self._begin_waiting()
                else:
                    self._calls[event.request].deliver(event)
        except ProtocolError as error:
            self._lose(f"the agent broke the protocol: {error}")

    def _pump(self) -> None:
        """Write what is due, and come back when the connection or the clock asks for it."""
        if self._lost is not None or self._is_broken:
            return
        try:
            while (self._fill() and self._flush()) or (not self._unwritten and self._move_inputs()):
                pass
        except OSError as error:
            # What is to be closed now is the loop's.
            self._is_broken = True
            self._give_to_loop(partial(self._lose, error.strerror or "it broke"))
            return
        self._watch()
        self._set_timer()
        if self._serial is not None and self._serial.state == CLOSED:
            self._lose("the serial line's other end gave up")

    def _fill(self) -> bool:
        """Have something to write; False if there is nothing."""
        if self._unwritten:
            return True
        if self._serial is None:
            self._unwritten = self._core.take_outgoing(_IO_BYTES)
        else:
            while self._serial.room and (data := self._core.take_outgoing(self._serial.room)):
                self._serial.send(data)
            self._unwritten = self._serial.to_write(time.monotonic_ns())
        return bool(self._unwritten)

    def _flush(self) -> bool:
        """Write; False if the connection takes no more now."""
        try:
            sent = self._socket.send(self._unwritten)
        except BlockingIOError:
            sent = 0
        self._unwritten = self._unwritten[sent:]
        return not self._unwritten

    def _watch(self) -> None:
        events = select.EPOLLIN | (select.EPOLLOUT if self._unwritten else 0)
        if events != self._events:
            self._events = events
            self._loop.watch(self._socket.fileno(), events, self._on_ready)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline_ns = self._serial.deadline_ns if self._serial is not None else None
        if deadline_ns is not None:
            delay_s = max(0, deadline_ns - time.monotonic_ns()) / 1e9
            self._timer = self._loop.call_later(delay_s, self._on_time)

    def _on_time(self) -> None:
        """Thread: loop."""
        with self._lock:
            self._pump()

    def _lose(self, reason: str) -> None:
        """End every call, and every ping. Thread: loop."""
        if self._lost is not None:
            return
        self._lost = reason
        if self._timer is not None:
            self._timer.cancel()
        if self._serial is not None and self._serial.state != CLOSED:
            self._say_goodbye(self._serial)
        self._loop.unwatch(self._socket.fileno())
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.fail(self._error)
        for queue in self._waiting.values():
            while queue:
                queue.popleft().call.fail(self._error)
        while self._pings:
            self._pings.popleft().done.set()
        self._socket.close()
        self._loop.end()

    def _say_goodbye(self, serial: SerialLink) -> None:
        serial.close()
        with contextlib.suppress(OSError):  # the line may be gone with the guest
            self._socket.send(self._unwritten + serial.to_write(time.monotonic_ns()))

    def _error(self) -> AgentError:
        """Return why the connection is lost. Thread: a caller's; it may wait for the VM's end."""
        with self._explain_lock:
            if self._lost_error is None:
                self._lost_error = self._explain(
                    f"the connection to the guest's agent is lost: {self._lost}"
                )
            return self._lost_error

    def _on_fault(self, error: BaseException) -> None:
        with self._lock:
            self._lose(f"voidbox failed: {error!r}")
