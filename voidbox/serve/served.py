"""One sandbox as the server holds it: its agent, and what is under way in it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import socket
import time
from collections import deque
from typing import Any

from voidbox.agent import protocol
from voidbox.agent.aio import AsyncAgent
from voidbox.agent.call import RequestFailed
from voidbox.errors import AgentError, VoidboxError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.control import ControlClient
from voidbox.sandbox.endpoint import StoredEndpoint
from voidbox.sandbox.session import Session
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sdk.aio import AsyncSandbox
from voidbox.sdk.files import AsyncFiles
from voidbox.sdk.launching import read_truly
from voidbox.serve.envd.commands import Commands
from voidbox.serve.envd.users import Users
from voidbox.serve.envd.watchers import Watchers
from voidbox.serve.marks import Mark

_SAMPLES_MAX = 720  # an hour, at one every 5 s
_METRICS_S = 10.0
_DIAL_S = 10.0
_OUTPUT_BYTES_KEPT = 64 << 10  # of what a build's step says: its log has it

_logger = logging.getLogger("voidbox.serve")


class Sample(NamedTuple):
    """What a sandbox used at one moment; sizes in bytes, `at` in seconds since 1970.

    Attributes:
        received, sent: by the guest over its network, since its start.
    """

    at: float
    cpus: int
    cpu_percent: float
    memory_used: int
    memory_total: int
    memory_cache: int
    disk_used: int
    disk_total: int
    received: int
    sent: int


class Served:
    """A sandbox that this server made, or found. Thread: the event loop's.

    Args:
        secret: the server's, which its tokens are computed with.

    Attributes:
        mark: what was asked for when it was made.
        session: the way to its agent, for everything but the machine itself.
        life: held by whoever pauses, resumes or ends it.
        samples: what it used, the newest last.
        is_sampled: whether it is measured unasked; which would be use of one with an idle timeout.
    """

    def __init__(self, store: Store, record: SandboxRecord, mark: Mark, secret: bytes) -> None:
        self.id = record.id
        self.mark = mark
        self.life = asyncio.Lock()
        self.samples: deque[Sample] = deque(maxlen=_SAMPLES_MAX)
        self._store = store
        self._secret = secret
        self._cpu: tuple[float, float] | None = None  # busy and all time of its CPUs
        self._connect(record)

    def _connect(self, record: SandboxRecord) -> None:
        """Have a session that has not been used."""
        self.is_sampled = record.idle_timeout_s is None
        agent = AsyncAgent(StoredEndpoint(self._store, record), self._store.secret(record.id))
        envs = {
            **self._store.envs(record),
            "E2B_SANDBOX": "true",
            "E2B_SANDBOX_ID": self.id,
            "E2B_TEMPLATE_ID": self.mark.template,
        }
        self.session = Session(agent, record.name, envs, record.workdir, record.user)
        self.session.output_bytes_kept = _OUTPUT_BYTES_KEPT
        self.files = AsyncFiles(self.session)
        workdir = "" if self.mark.is_build else self.mark.workdir
        user = "" if self.mark.is_build else self.mark.user
        self.users = Users(self.files, user or record.user or "sandbox", workdir)
        self.commands = Commands(self.session)
        self.watchers = Watchers()

    @property
    def record(self) -> SandboxRecord:
        """Its record, as it is now.

        Raises:
            ConfigError: it has been removed.
        """
        return self._store.peek(self.id)

    @property
    def state(self) -> State:
        """Its state; STOPPED once nothing of it is left."""
        try:
            record = self.record
            if record.state.has_process and not self._store.is_alive(self.id):
                record = read_truly(self._store, self.id)  # suspended, or crashed
        except VoidboxError:
            return State.STOPPED
        return record.state

    @property
    def is_running(self) -> bool:
        """Whether requests can reach it."""
        return self.state is State.RUNNING

    @property
    def token(self) -> str:
        """What its data plane wants to see; "" if nothing."""
        return self._token("envd") if self.mark.is_secure else ""

    @property
    def traffic_token(self) -> str:
        """What requests to its ports must carry; "" if they are open."""
        return "" if self.mark.is_public else self._token("traffic")

    def _token(self, purpose: str) -> str:
        return hmac.new(self._secret, f"{purpose}:{self.id}".encode(), hashlib.sha256).hexdigest()

    async def box(self) -> AsyncSandbox:
        """Return what has the machine's own operations.

        Raises:
            ConfigError, AgentError: it is gone.
        """
        return await AsyncSandbox.connect(
            self.id, auto_resume=False, state_folder=self._store.folder
        )

    async def control(self, op: str, **values: object) -> dict[str, object]:
        """Ask its process for something that takes no time; see sandbox.process.operations.

        Raises:
            VoidboxError: what it refuses with; or it is gone.
        """
        client = ControlClient(self._store.path(self.id, "control.sock"))
        return await asyncio.to_thread(client.request, op, **values)

    def dial_agent(self) -> socket.socket:
        """Return a connection to its agent on which nothing was said yet. Thread: one of the pool.

        Raises:
            OSError: nobody listens.
        """
        endpoint = StoredEndpoint(self._store, self.record)
        return endpoint.connect(protocol.AGENT_PORT, _DIAL_S)

    async def measure(self) -> Sample | None:
        """Take a sample; None if it does not answer."""
        try:
            guest = await self.session.agent.request(protocol.METRICS, {}, "metrics", _METRICS_S)
            sample = self._sample(guest, await self.control("metrics"))
        except (VoidboxError, TypeError, ValueError, AttributeError, ArithmeticError):
            return None
        self.samples.append(sample)
        return sample

    def _sample(self, guest: dict[str, Any], machine: dict[str, Any]) -> Sample:
        network = machine.get("network") or {}
        times = {name: float(value) for name, value in dict(guest["cpu_ns"]).items()}
        total, idle = sum(times.values()), times.get("idle", 0.0)
        busy = total - idle
        last_busy, last_total = self._cpu or (busy, total)
        self._cpu = busy, total
        elapsed = total - last_total
        percent = 100 * (busy - last_busy) / elapsed if elapsed > 0 else 0.0
        memory, disk = int(guest["memory_bytes"]), int(guest["disk_bytes"])
        return Sample(
            at=time.time(),
            cpus=max(1, int(guest["cpus"])),
            cpu_percent=round(min(100.0, max(0.0, percent)), 2),
            memory_used=max(0, memory - int(guest["memory_available_bytes"])),
            memory_total=memory,
            memory_cache=0,
            disk_used=max(0, disk - int(guest["disk_available_bytes"])),
            disk_total=disk,
            received=int(network.get("bytes_to_guest", 0)),
            sent=int(network.get("bytes_from_guest", 0)),
        )

    async def disconnect(self) -> None:
        """Let go of its agent: it has ended, or stands still. What is under way ends."""
        self.watchers.close()
        self.commands.close()
        await asyncio.to_thread(self.session.agent.close)

    async def reconnect(self) -> None:
        """It goes on after a pause: commands are found again when they are asked for."""
        await self.disconnect()
        self._connect(self.record)

    def warm_up(self) -> asyncio.Task[None]:
        """Connect to its agent before anybody needs it."""

        async def connect() -> None:
            with contextlib.suppress(VoidboxError):
                await self.session.agent.link()

        return asyncio.create_task(connect())


def is_lost(served: Served, error: Exception) -> bool:
    """Whether a request failed because its sandbox is gone, rather than by itself."""
    is_of_agent = isinstance(error, AgentError) and not isinstance(error, RequestFailed)
    return is_of_agent and not served.is_running
