"""How to reach the guest of a sandbox that another process runs."""

from __future__ import annotations

import errno
import os
import select
import socket
import time

from voidbox.agent.connect import BOOT_TIMEOUT_S
from voidbox.agent.endpoint import UnixEndpoint, connect_vhost
from voidbox.errors import AgentError, ConfigError, SandboxTimeout
from voidbox.sandbox.control import ControlClient
from voidbox.sandbox.log_file import read_tail
from voidbox.sandbox.process.recipe import NO_VSOCK, VHOST
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

_POST_MORTEM_S = 2.0  # between the loss of a connection and the last word of the sandbox's process
_POLL_S = 0.01


def first_answer_s(record: SandboxRecord) -> float:
    """Return how long a guest's agent may take until it first answers."""
    return max(BOOT_TIMEOUT_S, record.start_s or 0.0)


class StoredEndpoint:
    """A sandbox's guest as its agent's client sees it; see Endpoint. Thread: any.

    Attributes:
        own_end: what to say of its end, where this program itself has ended it.
    """

    def __init__(self, store: Store, record: SandboxRecord) -> None:
        self.cid = record.cid
        self.own_end = ""
        self._store = store
        self._id = record.id
        self._vsock = record.vsock
        self._unix = UnixEndpoint(store.path(record.id, "vsock.sock"), record.cid)

    def connect(self, port: int, timeout_s: float) -> socket.socket:
        """See Endpoint."""
        if self._vsock == NO_VSOCK:
            raise OSError(errno.ENODEV, "the sandbox has no vsock")
        if self._vsock == VHOST:
            return connect_vhost(self.cid, port, timeout_s)
        return self._unix.connect(port, timeout_s)

    def connect_serial(self) -> socket.socket | None:
        """See Endpoint. None, too, if the sandbox's process does not give it."""
        client = ControlClient(self._store.path(self._id, "control.sock"))
        try:
            return client.request_socket("connect_serial")
        except (AgentError, SandboxTimeout):
            return None

    def has_ended(self, timeout_s: float) -> bool:
        """See Endpoint."""
        fd = self._store.open_owner(self._id)
        if fd is None:
            return True
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            return bool(poll.poll(timeout_s * 1000))
        finally:
            os.close(fd)

    def explain_end(self) -> str:
        """See Endpoint; waits a moment for a sandbox that is ending."""
        deadline = time.monotonic() + _POST_MORTEM_S
        while not self.own_end:
            is_alive = self._store.is_alive(self._id)
            try:
                record = self._store.read(self._id)
            except ConfigError:
                return "the sandbox has been removed"
            if not record.state.has_process or not is_alive:
                return self._tell(record)
            if time.monotonic() > deadline:
                return ""
            self.has_ended(_POLL_S)
        return self.own_end

    def _tell(self, record: SandboxRecord) -> str:
        if record.state is State.SUSPENDED:
            return f"{record.name} is suspended: resume() or voidbox resume {record.name} wakes it"
        reason = record.reason if record.state.is_final else "its process was killed"
        story = record.crash or f"the sandbox {record.name} has ended: {reason}"
        tail = read_tail(self._store.path(self._id, "console.log"))
        if not tail or "the console's last lines:" in story:
            return story
        return f"{story}\nthe console's last lines:\n{tail}"
