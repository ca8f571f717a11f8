"""The guest of a server's sandbox, as its agent's client sees it."""

from __future__ import annotations

import contextlib
import socket
import time

from voidbox.errors import VoidboxError
from voidbox.remote import tunnel
from voidbox.remote.server import Missing, Server, sandbox_path

_LOOK_S = 0.5  # how often the server is asked whether it has ended, at most


class RemoteEndpoint:
    """See Endpoint. Thread: any.

    Attributes:
        own_end: what to say of its end, where this program itself has ended it.
    """

    def __init__(self, server: Server, sandbox_id: str, name: str) -> None:
        self.cid = 0  # it has one on the server's host
        self.own_end = ""
        self._server = server
        self._id = sandbox_id
        self._name = name
        self._looked_at = 0.0

    def connect(self, port: int, timeout_s: float) -> socket.socket:
        """See Endpoint. Whatever the port, it is the agent's: the server gives no other."""
        return tunnel.connect(self._server, sandbox_path(self._id, "/agent"), timeout_s)

    def connect_serial(self) -> socket.socket | None:
        """See Endpoint."""
        return None

    def has_ended(self, timeout_s: float) -> bool:
        """See Endpoint."""
        time.sleep(timeout_s)
        if time.monotonic() - self._looked_at < _LOOK_S:
            return False
        self._looked_at = time.monotonic()
        return bool(self.explain_end())

    def explain_end(self) -> str:
        """See Endpoint."""
        if self.own_end:
            return self.own_end
        try:
            info = self._server.request("GET", sandbox_path(self._id))["info"]
        except Missing:
            return (
                f"the sandbox {self._name} has ended, and {self._server.address.url} has removed it"
            )
        except VoidboxError as error:
            return str(error)
        with contextlib.suppress(KeyError, TypeError):
            if info["state"] == "suspended":
                return f"{self._name} is suspended: resume() wakes it"
            if info["state"] in ("stopped", "crashed"):
                return str(info["crash"] or f"the sandbox {self._name} has ended: {info['reason']}")
        return ""
