"""The network's decisions and sockets, where another process makes them.

A machine that was taken over must not reach more than its rules open. So the policy, the names that
it pins, and the making of sockets can be elsewhere; this one then gets sockets that are connected.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from voidbox.loop_api import Loop
from voidbox.net.name_service import NameForwarder
from voidbox.net.policy import Gate

if TYPE_CHECKING:
    from voidbox.nat.forwards import Forward


class Outside(Protocol):
    """Another process that decides, resolves and makes sockets. Thread: the network's loop."""

    def attach(self, loop: Loop, replied: Callable[[bytes], None]) -> tuple[Gate, NameForwarder]:
        """Begin; `replied` is given what comes from the forwarder, for its reply()."""
        ...

    def detach(self) -> None:
        """End. Idempotent. Thread: loop, or any once the loop is stopped."""
        ...

    def open_connected(
        self, kind: int, protocol: int, address: int, port: int
    ) -> socket.socket | int:
        """See sockets.open_connected; EACCES for what the rules do not open."""
        ...

    def listen(self, forward: Forward) -> tuple[socket.socket, int]:
        """See forwards.listen."""
        ...


class NoResolvers:
    """The Resolvers of a name service that sends no queries itself."""

    def send_udp(self, server_idx: int, upstream_id: int, message: bytes) -> None:
        """See Resolvers."""

    def send_tcp(self, server_idx: int, upstream_id: int, message: bytes) -> None:
        """See Resolvers."""
