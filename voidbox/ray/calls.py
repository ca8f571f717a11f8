"""ActorCarrier: a node's sandboxes by calls of its actor, where its gateway cannot be reached.

A stream is a socket pair: two threads move its data by calls, few of them at a time. Who does not
read is sent no more than those bring; closing it ends the stream there, and what writes to it.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections import deque
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from voidbox.errors import SandboxLost, SandboxTimeout
from voidbox.ray.carrier import NodeAddress, lost_with
from voidbox.ray.gateway import STREAM_BYTES
from voidbox.sandbox.control import make_error

_UNDER_WAY = 4  # pieces of a stream, each way
_MUCH_BYTES = 64 << 10


class ActorCarrier:
    """Reaches a node by its actor; see Carrier."""

    def __init__(self, actor: Any, address: NodeAddress) -> None:
        self._actor, self.address = actor, address
        self._lock = threading.Lock()  # covers _lost
        self._lost: SandboxLost | None = None

    def ask(
        self, id: str, token: str, op: str, limit_s: float | None, values: dict[str, Any]
    ) -> dict[str, Any]:
        """See Carrier."""
        group = "data" if op == "wait" else "ctl"  # what lasts must not keep an end waiting
        method = self._actor.ask.options(concurrency_group=group)
        return self._get(method.remote(id, token, op, values), op, limit_s)

    def open(
        self, id: str, token: str, op: str, limit_s: float | None, values: dict[str, Any]
    ) -> socket.socket:
        """See Carrier."""
        answer = self._get(self._actor.open_stream.remote(id, token, op, values), op, limit_s)
        ours, theirs = socket.socketpair()
        _Stream(self._actor, int(answer["stream"]), ours).start()
        return theirs

    def _get(self, ref: Any, op: str, limit_s: float | None) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = ray.get(ref, timeout=limit_s)
        except GetTimeoutError:
            ray.cancel(ref)
            raise SandboxTimeout(f"{op}: the node did not answer within {limit_s:g} s") from None
        except RayError as error:
            raise self.lost(type(error).__name__) from error
        if answer.get("ok") is not True:
            raise make_error(answer)
        return answer

    def lost(self, why: str) -> SandboxLost:
        """Return the error for an actor that is gone."""
        with self._lock:
            if self._lost is None:
                self._lost = lost_with(self.address, why)
            return SandboxLost(str(self._lost), self._lost.reason)


class _Stream:
    def __init__(self, actor: Any, number: int, sock: socket.socket) -> None:
        self._actor, self._number, self._sock = actor, number, sock
        self._lock = threading.Lock()  # covers _moving
        self._moving = 2  # threads; the last one closes the socket

    def start(self) -> None:
        for move in (self._take, self._give):
            threading.Thread(
                target=self._move, args=(move,), name="voidbox-ray", daemon=True
            ).start()

    def _move(self, move: Any) -> None:
        try:
            move()
        except (OSError, RayError):
            pass
        finally:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)  # the other way ends as well
            with contextlib.suppress(Exception):  # Ray may have been shut down
                self._actor.close_stream.remote(self._number)
            with self._lock:
                self._moving -= 1
                if not self._moving:
                    self._sock.close()

    def _take(self) -> None:
        pending: deque[Any] = deque()
        for turn in itertools.count():
            if not (data := _gathered(self._sock)):
                break
            pending.append(self._actor.write_stream.remote(self._number, turn, data))
            if len(pending) > _UNDER_WAY and not ray.get(pending.popleft()):
                return
        ray.get(list(pending))

    def _give(self) -> None:
        turns = itertools.count()

        def ask() -> Any:
            return self._actor.read_stream.remote(self._number, next(turns))

        pending = deque([ask()])
        while data := ray.get(pending.popleft()):
            self._sock.sendall(data)
            # Who sends much is asked for more before it is there: as much as may wait unread.
            count = _UNDER_WAY if len(data) >= _MUCH_BYTES else 1
            while len(pending) < count:
                pending.append(ask())


def _gathered(sock: socket.socket) -> bytes:
    """Return what there is to read, once there is some; nothing at the end."""
    data = sock.recv(STREAM_BYTES)
    parts, size = [data], len(data)
    while data and size < STREAM_BYTES:
        try:
            data = sock.recv(STREAM_BYTES - size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            break
        parts.append(data)
        size += len(data)
    return b"".join(parts)
