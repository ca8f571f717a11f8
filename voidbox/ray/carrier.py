"""How a program reaches a node's sandboxes: by its gateway, or by calls of its actor.

Both give the same two things, an answer and a socket, so that all the rest knows no difference.
"""

from __future__ import annotations

import socket
import threading
from typing import Any, Protocol

from voidbox.errors import AgentError, SandboxLost
from voidbox.named_tuple import NamedTuple
from voidbox.ray import tls
from voidbox.ray.gateway import watch_peer
from voidbox.sandbox.control import ControlClient

CONNECT_S = 3.0
_PROBE_S = 1.0


class NodeAddress(NamedTuple):
    """Where a node is.

    Attributes:
        node: its name, for messages.
        host, port: of its gateway.
        token: of who may take sandboxes there.
        certificate: of its gateway, as PEM; "" for no TLS.
        probe: a port of the same machine that is open as long as the machine is Ray's, whether its
            pool lives or not: the raylet's.
    """

    node: str
    host: str
    port: int
    token: str
    certificate: str
    probe: tuple[str, int]


class Carrier(Protocol):
    """The way to one node. Thread: any; all of it may block."""

    def ask(
        self, id: str, token: str, op: str, limit_s: float | None, values: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the answer to what is asked of a sandbox; see held.

        Raises:
            SandboxLost: the node's pool cannot be reached.
            VoidboxError: what it refused with.
        """
        ...

    def open(
        self, id: str, token: str, op: str, limit_s: float | None, values: dict[str, Any]
    ) -> socket.socket:
        """Return the stream to what is asked for. Raises as ask()."""
        ...


class _GatewayClient(ControlClient):
    """Asks a gateway, as ControlClient asks a sandbox's process."""

    def __init__(self, address: NodeAddress, timeout_s: float | None) -> None:
        super().__init__("", timeout_s)
        self._address = address
        self._limit_s = timeout_s

    def _connect(self) -> socket.socket:
        limit_s = CONNECT_S if self._limit_s is None else min(CONNECT_S, self._limit_s)
        try:
            sock = socket.create_connection((self._address.host, self._address.port), limit_s)
        except OSError as error:
            raise Unreachable(str(error.strerror or error)) from error
        try:
            watch_peer(sock)
            if self._address.certificate:
                sock = tls.unwrapped(sock, tls.client_context(self._address.certificate), False)
        except OSError as error:
            sock.close()
            raise Unreachable(str(error.strerror or error)) from error
        sock.settimeout(self._limit_s)
        return sock

    def _gone(self, op: str) -> AgentError:
        return Unreachable(f"{op}: the connection to the node was lost")


class Unreachable(AgentError):
    """The gateway does not answer."""


class GatewayCarrier:
    """Reaches a node by its gateway; see Carrier."""

    def __init__(self, address: NodeAddress) -> None:
        self.address = address
        self._lock = threading.Lock()  # covers _lost
        self._lost: SandboxLost | None = None

    def ask(
        self, id: str, token: str, op: str, limit_s: float | None, values: dict[str, Any]
    ) -> dict[str, Any]:
        """See Carrier."""
        try:
            client = _GatewayClient(self.address, limit_s)
            return client.request(op, token=token, id=id, **values)
        except Unreachable as error:
            raise self.lost(str(error)) from error

    def open(
        self, id: str, token: str, op: str, limit_s: float | None, values: dict[str, Any]
    ) -> socket.socket:
        """See Carrier."""
        try:
            client = _GatewayClient(self.address, limit_s)
            return client.request_socket(op, token=token, id=id, **values)
        except Unreachable as error:
            raise self.lost(str(error)) from error

    def lost(self, why: str) -> SandboxLost:
        """Return the error for a gateway that is gone. Found out once: it never comes back."""
        with self._lock:
            if self._lost is None:
                self._lost = lost_with(self.address, why)
            return SandboxLost(str(self._lost), self._lost.reason)


def is_there(raylet: tuple[str, int]) -> bool:
    """Whether a machine's raylet can be reached."""
    try:
        socket.create_connection(raylet, _PROBE_S).close()
    except OSError:
        return False
    return True


def lost_with(address: NodeAddress, why: str) -> SandboxLost:
    """Return the error for a node whose pool is gone: with its machine, or alone.

    Ray is not asked: it takes many seconds to know of a machine's end.
    """
    if not is_there(address.probe):
        return SandboxLost(
            f"the sandbox is lost: its node {address.node} is gone, or the way to it ({why})",
            "node",
        )
    return SandboxLost(
        f"the sandbox is lost: the pool of node {address.node} has ended ({why})", "pool"
    )
