"""Sandbox: AsyncSandbox for programs that block.

    with Sandbox.create() as sandbox:
        print(sandbox.commands.run("python3 -c 'print(6 * 7)'").stdout)

The coroutines of the asynchronous API run on one event loop for all sandboxes; see loop_thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

from voidbox.sdk.aio import AsyncSandbox
from voidbox.sdk.command_result import CommandResult
from voidbox.sdk.commands import Stdin
from voidbox.sdk.facade import Facade, blocking
from voidbox.sdk.info import SandboxInfo
from voidbox.sdk.loop_thread import run
from voidbox.sdk.ports import AsyncPorts
from voidbox.sdk.sync_commands import CommandHandle, Commands, OnText, Pty
from voidbox.sdk.sync_files import Files

Self = TypeVar("Self", bound="Sandbox")


class Ports(Facade[AsyncPorts]):
    """Publishes ports while the sandbox runs; see AsyncPorts."""

    add = blocking(AsyncPorts.add)
    remove = blocking(AsyncPorts.remove)
    list = blocking(AsyncPorts.list)


class Sandbox(Facade[AsyncSandbox]):
    """A sandbox: made by create(), found by connect(). As a context manager it ends by kill().

    See AsyncSandbox, which all of this is the blocking form of.

    Attributes:
        commands: runs commands.
        files: reads, writes, copies and watches files.
        pty: runs programs on terminals.
        ports: publishes the guest's ports on the host.
    """

    def __init__(self, core: AsyncSandbox) -> None:
        """Use create() or connect()."""
        super().__init__(core)
        self.commands = Commands(core.commands)
        self.files = Files(core.files)
        self.pty = Pty(core.pty)
        self.ports = Ports(core.ports)

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

    @classmethod
    def create(
        cls: type[Self],
        *,
        kernel: str | os.PathLike[str] | None = None,
        image: str | os.PathLike[str] | None = None,
        disk_size: int | str | None = None,
        memory: int | str | None = None,
        cpus: int = 1,
        envs: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
        name: str | None = None,
        workdir: str | None = None,
        user: str | None = None,
        disks: Sequence[str] | None = None,
        allow: Sequence[str] | None = None,
        deny: Sequence[str] | None = None,
        allow_host_ports: Sequence[int] | None = None,
        publish: Sequence[str] | None = None,
        rate_bytes_s: int | None = None,
        pcap: str | None = None,
        block_network: bool = False,
        outbound_domain_allowlist: Sequence[str] | None = None,
        vsock: Literal["unix", "vhost", "none"] = "unix",
        team: str | None = None,
        cmdline: str | None = None,
        workspace: str | os.PathLike[str] | None = None,
        workspace_mode: Literal["copy", "ro", "rw"] = "copy",
        detached: bool = False,
        keep: bool = False,
        request_timeout: float | None = None,
        state_folder: str | None = None,
    ) -> Self:
        """Start a sandbox; return once its agent answers. See AsyncSandbox.create()."""
        core = AsyncSandbox.create(
            kernel=kernel,
            image=image,
            disk_size=disk_size,
            memory=memory,
            cpus=cpus,
            envs=envs,
            metadata=metadata,
            timeout=timeout,
            name=name,
            workdir=workdir,
            user=user,
            allow=allow,
            deny=deny,
            allow_host_ports=allow_host_ports,
            publish=publish,
            rate_bytes_s=rate_bytes_s,
            pcap=pcap,
            block_network=block_network,
            outbound_domain_allowlist=outbound_domain_allowlist,
            vsock=vsock,
            team=team,
            cmdline=cmdline,
            disks=disks,
            workspace=workspace,
            workspace_mode=workspace_mode,
            detached=detached,
            keep=keep,
            request_timeout=request_timeout,
            state_folder=state_folder,
        )
        return cls(run(core))

    @classmethod
    def connect(cls: type[Self], id_or_name: str, *, state_folder: str | None = None) -> Self:
        """Find a sandbox that runs; see AsyncSandbox.connect()."""
        return cls(run(AsyncSandbox.connect(id_or_name, state_folder=state_folder)))

    @staticmethod
    def list(*, state_folder: str | None = None) -> list[SandboxInfo]:
        """List all sandboxes; see AsyncSandbox.list()."""
        return run(AsyncSandbox.list(state_folder=state_folder))

    @overload
    def exec(
        self,
        *argv: str,
        cwd: str | None = None,
        workdir: str | None = None,
        user: str | None = None,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        timeout: float | None = None,
        background: Literal[False] = False,
        stdin: Stdin = False,
        check: bool = False,
        request_timeout: float | None = None,
    ) -> CommandResult: ...

    @overload
    def exec(
        self,
        *argv: str,
        cwd: str | None = None,
        workdir: str | None = None,
        user: str | None = None,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        timeout: float | None = None,
        background: Literal[True],
        stdin: Stdin = False,
        check: bool = False,
        request_timeout: float | None = None,
    ) -> CommandHandle: ...

    def exec(
        self, *argv: str, cwd: str | None = None, workdir: str | None = None, **options: Any
    ) -> CommandResult | CommandHandle:
        """Run a program with these arguments, without a shell; see AsyncSandbox.exec()."""
        found: CommandResult | CommandHandle = self.commands.run(
            [*argv], cwd=cwd or workdir, **options
        )
        return found

    def logs(
        self, *, follow: bool = False, source: Literal["console", "voidbox"] = "console"
    ) -> Iterator[str]:
        """Yield the lines of a log; see AsyncSandbox.logs()."""
        lines = self._core.logs(follow=follow, source=source)  # asyncio closes it once it is left
        while (line := run(_next(lines))) is not None:
            yield line

    get_info = blocking(AsyncSandbox.get_info)
    get_metrics = blocking(AsyncSandbox.get_metrics)
    is_running = blocking(AsyncSandbox.is_running)
    set_timeout = blocking(AsyncSandbox.set_timeout)
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
