"""What a node's holders may ask of a sandbox, by its gateway or by calls of its actor.

dial {port}             and becomes a stream to the guest's vsock port
serial {}               and becomes a stream to its second serial port
log {name}              and becomes a log: each byte that is sent asks for more of it
record {}               record, and whether it is alive
explain {}              story: how it ended, or ""
wait {timeout}          gone: whether its process is
find_snapshot {snapshot}  info, of one that it has made
release {}              was_alive; it is ended, and its place is free (Node sees to it)
and of what `sandbox/process/operations.py` has, those in OWNER_OPS
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from voidbox.errors import AgentError, ConfigError
from voidbox.pool.member import PooledSandbox
from voidbox.ray.gateway import Answer, Stream, check_port, forward_to
from voidbox.ray.ticket import Ticket
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sdk.place import Log, StoredPlace

LOGS = frozenset({"console.log", "owner.log", "http.log"})
# What would have a sandbox live on outside of its pool is not among them.
OWNER_OPS = frozenset(
    {"metrics", "stop", "kill", "set_timeout", "pause", "resume", "limit", "snapshot"}
    | {"port_add", "port_remove", "port_list", "secret_set", "secret_list"}
)
PIECE = struct.Struct("!I")  # before each piece of a log
_CONNECT_S = 10.0
_WAIT_S_MAX = 3600.0
_ASK_S = 330.0  # more than a snapshot takes

Op = Callable[[dict[str, Any]], Awaitable[Answer]]


def is_same(ours: str, theirs: object) -> bool:
    """Whether a token is ours, in a time that says nothing of how much of it is."""
    if not isinstance(theirs, str):
        return False
    return hmac.compare_digest(ours.encode(), theirs.encode("utf-8", "replace"))


class Held:
    """A sandbox of this node that somebody has. Thread: the event loop's.

    Args:
        holder: who has it.

    Attributes:
        token: shown by whoever uses it.
    """

    def __init__(
        self, store: Store, sandbox: PooledSandbox, record: SandboxRecord, holder: str
    ) -> None:
        self.sandbox, self.record, self.holder = sandbox, record, holder
        self.token = secrets.token_hex(32)
        self._place = StoredPlace(store, record)
        self._state_folder = store.folder
        self._ops: dict[str, Op] = {
            "dial": self._dial,
            "serial": self._serial,
            "log": self._log,
            "record": self._read,
            "explain": self._explain,
            "wait": self._wait,
            "find_snapshot": self._find_snapshot,
        }

    def ticket(self) -> Ticket:
        """Return what its holder needs."""
        return Ticket.of(self._place, self.record, self.token, self._state_folder)

    def is_for(self, token: object) -> bool:
        """Whether a token is this sandbox's."""
        return is_same(self.token, token)

    async def ask(self, op: object, values: dict[str, Any]) -> Answer:
        """Do what is asked.

        Raises:
            VoidboxError: it cannot be done.
        """
        if isinstance(op, str) and op in OWNER_OPS:
            return await asyncio.to_thread(self._place.ask, op, _ASK_S, **values)
        handler = self._ops.get(op) if isinstance(op, str) else None
        if handler is None:
            raise ConfigError(f"a node's sandbox cannot be asked for {str(op)[:40]!r}")
        return await handler(values)

    async def _dial(self, values: dict[str, Any]) -> Stream:
        port = check_port(values.get("port"))
        try:
            guest = await asyncio.to_thread(self._place.endpoint.connect, port, _CONNECT_S)
        except OSError as error:
            raise AgentError(f"connect: {error.strerror or error}") from error
        return forward_to(guest)

    async def _serial(self, values: dict[str, Any]) -> Stream:
        line = await asyncio.to_thread(self._place.endpoint.connect_serial)
        if line is None:
            raise AgentError("the guest has no second serial port")
        return forward_to(line)

    async def _log(self, values: dict[str, Any]) -> Stream:
        name = values.get("name")
        if name not in LOGS:
            raise ConfigError(f"there is no log {str(name)[:40]!r}")
        log = await asyncio.to_thread(self._place.open_log, str(name))
        return lambda sock: _tell(sock, log)

    async def _read(self, values: dict[str, Any]) -> Answer:
        record = await asyncio.to_thread(self._place.read)
        is_alive = await asyncio.to_thread(self._place.is_alive)
        return {"record": record.to_json(), "is_alive": is_alive}

    async def _explain(self, values: dict[str, Any]) -> Answer:
        return {"story": await asyncio.to_thread(self._place.endpoint.explain_end)}

    async def _wait(self, values: dict[str, Any]) -> Answer:
        timeout = values.get("timeout")
        limit_s = float(timeout) if isinstance(timeout, int | float) else _WAIT_S_MAX
        return {"gone": await self._place.wait_gone(min(max(limit_s, 0.0), _WAIT_S_MAX))}

    async def _find_snapshot(self, values: dict[str, Any]) -> Answer:
        info = await asyncio.to_thread(self._place.find_snapshot, str(values.get("snapshot")))
        if info.sandbox_id != self.record.id:
            raise ConfigError(f"no snapshot {info.snapshot_id} of this sandbox")
        return {"info": info._asdict()}


async def _tell(sock: socket.socket, log: Log) -> None:
    """Answer each byte with the next piece of a log, after its size."""
    loop = asyncio.get_running_loop()
    try:
        while await loop.sock_recv(sock, 1):
            data = await asyncio.to_thread(log.read)
            await loop.sock_sendall(sock, PIECE.pack(len(data)) + data)
    finally:
        log.close()
