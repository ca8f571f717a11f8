"""A sandbox of a `voidbox serve`: an AsyncSandbox by another way.

Commands, files, terminals and watches are the agent's protocol, as ever; its bytes pass through the
server. Its life is the server's: there is one request for each operation. It does not end with this
program: with its block, by kill(), or when its timeout is over; without one, after the longest that
the server gives.

What is about the server's own machine (published ports, limits, workspaces, volumes, secrets that
never enter the guest, files of the host) is refused.
"""

from __future__ import annotations

import asyncio
import builtins
import codecs
import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Literal, NoReturn

from voidbox.agent.aio import AsyncAgent
from voidbox.errors import AgentError, ConfigError, HostError, SandboxTimeout
from voidbox.remote import address
from voidbox.remote.endpoint import RemoteEndpoint
from voidbox.remote.server import Missing, Server, sandbox_path
from voidbox.sandbox.session import Session, check_seconds
from voidbox.sdk import snapshots
from voidbox.sdk.aio import AsyncSandbox
from voidbox.sdk.commands import AsyncCommands
from voidbox.sdk.creating import DEFAULTS, CreateOptions
from voidbox.sdk.ending import STOP_S
from voidbox.sdk.files import AsyncFiles
from voidbox.sdk.info import SandboxInfo
from voidbox.sdk.ports import AsyncPorts
from voidbox.sdk.pty import AsyncPty
from voidbox.sdk.secrets import AsyncSecrets
from voidbox.sdk.snapshots import SnapshotInfo

_START_S = 300.0  # for a start, unless said otherwise
_STOP_SLACK_S = 30.0
_POLL_S = 0.5
_PATHS = ("image", "kernel")

# Servers that this program speaks to: their connections are used again.
_servers: dict[address.Address, Server] = {}


def server_of(remote: str | None) -> Server:
    """Return the server that is meant; see address.find.

    Raises:
        ConfigError: it is no URL, or there is no key.
    """
    found = address.find(remote)
    if found is None:
        raise ConfigError(f"set {address.REMOTE} to the URL of a server")
    return _servers.setdefault(found, Server(found))


def info_of(values: Mapping[str, Any]) -> SandboxInfo:
    """Return what a server says of a sandbox.

    Raises:
        HostError: it is another version's.
    """
    found: dict[str, Any] = {}
    try:
        for name in SandboxInfo._fields:
            value = values[name]
            found[name] = tuple(value) if isinstance(value, list) else value
    except (KeyError, TypeError):
        raise HostError("the server's voidbox is of another version than this one") from None
    return SandboxInfo(**found)


class _NoSecrets(AsyncSecrets):
    def __init__(self) -> None:
        pass

    async def _ask(self, op: str, request_timeout: float | None, **values: object) -> NoReturn:
        raise ConfigError("a server's sandbox has no secrets that stay outside of it")


class RemoteSandbox(AsyncSandbox):
    """A sandbox of a server; see AsyncSandbox.create(remote=…)."""

    def __init__(self, server: Server, held: Mapping[str, Any]) -> None:
        """Use AsyncSandbox.create() or connect()."""
        info = info_of(held["info"])
        self._server = server
        self._id, self._name = info.sandbox_id, info.name
        self._far_end = RemoteEndpoint(server, self._id, self._name)
        agent = AsyncAgent(self._far_end, bytes.fromhex(held["secret"]), log=self._log)
        self._session = Session(agent, self._name, held["envs"], info.workdir, info.user)
        self.commands = AsyncCommands(self._session)
        self.files = AsyncFiles(self._session)
        self.pty = AsyncPty(self._session)
        self.ports = AsyncPorts(self._control, self._session, self.files)
        self.secrets = _NoSecrets()

    # Making and finding.

    @classmethod
    async def make(
        cls,
        remote: str | None,
        options: CreateOptions,
        unusual: Mapping[str, bool],
        limit_s: float | None,
    ) -> RemoteSandbox:
        """Start one.

        Args:
            options: all of create()'s.
            unusual: more of its arguments, which no server carries unless they are False.
        Raises:
            ConfigError: an option makes no sense, or is for this machine alone.
        """
        fields: dict[str, Any] = {name: True for name, is_set in unusual.items() if is_set}
        for name, value in options.items():
            if value != DEFAULTS[name]:  # type: ignore[literal-required]
                fields[name] = _plain(name, value)
        server = server_of(remote)
        held = await _ask(server, "POST", "/sandboxes", fields, limit_s or _START_S)
        return cls(server, held)

    @classmethod
    async def find(cls, remote: str | None, key: str, auto_resume: bool) -> RemoteSandbox:
        """Find one by its ID, the beginning of one, or its name."""
        server, fields = server_of(remote), {"auto_resume": auto_resume}
        return cls(server, await _ask(server, "POST", sandbox_path(key, "/connect"), fields))

    @classmethod
    async def all(cls, remote: str | None) -> builtins.list[SandboxInfo]:
        """List those that the key sees, oldest first."""
        answer = await _ask(server_of(remote), "GET", "/sandboxes")
        return [info_of(values) for values in answer["sandboxes"]]

    # The machine.

    async def _ask(
        self,
        method: str,
        rest: str = "",
        fields: Mapping[str, Any] | None = None,
        timeout_s: float = 60.0,
    ) -> Any:
        return await _ask(self._server, method, sandbox_path(self._id, rest), fields, timeout_s)

    async def _control(
        self, op: str, request_timeout: float | None = None, **values: object
    ) -> dict[str, object]:
        limit_s = self._session.seconds(request_timeout)
        self._session.check_not_ended()
        given = {name: value for name, value in values.items() if value is not None}
        answer: dict[str, object] = await self._ask("POST", f"/control/{op}", given, limit_s)
        return answer

    async def get_info(self) -> SandboxInfo:
        """Return what it is and how it is. Once it has ended, the server knows nothing of it."""
        self._session.check_not_ended()
        return info_of((await self._ask("GET"))["info"])

    async def is_running(self) -> bool:
        """Whether it has not ended."""
        try:
            return (await self.get_info()).is_running
        except (Missing, AgentError):
            return False

    async def resume(self, *, request_timeout: float | None = None) -> None:
        """Let it go on after pause(), or wake it after suspend()."""
        limit_s = request_timeout or _START_S
        await self._ask("POST", "/connect", {"auto_resume": True}, limit_s)

    async def suspend(self, *, request_timeout: float | None = None) -> None:
        """Bring it to the server's disk; resume() or connect() wakes it."""
        limit_s = request_timeout or snapshots.SNAPSHOT_S
        await self._ask("POST", "/suspend", {}, limit_s)
        await self._disconnect()

    async def snapshot(
        self, name: str | None = None, *, request_timeout: float | None = None
    ) -> SnapshotInfo:
        """Save it as it is now, on the server; create(snapshot=…, remote=…) restores it."""
        limit_s = request_timeout or snapshots.SNAPSHOT_S
        answer = await self._ask("POST", "/snapshot", {"name": name or ""}, limit_s)
        try:
            return SnapshotInfo(**answer["snapshot"])
        except (KeyError, TypeError):
            raise HostError("the server's voidbox is of another version than this one") from None

    async def fork(
        self, count: int = 1, *, request_timeout: float | None = None
    ) -> builtins.list[Any]:
        """Make so many sandboxes that go on from where this one is; see AsyncSandbox.fork()."""
        snapshots.check_count(count)
        limit_s = request_timeout or snapshots.SNAPSHOT_S
        answer = await self._ask("POST", "/fork", {"count": count}, limit_s)
        return [
            HostError(str(one["error"].get("message")))
            if "error" in one
            else type(self)(self._server, one)
            for one in answer["forks"]
        ]

    async def logs(
        self, *, follow: bool = False, source: Literal["console", "voidbox", "http"] = "console"
    ) -> AsyncGenerator[str, None]:
        """Yield the lines of a log; see AsyncSandbox.logs()."""
        query = {"source": source, "follow": "true" if follow else "false"}
        pieces = self._server.lines(sandbox_path(self._id, "/logs"), query)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        rest = ""
        try:
            while piece := await asyncio.to_thread(next, pieces, b""):
                *lines, rest = (rest + decoder.decode(piece)).split("\n")
                for line in lines:
                    yield line
        finally:
            with contextlib.suppress(ValueError):  # a thread still waits for the next one
                pieces.close()  # type: ignore[attr-defined]

    async def sync_back(self, **_: object) -> NoReturn:
        """A server's sandbox has no workspace of this machine."""
        raise ConfigError("a server's sandbox has no workspace: files.download() brings files here")

    # Its end.

    async def stop(self, timeout: float = STOP_S) -> None:
        """End it politely, and wait. The server keeps nothing of it."""
        check_seconds("timeout", timeout)
        with contextlib.suppress(Missing):  # it has ended already
            await self._ask("POST", "/stop", {"timeout": timeout}, timeout + _STOP_SLACK_S)
        self._end("stop()")
        await self._disconnect()

    async def wait(self, timeout: float | None = None) -> SandboxInfo:
        """Wait until it has ended; return what it was last seen as."""
        limit_s = None if timeout is None else check_seconds("timeout", timeout)
        info = await self.get_info()
        try:
            async with asyncio.timeout(limit_s):
                while info.is_running:
                    await asyncio.sleep(_POLL_S)
                    try:
                        info = await self.get_info()
                    except Missing:
                        return info._replace(state="stopped")
        except TimeoutError:
            raise SandboxTimeout(
                f"{self._name} still runs after {timeout:g} s of waiting"
            ) from None
        return info

    async def kill(self) -> bool:
        """End it at once, and wait for that; False if it had ended. Nothing of it is left."""
        is_there = True
        try:
            await self._ask("DELETE")
        except Missing:
            is_there = False
        finally:
            await self._disconnect()
        self._end("kill(), or with its block")
        return is_there

    def _end(self, by: str) -> None:
        end = f"{self._name} has been ended by this program: by {by}"
        self._session.ended = self._far_end.own_end = end

    async def __aexit__(self, *_: object) -> None:
        await self.kill()


def _plain(name: str, value: Any) -> Any:
    """Return an option as JSON has it.

    Raises:
        ConfigError: it is a file of this machine, or makes no sense anywhere.
    """
    if name in _PATHS and isinstance(value, os.PathLike):
        raise ConfigError(f"{name}={os.fspath(value)!r}: a server takes images by their names")
    if isinstance(value, SnapshotInfo):
        return value.snapshot_id
    if isinstance(value, Mapping):
        return dict(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    try:
        return [str(one) for one in value]
    except TypeError:
        raise ConfigError(f"{name}={value!r} cannot be sent to a server") from None


async def _ask(
    server: Server,
    method: str,
    path: str,
    fields: Mapping[str, Any] | None = None,
    timeout_s: float = 60.0,
) -> Any:
    ask: Callable[..., Any] = server.request
    return await asyncio.to_thread(ask, method, path, fields, timeout_s)
