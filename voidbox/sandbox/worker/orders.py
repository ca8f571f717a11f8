"""What a keeper tells its worker, and what comes back: one message a packet of SOCK_SEQPACKET.

→ {id, op, …}, perhaps with a descriptor
← {id, ok: true, …}  or  {id, ok: false, error, kind, errno}      each in its own time
← {id, event, …}     something on the way to the answer; without an id: the worker's own news
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from voidbox.agent.packing import PackingError, pack, unpack
from voidbox.errors import AgentError, HostError, SandboxTimeout, VoidboxError
from voidbox.sandbox.control import describe_error, make_error

MESSAGE_BYTES_MAX = 160 << 10  # less than a socket's default buffer, or it would not be taken
_CLOSING_S = 5.0

JAIL_LOG = "voidbox.jail"  # what is said of it at each start, and who does not want to hear it

Event = Callable[[dict[str, Any]], None]


def describe(error: VoidboxError) -> dict[str, object]:
    """Return an answer that raises the same error at the other end."""
    return {**describe_error(error), "errno": getattr(error, "errno", 0)}


def error_of(answer: dict[str, Any]) -> VoidboxError:
    """Return the error that an answer describes."""
    error, number = make_error(answer), answer.get("errno")
    if isinstance(error, HostError) and isinstance(number, int):
        error.errno = number
    return error


class Orders:
    """The keeper's end. Thread: any; what comes is read on a thread of its own.

    Args:
        on_event: takes the worker's own news, on that thread.
        on_lost: called on that thread, once, when there is no worker any more.
    """

    def __init__(self, sock: socket.socket, on_event: Event, on_lost: Callable[[], None]) -> None:
        self._socket = sock
        self._on_event = on_event
        self._on_lost = on_lost
        self._lock = threading.Lock()  # covers _waiting and _is_lost
        self._waiting: dict[int, _Waiting] = {}
        self._is_lost = False
        self._ids = itertools.count(1)
        self._thread = threading.Thread(target=self._read, name="voidbox-orders")
        self._thread.start()

    def ask(
        self,
        op: str,
        fd: int | None = None,
        *,
        timeout_s: float | None = None,
        on_event: Event = lambda values: None,
        **values: object,
    ) -> dict[str, Any]:
        """Have something done; return the answer.

        Args:
            fd: goes with it; the worker gets a copy.
            timeout_s: of the answer.
            on_event: takes what comes before it, on the thread of the orders.
        Raises:
            VoidboxError: what it failed with; AgentError: there is no worker.
            SandboxTimeout: no answer came in time.
        """
        waiting, id = _Waiting(on_event), next(self._ids)
        with self._lock:
            if self._is_lost:
                raise AgentError("the machine's process has ended")
            self._waiting[id] = waiting
        try:
            self.tell(op, fd, id=id, **values)
            if not waiting.is_done.wait(timeout_s):
                raise SandboxTimeout(f"the machine's process did not {op} within {timeout_s:g} s")
        finally:
            with self._lock:
                self._waiting.pop(id, None)
        answer = waiting.answer
        if answer is None:
            raise AgentError("the machine's process has ended")
        if answer.get("ok") is not True:
            raise error_of(answer)
        return answer

    def tell(self, op: str, fd: int | None = None, **values: object) -> None:
        """Send an order without waiting; a worker that is gone hears nothing."""
        message = pack({"op": op, **values})
        if len(message) > MESSAGE_BYTES_MAX:
            raise HostError(f"{op}: {len(message)} bytes are too many to tell the machine")
        try:
            if fd is None:
                self._socket.send(message)
            else:
                socket.send_fds(self._socket, [message], [fd])
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                raise HostError.from_errno(f"order {op}", error.errno or 0) from error

    def _read(self) -> None:
        while True:
            try:
                data = self._socket.recv(MESSAGE_BYTES_MAX)
            except OSError:
                data = b""
            if not data:
                break
            self._take(parse(data))
        with self._lock:
            self._is_lost = True
            waiting = list(self._waiting.values())
        for one in waiting:
            one.is_done.set()
        self._on_lost()

    def _take(self, values: dict[str, Any]) -> None:
        id = values.get("id")
        if id is None:
            self._on_event(values)
            return
        with self._lock:
            waiting = self._waiting.get(id) if isinstance(id, int) else None
        if waiting is None:
            return
        if "event" in values:
            waiting.on_event(values)
        elif waiting.answer is None:
            waiting.answer = values
            waiting.is_done.set()

    def close(self) -> None:
        """Hang up: a worker ends then. Idempotent. Thread: any but the orders'."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(_CLOSING_S)
        self._socket.close()


class _Waiting:
    def __init__(self, on_event: Event) -> None:
        self.on_event = on_event
        self.answer: dict[str, Any] | None = None
        self.is_done = threading.Event()


class Answers:
    """The worker's end, as far as it sends. Thread: any."""

    def __init__(self, sock: socket.socket) -> None:
        self._fd = sock.fileno()
        self._lock = threading.Lock()  # a packet at a time

    def send(self, **values: object) -> None:
        """Send one message. write(2): sendmsg(2) is closed to a worker."""
        message = pack(values)
        if len(message) > MESSAGE_BYTES_MAX:
            message = pack({"id": values.get("id"), **describe(HostError("too long an answer"))})
        with self._lock, contextlib.suppress(OSError):  # the keeper is gone, and so will we be
            os.write(self._fd, message)


def parse(data: bytes) -> dict[str, Any]:
    """Return a message; {} for what is none: the worker may be anybody's by now."""
    try:
        values = unpack(data)
    except PackingError:
        return {}
    return values if isinstance(values, dict) else {}
