"""What a keeper answers its worker, on a loop: sockets, names, refused system calls.

The worker is not believed. It gets a connected socket where the network's rules lead, a published
port that was ordered, and a connection to this sandbox's own vsock_PORT; nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from voidbox.event_loop import EventLoop
from voidbox.jail import allowed, numbers, seccomp
from voidbox.sandbox.keeper import channel
from voidbox.vsock.dial import connect_unix

if TYPE_CHECKING:  # a sandbox without a network starts sooner
    from voidbox.nat.config import NatConfig
    from voidbox.nat.forwards import Forward
    from voidbox.sandbox.keeper.network import NetworkKeeper
    from voidbox.secrets.guard import Guard

log = logging.getLogger(__name__)


class Serving:
    """Thread: loop, where nothing else is said.

    Args:
        asks, queries: the keeper's ends; see worker.devices.
        net: the network's rules, or None.
        vsock_path: the socket of the guest's vsock, beside which programs of the host listen for
            it; None: it reaches none.
        guard: looks at the connections to guarded hosts; None: there are none.
    Raises:
        ConfigError: a rule is wrong.
    """

    def __init__(
        self,
        loop: EventLoop,
        asks: socket.socket,
        queries: socket.socket,
        net: NatConfig | None,
        vsock_path: str | None,
        guard: Guard | None = None,
    ) -> None:
        self._loop = loop
        self._asks = asks
        self._inbox = channel.Inbox(asks, channel.MESSAGE_BYTES_MAX)
        self._listener_fd = -1
        self._refused: set[str] = set()
        self._forks = 0  # that may be made
        self._network: NetworkKeeper | None = None
        self.vsock_path = vsock_path
        if net is not None:
            from voidbox.sandbox.keeper.network import NetworkKeeper

            self._network = NetworkKeeper(
                net, loop, queries, lambda line: log.info("%s", line), guard
            )
        asks.setblocking(False)
        loop.watch(asks.fileno(), select.EPOLLIN, lambda ready: self._take())

    def allow(self, forward: Forward, is_allowed: bool) -> None:
        """Have a port be published, or not any more, if the worker asks for it. Thread: any."""
        if self._network is not None:
            self._network.allow(forward, is_allowed)

    def close(self) -> None:
        """Answer nothing more. Idempotent. Thread: loop, or any once the loop is stopped."""
        self._loop.unwatch(self._asks.fileno())
        if self._network is not None:
            self._network.close()
            self._network = None
        self._end_refusals()

    def _take(self) -> None:
        try:
            data, fds = self._inbox.receive()
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._loop.unwatch(self._asks.fileno())
            return
        values = channel.parse(data)
        if values.get("op") == "refusals" and fds and self._listener_fd < 0:
            self._listener_fd = fd = fds.pop()
            self._loop.watch(fd, select.EPOLLIN, self._answer_call)
            return
        for fd in fds:
            os.close(fd)
        answer, sock = self._answer(values)
        channel.send_answer(self._asks, answer, sock.fileno() if sock is not None else None)
        if sock is not None:
            sock.close()

    def _answer(self, values: dict[str, Any]) -> tuple[dict[str, object], socket.socket | None]:
        op = values.get("op")
        if op == "dial":
            return self._dial(values.get("port"))
        if self._network is not None and isinstance(op, str):
            return self._network.answer(op, values)
        return {"errno": errno.ENOSYS}, None

    def _dial(self, port: object) -> tuple[dict[str, object], socket.socket | None]:
        if type(port) is not int or not 0 <= port < 1 << 32:
            return {"errno": errno.EINVAL}, None
        if self.vsock_path is None:
            return {"errno": errno.ECONNREFUSED}, None
        try:
            return {"errno": 0}, connect_unix(f"{self.vsock_path}_{port}")
        except OSError as error:
            return {"errno": error.errno or errno.EIO}, None

    # System calls that the filter does not decide on.

    @contextlib.contextmanager
    def one_fork(self) -> Iterator[None]:
        """Meanwhile the worker may copy itself, once: a snapshot was ordered. Thread: any."""
        self._forks = 1
        try:
            yield
        finally:
            self._forks = 0

    def _answer_call(self, ready: int) -> None:
        """Answer one; say once of each that is refused which it is."""
        if not ready & select.EPOLLIN:
            self._end_refusals()  # all that had the filter are gone
            return
        forks = self._forks

        def decide(call: seccomp.Call) -> int:
            return 0 if forks and allowed.is_fork(*call) else errno.EPERM

        call = seccomp.answer_next(self._listener_fd, decide)
        if call is None:
            return
        if decide(call) == 0:
            self._forks = 0
            return
        name = numbers.name_of(call.number)
        if name not in self._refused:
            self._refused.add(name)
            words = " ".join(f"{argument:#x}" for argument in call.arguments)
            log.warning("jail: refused %s (%s), and from now on without a word", name, words)

    def _end_refusals(self) -> None:
        fd, self._listener_fd = self._listener_fd, -1
        if fd >= 0:
            self._loop.unwatch(fd)
            os.close(fd)
