"""The commands of one sandbox: followed by the server, so that any number of clients can follow.

A command is started with the agent's `keep`: its output waits for us and none is lost, and should
this server be killed, it goes on in the background, where the next one finds it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

from voidbox.agent import protocol
from voidbox.agent.aio import AsyncCall
from voidbox.agent.call import RequestFailed
from voidbox.agent.client import Exit, parse_exit
from voidbox.agent.core import Data
from voidbox.errors import AgentError, VoidboxError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.session import Session
from voidbox.sdk.command_handle import send_signal
from voidbox.sdk.commands import AsyncCommands
from voidbox.serve.envd.viewers import Viewer
from voidbox.serve.errors import ConnectError, SandboxGone

_ENDED_KEPT = 64
_WRITE_S = 60.0  # a command that reads nothing for so long


class Config(NamedTuple):
    """What a client asked for; of a command that was found, what the agent says of it."""

    cmd: str
    args: tuple[str, ...]
    envs: dict[str, str]
    cwd: str | None


class Command:
    """A command that is followed. Thread: the event loop's.

    Attributes:
        end: how it ended; None while it runs, or once the sandbox is gone.
    """

    def __init__(
        self, call: AsyncCall, pid: int, config: Config, tag: str | None, is_pty: bool
    ) -> None:
        self.pid = pid
        self.config = config
        self.tag = tag
        self.is_pty = is_pty
        self.end: Exit | None = None
        self._call = call
        self._viewers: set[Viewer] = set()
        self._pump = asyncio.create_task(self._follow())

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        return self._pump.done()

    async def _follow(self) -> None:
        try:
            while events := await self._call.batch():
                for event in events:
                    if isinstance(event, Data):
                        await self._tell(event.stream, event.data)
            self.end = parse_exit(await self._call.result())
            for viewer in self._viewers:
                viewer.end()
        except AgentError:  # the sandbox has ended, or is paused
            pass
        finally:
            for viewer in self._viewers:
                viewer.lose()

    async def _tell(self, stream: int, data: bytes) -> None:
        """Give a piece to all; where nobody is, it is dropped."""
        for viewer in list(self._viewers):
            await viewer.put((stream, data))

    def when_over(self, action: Callable[[], object]) -> None:
        """Do something once nothing more comes of it."""
        self._pump.add_done_callback(lambda pump: action())

    def view(self) -> Viewer:
        """Follow it from now on; leave() ends that."""
        viewer = Viewer()
        self._viewers.add(viewer)
        if self._pump.done():
            viewer.end(None if self.end is not None else SandboxGone())
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Follow it no longer. Idempotent."""
        self._viewers.discard(viewer)
        viewer.end()

    async def write(self, data: bytes) -> None:
        """Write to its standard input, or type it."""
        view = memoryview(data)
        for start in range(0, len(view), protocol.CHUNK_BYTES):
            await self._call.write(view[start : start + protocol.CHUNK_BYTES], _WRITE_S)

    def close_stdin(self) -> None:
        """Say that no more input follows."""
        self._call.end_input()

    def close(self) -> None:
        """Follow it no longer, for all."""
        self._pump.cancel()


class Commands:
    """All commands of one sandbox."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._commands: dict[int, Command] = {}
        self._ended: deque[int] = deque()
        self._finding: dict[int, asyncio.Task[Command]] = {}

    async def start(self, config: Config, values: dict[str, Any], tag: str | None) -> Command:
        """Start a command.

        Args:
            values: of EXEC; see guest_agent/commands.py.
        Raises:
            ConnectError: it cannot be executed.
            RequestFailed: no such folder, say.
            AgentError: the sandbox is gone.
        """
        session = self._session
        limit_s = session.limit_s(None)
        values = {**values, "keep": True}
        call = await session.agent.call(protocol.EXEC, values, "a client's command", limit_s)
        try:
            first = await call.next(limit_s)
            if first is None:
                end = parse_exit(await call.result())
                raise ConnectError("not_found" if end.exit_code == 127 else "internal", end.error)
            pid = None if isinstance(first, Data) else first.values.get("pid")
            if not isinstance(pid, int):
                raise AgentError("the guest's agent gave no process id")
        except BaseException:
            call.cancel()
            raise
        return self._keep(Command(call, pid, config, tag, "rows" in values))

    def _keep(self, command: Command) -> Command:
        self._commands[command.pid] = command
        self._ended = deque(pid for pid in self._ended if pid != command.pid)
        for pid in [p for p, c in self._commands.items() if c.is_over and p not in self._ended]:
            self._ended.append(pid)
        while len(self._ended) > _ENDED_KEPT:
            self._commands.pop(self._ended.popleft(), None)
        return command

    async def find(self, pid: int) -> Command:
        """Return a command, also one that an earlier server started.

        Raises:
            ConnectError: there is none.
        """
        known = self._commands.get(pid)
        if known is not None and not (known.is_over and known.end is None):
            return known
        task = self._finding.get(pid)
        if task is None:
            task = self._finding[pid] = asyncio.create_task(self._attach(pid))
            task.add_done_callback(lambda task: self._found(pid, task))
        return await asyncio.shield(task)

    def _found(self, pid: int, task: asyncio.Task[Command]) -> None:
        self._finding.pop(pid, None)
        if not task.cancelled():
            task.exception()  # whoever asked has it

    async def _attach(self, pid: int) -> Command:
        info = next((one for one in await self.list() if one["pid"] == pid), None)
        if info is None:
            raise ConnectError("not_found", f"process with pid {pid} not found")
        limit_s = self._session.limit_s(None)
        what = f"command {pid}"
        call = await self._session.agent.call(protocol.ATTACH, {"pid": pid}, what, limit_s)
        config = info["config"]
        kept = Config(config["cmd"], tuple(config["args"]), {}, config["cwd"])
        return self._keep(Command(call, pid, kept, None, False))

    def find_tag(self, tag: str) -> Command:
        """Return the command that runs by a tag.

        Raises:
            ConnectError: there is none.
        """
        for command in self._commands.values():
            if command.tag == tag and not command.is_over:
                return command
        raise ConnectError("not_found", f"process with tag '{tag[:80]}' not found")

    async def list(self) -> list[dict[str, Any]]:
        """Return what runs, as Process.List says it."""
        found = []
        for info in await AsyncCommands(self._session).list():
            if not info.is_running:
                continue
            known = self._commands.get(info.pid)
            as_started = Config(info.argv[0] if info.argv else "", info.argv[1:], {}, info.cwd)
            config = known.config if known is not None else as_started
            item: dict[str, Any] = {
                "pid": info.pid,
                "config": {
                    "cmd": config.cmd,
                    "args": list(config.args),
                    "envs": config.envs,
                    "cwd": config.cwd or info.cwd,
                },
            }
            if known is not None and known.tag:
                item["tag"] = known.tag
            found.append(item)
        return found

    async def signal(self, pid: int, number: int) -> None:
        """Send a signal to a command and its process group.

        Raises:
            ConnectError: it does not run.
        """
        if not await send_signal(self._session, pid, number, None):
            raise ConnectError("not_found", f"process with pid {pid} not found")

    async def resize(self, pid: int, rows: int, columns: int) -> None:
        """Give a command's terminal another size.

        Raises:
            RequestFailed: there is no such command.
        """
        values = {"pid": pid, "rows": rows, "columns": columns}
        await self._session.agent.request(
            protocol.RESIZE, values, "resize", self._session.limit_s(None)
        )

    def close(self) -> None:
        """Follow none of them any longer; they go on."""
        for command in self._commands.values():
            command.close()
        self._commands.clear()


async def quietly_kill(commands: Commands, pid: int) -> None:
    """End a command at once, if that is still possible."""
    with contextlib.suppress(VoidboxError, RequestFailed, ConnectError):
        await commands.signal(pid, 9)
