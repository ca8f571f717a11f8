"""Sandbox: AsyncSandbox for programs that block.

    with Sandbox.create() as sandbox:
        print(sandbox.commands.run("python3 -c 'print(6 * 7)'").stdout)

The coroutines of the asynchronous API run on one event loop for all sandboxes; see loop_thread.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import Any, Literal, TypeVar, Unpack, overload

from voidbox.sdk.aio import AsyncSandbox
from voidbox.sdk.command_result import CommandResult
from voidbox.sdk.commands import ExecOptions
from voidbox.sdk.facade import Facade, blocking, documented_by, making
from voidbox.sdk.info import SandboxInfo
from voidbox.sdk.loop_thread import run
from voidbox.sdk.ports import AsyncPorts
from voidbox.sdk.secrets import AsyncSecrets
from voidbox.sdk.snapshots import SnapshotInfo
from voidbox.sdk.sync_commands import CommandHandle, Commands, Pty
from voidbox.sdk.sync_files import Files

Self = TypeVar("Self", bound="Sandbox")


class Ports(Facade[AsyncPorts]):
    """Publishes ports while the sandbox runs, and waits for them; see AsyncPorts."""

    add = blocking(AsyncPorts.add)
    remove = blocking(AsyncPorts.remove)
    list = blocking(AsyncPorts.list)
    wait_for = blocking(AsyncPorts.wait_for)


class Secrets(Facade[AsyncSecrets]):
    """Gives the secrets that create() was given other values; see AsyncSecrets."""

    set = blocking(AsyncSecrets.set)
    list = blocking(AsyncSecrets.list)


class Sandbox(Facade[AsyncSandbox]):
    """A sandbox: made by create(), found by connect(). As a context manager it ends by kill().

    See AsyncSandbox, which all of this is the blocking form of.

    Attributes:
        commands: runs commands.
        files: reads, writes, copies and watches files.
        pty: runs programs on terminals.
        ports: publishes the guest's ports on the host.
        secrets: gives secrets other values.
    """

    def __init__(self, core: AsyncSandbox) -> None:
        """Use create() or connect()."""
        super().__init__(core)
        self.commands = Commands(core.commands)
        self.files = Files(core.files)
        self.pty = Pty(core.pty)
        self.ports = Ports(core.ports)
        self.secrets = Secrets(core.secrets)

    @property
    def sandbox_id(self) -> str:
        """Its ID, for connect()."""
        return self._core.sandbox_id

    @property
    def name(self) -> str:
        """Its name, for connect()."""
        return self._core.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.sandbox_id}>"

    create = making(AsyncSandbox.create)
    connect = making(AsyncSandbox.connect)

    @staticmethod
    def list(*, state_folder: str | None = None, remote: str | None = None) -> list[SandboxInfo]:
        """List all sandboxes; see AsyncSandbox.list()."""
        return run(AsyncSandbox.list(state_folder=state_folder, remote=remote))

    @overload
    def exec(
        self, *argv: str, background: Literal[False] = False, **options: Unpack[ExecOptions]
    ) -> CommandResult: ...

    @overload
    def exec(
        self, *argv: str, background: Literal[True], **options: Unpack[ExecOptions]
    ) -> CommandHandle: ...

    @documented_by(AsyncSandbox.exec)
    def exec(
        self, *argv: str, background: bool = False, **options: Unpack[ExecOptions]
    ) -> CommandResult | CommandHandle:
        options["cwd"] = options.pop("workdir", None) or options.get("cwd")
        found: CommandResult | CommandHandle = self.commands.run(
            [*argv],
            background=background,  # type: ignore[call-overload]
            **options,
        )
        return found

    def logs(
        self, *, follow: bool = False, source: Literal["console", "voidbox", "http"] = "console"
    ) -> Iterator[str]:
        """Yield the lines of a log; see AsyncSandbox.logs()."""
        lines = self._core.logs(follow=follow, source=source)  # asyncio closes it once it is left
        while (line := run(_next(lines))) is not None:
            yield line

    def fork(
        self: Self, count: int = 1, *, request_timeout: float | None = None
    ) -> builtins.list[Self | Exception]:
        """Make so many sandboxes that go on from where this one is; see AsyncSandbox.fork()."""
        found = run(self._core.fork(count, request_timeout=request_timeout))
        return [one if isinstance(one, Exception) else type(self)(one) for one in found]

    @staticmethod
    def list_snapshots(*, state_folder: str | None = None) -> builtins.list[SnapshotInfo]:
        """List all snapshots, oldest first."""
        return run(AsyncSandbox.list_snapshots(state_folder=state_folder))

    @staticmethod
    def remove_snapshot(snapshot: str | SnapshotInfo, *, state_folder: str | None = None) -> None:
        """Delete a snapshot; see AsyncSandbox.remove_snapshot()."""
        run(AsyncSandbox.remove_snapshot(snapshot, state_folder=state_folder))

    snapshot = blocking(AsyncSandbox.snapshot)
    suspend = blocking(AsyncSandbox.suspend)
    get_info = blocking(AsyncSandbox.get_info)
    get_metrics = blocking(AsyncSandbox.get_metrics)
    is_running = blocking(AsyncSandbox.is_running)
    set_timeout = blocking(AsyncSandbox.set_timeout)
    set_limits = blocking(AsyncSandbox.set_limits)
    set_memory = blocking(AsyncSandbox.set_memory)
    pause = blocking(AsyncSandbox.pause)
    resume = blocking(AsyncSandbox.resume)
    sync_back = blocking(AsyncSandbox.sync_back)
    stop = blocking(AsyncSandbox.stop)
    wait = blocking(AsyncSandbox.wait)
    kill = blocking(AsyncSandbox.kill)
    terminate = blocking(AsyncSandbox.terminate)
    close = blocking(AsyncSandbox.close)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        run(self._core.__aexit__(*details))


async def _next(lines: Any) -> str | None:
    return await anext(lines, None)
