"""What one may do with a sandbox that there is: ask it, limit it, read its logs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping
from typing import Literal

from voidbox.agent import protocol
from voidbox.agent.aio import AsyncAgent
from voidbox.errors import AgentError, ConfigError, VoidboxError
from voidbox.sandbox.session import Session, check_seconds
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.workspace.copying import LIMIT_BYTES, WorkspaceResult
from voidbox.sandbox.workspace.stored import StoredWorkspace
from voidbox.sdk import draft
from voidbox.sdk.commands import AsyncCommands
from voidbox.sdk.files import AsyncFiles
from voidbox.sdk.info import SandboxInfo, SandboxMetrics
from voidbox.sdk.log_reader import read_lines
from voidbox.sdk.place import Place, StoredPlace
from voidbox.sdk.ports import AsyncPorts
from voidbox.sdk.pty import AsyncPty
from voidbox.sdk.secrets import AsyncSecrets

_logger = logging.getLogger("voidbox")


class SandboxHandle:
    """A sandbox that there is; see AsyncSandbox.

    Args:
        keep: whether kill() leaves its record.
    """

    def __init__(self, store: Store, record: SandboxRecord, keep: bool) -> None:
        """Use AsyncSandbox.create() or connect()."""
        self._store = store
        self._attach(StoredPlace(store, record), record, keep, store.path(record.id))

    def _attach(self, place: Place, record: SandboxRecord, keep: bool, folder: str) -> None:
        """Be the handle of what is there.

        Args:
            folder: see StoredWorkspace.
        """
        self._place = place
        self._id = record.id
        self._name = record.name
        self._keeps = keep
        self._endpoint = place.endpoint
        agent = AsyncAgent(self._endpoint, place.secret, log=self._log)
        self._session = Session(
            agent, record.name, place.envs, record.workdir, record.user, self._standstill,
            place.shared,
        )  # fmt: skip
        self.commands = AsyncCommands(self._session)
        self.files = AsyncFiles(self._session)
        self.pty = AsyncPty(self._session)
        self.secrets = AsyncSecrets(place, record)
        self.ports = AsyncPorts(self._control, self._session, self.files)
        self._workspace = StoredWorkspace(folder, record, self._session)

    def _log(self, line: str) -> None:
        _logger.info("%s: %s", self._name, line)

    def _standstill(self) -> tuple[bool, float]:
        with contextlib.suppress(VoidboxError):  # gone, say: whoever asks it learns how
            record = self._place.peek()
            return record.state is State.PAUSED, record.stood_still_s()
        return False, 0.0

    @property
    def sandbox_id(self) -> str:
        """Its ID, for connect()."""
        return self._id

    @property
    def name(self) -> str:
        """Its name, for connect()."""
        return self._name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name} {self._id}>"

    # The machine.

    async def _control(
        self, op: str, request_timeout: float | None = None, **values: object
    ) -> dict[str, object]:
        """Ask the sandbox's process."""
        limit_s = self._session.seconds(request_timeout)
        if op != "kill":
            self._session.check_not_ended()
        try:
            return await asyncio.to_thread(self._place.ask, op, limit_s, **values)
        except AgentError as error:
            story = await asyncio.to_thread(self._endpoint.explain_end)
            raise AgentError(f"{error}\n{story}" if story else str(error)) from error

    async def get_info(self) -> SandboxInfo:
        """Return what it is and how it is; also once it has ended."""
        try:
            return SandboxInfo.of(await asyncio.to_thread(self._place.read))
        except ConfigError:  # it has been removed
            self._session.check_not_ended()
            raise

    async def is_running(self) -> bool:
        """Whether it has not ended."""
        return await asyncio.to_thread(self._place.is_alive)

    async def get_metrics(self, *, request_timeout: float | None = None) -> SandboxMetrics:
        """Return what it uses."""
        limit_s = self._session.limit_s(request_timeout)
        host = await self._control("metrics", request_timeout)
        guest = await self._session.agent.request(protocol.METRICS, {}, "metrics", limit_s)
        return SandboxMetrics.of(guest, host)

    async def set_timeout(
        self, timeout: float | None, *, request_timeout: float | None = None
    ) -> None:
        """Have it ended so many seconds from now; None for never."""
        seconds = None if timeout is None else check_seconds("timeout", timeout)
        await self._control("set_timeout", request_timeout, timeout=seconds)

    async def set_limits(
        self,
        limits: Mapping[str, float | None] | None = None,
        *,
        request_timeout: float | None = None,
    ) -> dict[str, float]:
        """Change what it may use of this host; return all limits.

        Args:
            limits: "cpu" (CPUs, such as 0.5), "disk_bytes_s" and "disk_ops_s" (of each disk),
                "net_bytes_s", "memory_bytes" (see set_memory()), "host_memory_bytes", "pids";
                None ends one. What is not named stays.
        """
        answer = await self._control("limit", request_timeout, **(limits or {}))
        found = answer.get("limits")
        return dict(found) if isinstance(found, dict) else {}

    async def set_memory(
        self, memory: int | str | None, *, request_timeout: float | None = None
    ) -> None:
        """Have the guest make do with less memory than it has; None: with all of it.

        The rest is this host's again, as far and as soon as the guest can spare it; what it needs
        it keeps, and it takes memory back before it kills a program for want of it.

        Args:
            memory: MiB as a number, or text such as "256M".
        Raises:
            ConfigError: it does not have so much, or its kernel cannot live with so little.
        """
        size_bytes = None if memory is None else draft.memory_bytes(memory)
        await self.set_limits({"memory_bytes": size_bytes}, request_timeout=request_timeout)

    async def pause(self, *, request_timeout: float | None = None) -> None:
        """Halt it: its CPUs stand still, its memory and connections stay."""
        await self._control("pause", request_timeout)

    async def logs(
        self, *, follow: bool = False, source: Literal["console", "voidbox", "http"] = "console"
    ) -> AsyncGenerator[str, None]:
        """Yield the lines of a log: its console's, what voidbox said of it, or of HTTP requests.

        They are the guest's words: not fit for a terminal unseen.

        Args:
            follow: wait for more, until it has ended.
        """
        names = {"console": "console.log", "voidbox": "owner.log", "http": "http.log"}
        if source not in names:
            raise ConfigError(f'source={source!r}: give "console", "voidbox" or "http"')
        log = await asyncio.to_thread(self._place.open_log, names[source])
        async with contextlib.aclosing(read_lines(log, self._place.is_alive, follow)) as lines:
            async for line in lines:
                yield line

    # The workspace.

    async def sync_back(
        self, *, limit_bytes: int = LIMIT_BYTES, request_timeout: float | None = None
    ) -> WorkspaceResult:
        """Copy what has changed in the workspace back to the host; see WorkspaceResult.

        What the host has changed meanwhile stays as it is. Again, it copies what has changed since.

        Args:
            limit_bytes: copy nothing if it is more.
        Raises:
            ConfigError: the sandbox has no workspace that was copied in.
            AgentError: it has ended: the host's folder is untouched.
        """
        limit_s = self._session.limit_s(request_timeout)
        return await self._workspace.copy_back(limit_s, limit_bytes)
