"""A sandbox of another machine, as an AsyncSandbox: all that differs is how it is reached."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Mapping
from typing import Any

from voidbox.errors import AgentError, ConfigError, SandboxLost, VoidboxError
from voidbox.ray.carrier import Carrier
from voidbox.ray.held import PIECE
from voidbox.ray.taken import TakenSandbox
from voidbox.ray.ticket import Ticket
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sdk.place import Log, PlacedEndpoint
from voidbox.sdk.snapshots import SnapshotInfo

_ASK_S = 10.0
_EXPLAIN_S = 4.0  # a guest that is ending takes 2
_GRACE_S = 10.0
_CHANGES_RECORD = frozenset({"pause", "resume", "set_timeout"})


class RemoteEndpoint:
    """A guest of another machine; see Endpoint. Thread: any.

    Attributes:
        own_end: what to say of its end, where this program itself has ended it.
    """

    def __init__(self, carrier: Carrier, ticket: Ticket) -> None:
        self.cid = ticket.record.cid
        self.own_end = ""
        self._carrier, self._id, self._token = carrier, ticket.record.id, ticket.token
        self._name = ticket.record.name

    def connect(self, port: int, timeout_s: float) -> socket.socket:
        """See Endpoint."""
        values = {"port": port}
        try:
            sock = self._carrier.open(self._id, self._token, "dial", timeout_s, values)
        except VoidboxError as error:
            raise ConnectionRefusedError(errno.ECONNREFUSED, str(error)) from error
        sock.settimeout(None)
        return sock

    def connect_serial(self) -> socket.socket | None:
        """See Endpoint."""
        try:
            return self._carrier.open(self._id, self._token, "serial", _ASK_S, {})
        except VoidboxError:
            return None

    def has_ended(self, timeout_s: float) -> bool:
        """See Endpoint."""
        values = {"timeout": timeout_s}
        limit_s = timeout_s + _ASK_S
        try:
            answer = self._carrier.ask(self._id, self._token, "wait", limit_s, values)
        except VoidboxError:
            return True  # explain_end() says how
        return answer.get("gone") is True

    def explain_end(self) -> str:
        """See Endpoint. What is not this program's doing is a SandboxLost."""
        if self.own_end:
            return self.own_end
        try:
            answer = self._carrier.ask(self._id, self._token, "explain", _EXPLAIN_S, {})
        except SandboxLost:
            raise
        except VoidboxError as error:  # it answers, and has no such sandbox
            raise SandboxLost(f"{self._name} is lost: {error}", "guest") from error
        if story := str(answer.get("story") or ""):
            raise SandboxLost(story, "guest")
        return ""


class RemotePlace:
    """A sandbox of another machine; see Place. Thread: any.

    Its record is as it was when it was given, but for what this program has changed: nobody asks
    another machine before each request whether somebody else has paused it.
    """

    def __init__(self, carrier: Carrier, ticket: Ticket) -> None:
        self._carrier, self._id, self._token = carrier, ticket.record.id, ticket.token
        self._record = ticket.record
        self._lock = threading.Lock()  # covers _record
        self.endpoint: PlacedEndpoint = RemoteEndpoint(carrier, ticket)
        self.secret = ticket.secret
        self.envs: Mapping[str, str] = ticket.envs
        self.shared: Mapping[str, str | None] = dict.fromkeys(ticket.shared)
        self.writes_volumes = ticket.writes_volumes

    def peek(self) -> SandboxRecord:
        """See Place."""
        with self._lock:
            return self._record

    def read(self) -> SandboxRecord:
        """See Place."""
        return self._read()[0]

    def is_alive(self) -> bool:
        """See Place. What is lost is not."""
        try:
            return self._read()[1]
        except AgentError:
            return False

    def _read(self) -> tuple[SandboxRecord, bool]:
        answer = self._ask("record", _ASK_S, {})
        record = SandboxRecord.from_json(dict(answer["record"]))
        with self._lock:
            self._record = record
        return record, answer.get("is_alive") is True

    def _ask(self, op: str, limit_s: float | None, values: dict[str, Any]) -> dict[str, Any]:
        return self._carrier.ask(self._id, self._token, op, limit_s, values)

    def ask(self, op: str, limit_s: float | None, **values: object) -> dict[str, object]:
        """See Place."""
        answer = self._ask(op, limit_s, values)
        if op in _CHANGES_RECORD:
            self._read()
        return answer

    def open_log(self, name: str) -> Log:
        """See Place."""
        values = {"name": name}
        return _RemoteLog(self._carrier.open(self._id, self._token, "log", _ASK_S, values))

    def find_snapshot(self, id: str) -> SnapshotInfo:
        """See Place."""
        info: Any = self._ask("find_snapshot", _ASK_S, {"snapshot": id})["info"]
        return SnapshotInfo(**info)

    def discard_suspended(self) -> None:
        """See Place: none is suspended."""
        raise ConfigError(f"{self._record.name} is not suspended")

    def remove(self) -> None:
        """See Place: its release does that."""
        self.release()

    def release(self) -> bool:
        """End it, and leave its place to others; False if it had ended."""
        return self._ask("release", None, {}).get("was_alive") is True

    async def wait_gone(self, timeout_s: float | None) -> bool:
        """See Place. What is lost is gone."""
        limit_s = None if timeout_s is None else timeout_s + _GRACE_S
        values = {"timeout": timeout_s}
        while True:
            try:
                answer = await asyncio.to_thread(self._ask, "wait", limit_s, values)
            except AgentError:
                return True
            if answer.get("gone") is True:
                return True
            if timeout_s is not None:  # else the node only waits for so long at a time
                return False

    async def wait_or_kill(self, limit_s: float) -> None:
        """See Place."""
        if not await self.wait_gone(limit_s):
            await asyncio.to_thread(self._ask, "kill", _ASK_S, {})
            await self.wait_gone(limit_s)


class _RemoteLog:
    """A log of another machine; see Log."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(_ASK_S)
        self._sock = sock
        self._reader = sock.makefile("rb")

    def read(self) -> bytes:
        """See Log."""
        try:
            self._sock.sendall(b"\n")
            size = self._reader.read(PIECE.size)
            if len(size) < PIECE.size:
                return b""
            return self._reader.read(PIECE.unpack(size)[0])
        except OSError:
            return b""  # it is lost: there is no more of it

    def close(self) -> None:
        """See Log."""
        self._reader.close()
        self._sock.close()


class RemoteSandbox(TakenSandbox):
    """A sandbox of a pool on another machine. All of AsyncSandbox's methods are there.

    Files of "the host" are its node's in `volumes=` and in what `ports` publishes; those that
    methods take, for upload() say, are this machine's.

    Attributes:
        node: the name of its node.
    """

    def __init__(self, carrier: Carrier, ticket: Ticket, node: str) -> None:
        """Use a pool's acquire()."""
        self.node = node
        self._remote = RemotePlace(carrier, ticket)
        self._attach(self._remote, ticket.record, False, "")

    async def end(self) -> bool:
        """See PooledSandbox."""
        self._say_ended()
        try:
            return await asyncio.to_thread(self._remote.release)
        except AgentError:
            return False  # it is lost already, and its pool knows that
        finally:
            await self._disconnect()

    async def resume(self, *, request_timeout: float | None = None) -> None:
        """Let it go on after pause()."""
        await self._control("resume", request_timeout)
