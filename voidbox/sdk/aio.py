"""AsyncSandbox: a virtual machine that runs what one does not trust. Sandbox is the same, blocking.

async with await AsyncSandbox.create() as sandbox:
    result = await sandbox.commands.run("python3 -c 'print(6 * 7)'")
    print(result.stdout)
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Unpack, overload

from voidbox.agent import protocol
from voidbox.agent.aio import AsyncAgent
from voidbox.errors import AgentError, ConfigError, SandboxTimeout, VoidboxError
from voidbox.sandbox.control import ControlClient
from voidbox.sandbox.endpoint import StoredEndpoint
from voidbox.sandbox.session import Session, check_seconds
from voidbox.sandbox.snapshots import restored
from voidbox.sandbox.snapshots.shelf import Shelf, Snapshot
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.volumes.spec import writes_named
from voidbox.sandbox.workspace.copying import LIMIT_BYTES, WorkspaceResult
from voidbox.sandbox.workspace.stored import StoredWorkspace
from voidbox.sdk import draft, parent_pipe, snapshots
from voidbox.sdk.command_handle import AsyncCommandHandle
from voidbox.sdk.command_result import CommandResult
from voidbox.sdk.commands import AsyncCommands, ExecOptions
from voidbox.sdk.files import AsyncFiles
from voidbox.sdk.info import SandboxInfo, SandboxMetrics
from voidbox.sdk.launching import KILL_S, Launch, read_truly, wait_gone, wait_or_kill
from voidbox.sdk.log_reader import read_lines
from voidbox.sdk.ports import AsyncPorts
from voidbox.sdk.pty import AsyncPty
from voidbox.sdk.snapshots import SnapshotInfo

STOP_S = 10.0
_STARTS_AT_ONCE = 8
_STOP_GRACE_S = 10.0  # for the power button, the kill and the last words

_logger = logging.getLogger("voidbox")

Self = TypeVar("Self", bound="AsyncSandbox")


class AsyncSandbox:
    """A sandbox: made by create(), found by connect(). As a context manager it ends by kill().

    Three time limits, never to be confused: the sandbox's `timeout`, given to create(); a
    command's `timeout`, given to commands.run(); and `request_timeout`, how long one request may
    take. All are in seconds.

    An operation on a sandbox that has ended raises AgentError at once, with how it ended and its
    console's last lines.

    Attributes:
        commands: runs commands.
        files: reads, writes, copies and watches files.
        pty: runs programs on terminals.
        ports: publishes the guest's ports on the host.
    """

    def __init__(self, store: Store, record: SandboxRecord, keep: bool) -> None:
        """Use create() or connect()."""
        self._store = store
        self._id = record.id
        self._name = record.name
        self._keeps = keep
        self._writes_volumes = writes_named(record.volumes)
        self._endpoint = StoredEndpoint(store, record)
        agent = AsyncAgent(self._endpoint, store.secret(record.id), log=self._log)
        self._session = Session(
            agent, record.name, store.envs(record), record.workdir, record.user, self._standstill,
            draft.shared_folders(record),
        )  # fmt: skip
        self.commands = AsyncCommands(self._session)
        self.files = AsyncFiles(self._session)
        self.pty = AsyncPty(self._session)
        self.ports = AsyncPorts(self._control, self._session, self.files)
        self._workspace = StoredWorkspace(store, record, self._session)

    def _log(self, line: str) -> None:
        _logger.info("%s: %s", self._name, line)

    def _standstill(self) -> tuple[bool, float]:
        with contextlib.suppress(VoidboxError):  # gone, say: whoever asks it learns how
            record = self._store.peek(self._id)
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

    # Making and finding.

    @classmethod
    async def create(
        cls: type[Self],
        *,
        kernel: str | os.PathLike[str] | None = None,
        image: str | os.PathLike[str] | None = None,
        disk_size: int | str | None = None,
        memory: int | str | None = None,
        cpus: int = 1,
        envs: Mapping[str, str] | None = None,
        secret_envs: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
        idle_timeout: float | None = None,
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
        workspace_cache: Literal["auto", "always", "none"] = "auto",
        cpu_limit: float | None = None,
        disk_bytes_s: int | None = None,
        disk_ops_s: int | None = None,
        jail: Literal["default", "strict", "off"] | None = None,
        volumes: Sequence[str] | None = None,
        snapshot: str | SnapshotInfo | None = None,
        cold: bool = False,
        detached: bool = False,
        keep: bool = False,
        request_timeout: float | None = None,
        state_folder: str | None = None,
    ) -> Self:
        """Start a sandbox; return once its agent answers.

        Args:
            kernel: a file; the one that was built last by default.
            image: the name of an image, see `voidbox image`; or a file, if it is a Path, or begins
                with /, ./, ../ or ~, or ends in .cpio. voidbox's own by default.
            disk_size: of the disk that takes what is written in the sandbox: MiB as a number, or
                text; 0: its memory does. 8 GiB for images, memory for voidbox's own.
            memory: MiB as a number, or text such as "512M".
            cpus: how many.
            envs: variables of every command.
            secret_envs: more of them, whose values no record, log or list shows.
            metadata: text to text, for your own use; see get_info().
            timeout: the sandbox is ended after so many seconds.
            idle_timeout: it is stopped when no request was made, and no command has run, for so
                many seconds.
            name: another than the one it is given.
            workdir: where commands run and relative paths begin; the image's, or /workspace.
            user: who commands and files belong to; the image's, or "sandbox" in voidbox's own.
            disks: raw images or block devices, as /dev/vda and on, each written as
                PATH[,ro][,overlay=FILE][,serial=TEXT]; see `voidbox run --help`.
            allow: what the guest may reach: names, *.names, networks, each with :PORT if you
                want. By default all but this host and metadata services: private networks too.
            deny: what it may not.
            allow_host_ports: ports of this host's loopback that it may reach.
            publish: its ports that this host offers, as "8080:80".
            rate_bytes_s: the most that passes its network.
            pcap: a file for all frames.
            block_network: no network at all.
            outbound_domain_allowlist: the same as `allow`; an empty list means nothing.
            vsock: how this host reaches its agent; "none" for a slow serial line.
            team: sandboxes of one team can send each other messages.
            cmdline: the kernel's, in place of the default.
            workspace: a folder of this host, which the guest has at /workspace.
            workspace_mode: "copy": it is copied in, and sync_back(), stop() and the end of the
                context bring back what has changed; "ro", "rw": it is shared as it is, live.
            workspace_cache: of one that is shared live: "auto": the guest sees the host's changes
                within a second; "always": nobody but the guest changes it, which is fastest;
                "none": the guest asks each time.
            cpu_limit: CPUs of this host that its CPUs use together, such as 0.5.
            disk_bytes_s, disk_ops_s: what each disk does a second. See set_limits().
            jail: how far its process shuts itself in: "default": as far as this host can,
                "strict": all the way, or it does not start; "off". None: $VOIDBOX_JAIL, or default.
            volumes: folders of this host, live, and named volumes, each as SOURCE:TARGET[:ro]. A
                source with a / in it is a folder; see voidbox.volumes.
            snapshot: its name or ID, or what snapshot() gave: the sandbox goes on from there,
                instead of booting, as one of its own. What the machine is made of cannot be given
                then; published ports are on other ports of this host unless `publish` says which.
            cold: boot, even if there is a template: the machine of an earlier create() of the same
                kind, as it was before any command.
            detached: it goes on when this process ends.
            keep: kill() leaves its record and its logs.
            request_timeout: for its start.
            state_folder: in place of the user's own.
        Raises:
            ConfigError: an argument makes no sense.
            HostError: this host cannot run it.
            AgentError: it crashed; the message has its console's last lines.
            SandboxTimeout: its agent did not answer in time.
        """
        limit_s = (
            None if request_timeout is None else check_seconds("request_timeout", request_timeout)
        )
        store = await asyncio.to_thread(Store, state_folder)
        net_options: dict[str, Any] = {
            "allow": allow,
            "deny": deny,
            "allow_host_ports": allow_host_ports,
            "rate_bytes_s": rate_bytes_s,
            "pcap": pcap,
            "block_network": block_network,
            "outbound_domain_allowlist": outbound_domain_allowlist,
        }
        if snapshot is not None:
            fixed = {
                "kernel": kernel,
                "image": image,
                "disk_size": disk_size,
                "memory": memory,
                "cpus": cpus if cpus != 1 else None,
                "disks": disks,
                "cmdline": cmdline,
                "vsock": vsock if vsock != "unix" else None,
                "volumes": volumes,
            }
            record = snapshots.make_record(
                (await asyncio.to_thread(snapshots.find, store, snapshot)).record,
                fixed=_without_none(fixed),
                net_given=_without_none({**net_options, "block_network": block_network or None}),
                publish=publish,
                envs=envs,
                secret_envs=secret_envs,
                metadata=metadata,
                timeout=timeout,
                idle_timeout=idle_timeout,
                name=name,
                workdir=workdir,
                user=user,
                team=team,
                workspace=workspace,
                workspace_mode=workspace_mode,
                is_owned=not detached,
            )
            return await cls._launch(store, record, detached, keep, limit_s, secret_envs)
        record = draft.make_record(
            kernel=kernel,
            image=image,
            disk_size=disk_size,
            memory=memory,
            cpus=cpus,
            envs=envs,
            secret_envs=secret_envs,
            metadata=metadata,
            timeout=timeout,
            idle_timeout=idle_timeout,
            name=name,
            workdir=workdir,
            user=user,
            net=draft.make_net(publish=publish, **net_options),
            vsock=vsock,
            team=team,
            cmdline=cmdline,
            disks=disks,
            workspace=workspace,
            workspace_mode=workspace_mode,
            workspace_cache=workspace_cache,
            jail=jail,
            limits={"cpu": cpu_limit, "disk_bytes_s": disk_bytes_s, "disk_ops_s": disk_ops_s},
            volumes=volumes,
            is_owned=not detached,
            state_folder=state_folder,
        )._replace(is_cold=cold)
        return await cls._launch(store, record, detached, keep, limit_s, secret_envs)

    @classmethod
    async def _launch(
        cls: type[Self],
        store: Store,
        record: SandboxRecord,
        detached: bool,
        keep: bool,
        limit_s: float | None,
        secret_envs: Mapping[str, str] | None = None,
    ) -> Self:
        """Start the sandbox of a record; nothing of it is left if that fails."""
        parent_fd = None if detached else parent_pipe.reading_end()
        launch = Launch(store, record, parent_fd, secret_envs)
        try:
            async with asyncio.timeout(limit_s):
                record = await launch.run()
        except TimeoutError:
            raise SandboxTimeout(f"the sandbox did not start within {limit_s:g} s") from None
        sandbox = cls(store, record, keep)
        try:
            await sandbox._workspace.copy_in(sandbox._session.limit_s(None))
        except BaseException:
            await sandbox.kill()
            raise
        return sandbox

    @classmethod
    async def connect(
        cls: type[Self],
        id_or_name: str,
        *,
        auto_resume: bool = True,
        state_folder: str | None = None,
    ) -> Self:
        """Find a sandbox that runs, by its ID, the beginning of one, or its name.

        It belongs to whoever made it: leave it by close(), not as a context manager.

        Args:
            auto_resume: wake one that is suspended; else resume() does.
        Raises:
            ConfigError: there is none.
            AgentError: it has ended.
        """
        if not isinstance(id_or_name, str):
            raise ConfigError(f"{id_or_name!r} is no sandbox's ID or name: give text")
        store = await asyncio.to_thread(Store, state_folder)
        record = await asyncio.to_thread(store.read, id_or_name)
        sandbox = cls(store, record, keep=True)
        if record.state is State.SUSPENDED:
            if auto_resume:
                await snapshots.wake(store, record.id)
            return sandbox
        if record.state.is_final or not await asyncio.to_thread(store.is_alive, record.id):
            raise AgentError(await asyncio.to_thread(sandbox._endpoint.explain_end))
        return sandbox

    @staticmethod
    async def list(*, state_folder: str | None = None) -> list[SandboxInfo]:
        """List all sandboxes that are not removed, oldest first; also those that have ended."""
        store = await asyncio.to_thread(Store, state_folder)
        await asyncio.to_thread(store.clean)
        return [SandboxInfo.of(record) for record in await asyncio.to_thread(store.list)]

    # Commands.

    @overload
    async def exec(
        self, *argv: str, background: Literal[False] = False, **options: Unpack[ExecOptions]
    ) -> CommandResult: ...

    @overload
    async def exec(
        self, *argv: str, background: Literal[True], **options: Unpack[ExecOptions]
    ) -> AsyncCommandHandle: ...

    async def exec(
        self, *argv: str, background: bool = False, **options: Unpack[ExecOptions]
    ) -> CommandResult | AsyncCommandHandle:
        """Run a program with these arguments, without a shell; see commands.run().

        Args:
            cwd, workdir: two spellings of the same.
        """
        options["cwd"] = options.pop("workdir", None) or options.get("cwd")
        run: Callable[..., Awaitable[CommandResult | AsyncCommandHandle]] = self.commands.run
        return await run(builtins.list(argv), background=background, **options)

    # The machine.

    async def _control(
        self, op: str, request_timeout: float | None = None, **values: object
    ) -> dict[str, object]:
        """Ask the sandbox's process."""
        limit_s = self._session.seconds(request_timeout)
        if op != "kill":
            self._session.check_not_ended()
        client = ControlClient(self._store.path(self._id, "control.sock"), limit_s)
        try:
            return await asyncio.to_thread(client.request, op, **values)
        except AgentError as error:
            story = await asyncio.to_thread(self._endpoint.explain_end)
            raise AgentError(f"{error}\n{story}" if story else str(error)) from error

    async def get_info(self) -> SandboxInfo:
        """Return what it is and how it is; also once it has ended."""
        try:
            return SandboxInfo.of(await asyncio.to_thread(read_truly, self._store, self._id))
        except ConfigError:  # it has been removed
            self._session.check_not_ended()
            raise

    async def is_running(self) -> bool:
        """Whether it has not ended."""
        return await asyncio.to_thread(self._store.is_alive, self._id)

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
                "net_bytes_s"; None ends one. What is not named stays.
        """
        answer = await self._control("limit", request_timeout, **(limits or {}))
        found = answer.get("limits")
        return dict(found) if isinstance(found, dict) else {}

    async def pause(self, *, request_timeout: float | None = None) -> None:
        """Halt it: its CPUs stand still, its memory and connections stay."""
        await self._control("pause", request_timeout)

    async def resume(self, *, request_timeout: float | None = None) -> None:
        """Let it go on after pause(), or wake it after suspend()."""
        record = await asyncio.to_thread(self._store.read, self._id)
        if record.state is State.SUSPENDED:
            await snapshots.wake(self._store, self._id)
        else:
            await self._control("resume", request_timeout)

    # Copies of it.

    async def suspend(self, *, request_timeout: float | None = None) -> None:
        """Bring it to the disk, where it needs no memory; resume() or connect() wakes it.

        It is the same then: its processes, files, CID, and published ports, and the clock is right.
        Connections through its network have ended, and so have those of programs to it; commands
        that ran can be found by commands.connect(). Its time limit stands still meanwhile, and it
        stays when this program ends.

        Raises:
            ConfigError: it shares a folder live, or something else that cannot be kept.
            HostError: it cannot be written: it goes on.
        """
        await self._control("suspend", request_timeout or snapshots.SNAPSHOT_S)
        await wait_gone(self._store, self._id, None)
        await self._disconnect()

    async def snapshot(
        self, name: str | None = None, *, request_timeout: float | None = None
    ) -> SnapshotInfo:
        """Save it as it is now, memory and disk; it stands still for some milliseconds.

        create(snapshot=…) makes any number of sandboxes of it, each one of its own. What it holds
        includes all secrets in its memory.

        Raises:
            ConfigError: the name is taken, or it shares a folder live, say.
            HostError: it cannot be written: nothing of it is left.
        """
        return SnapshotInfo.of(await self._save(name or "", False, request_timeout))

    async def fork(
        self: Self, count: int = 1, *, request_timeout: float | None = None
    ) -> builtins.list[Self | Exception]:
        """Make so many sandboxes that go on from where this one is, which goes on too.

        Each has its own random numbers, names, disk, and ports. They end as this one does: with
        their context, and with this program.

        Returns:
            The sandboxes; in place of one that could not be started, why.
        Raises:
            ConfigError, HostError: see snapshot().
        """
        snapshots.check_count(count)
        saved = await self._save("", True, request_timeout)
        original = await asyncio.to_thread(self._store.read, self._id)
        record = restored.record_of(saved.record)._replace(is_owned=original.is_owned)
        gate = asyncio.Semaphore(_STARTS_AT_ONCE)

        async def start() -> Self:
            async with gate:
                return await type(self)._launch(
                    self._store, record, not original.is_owned, self._keeps, None
                )

        try:
            found = await asyncio.gather(*(start() for _ in range(count)), return_exceptions=True)
        finally:  # they have it open
            await asyncio.to_thread(Shelf(self._store.folder).remove, saved.record.id)
        return [one if not isinstance(one, BaseException) else _as_error(one) for one in found]

    async def _save(self, name: str, is_fork: bool, request_timeout: float | None) -> Snapshot:
        limit_s = request_timeout or snapshots.SNAPSHOT_S
        answer = await self._control("snapshot", limit_s, name=name, fork=is_fork)
        return await asyncio.to_thread(Shelf(self._store.folder).find, str(answer.get("snapshot")))

    @staticmethod
    async def list_snapshots(*, state_folder: str | None = None) -> builtins.list[SnapshotInfo]:
        """List all snapshots, oldest first."""
        store = await asyncio.to_thread(Store, state_folder)
        return await asyncio.to_thread(snapshots.list_all, store)

    @staticmethod
    async def remove_snapshot(
        snapshot: str | SnapshotInfo, *, state_folder: str | None = None
    ) -> None:
        """Delete a snapshot; sandboxes that were made of it go on.

        Raises:
            ConfigError: there is none.
        """
        store = await asyncio.to_thread(Store, state_folder)
        found = await asyncio.to_thread(snapshots.find, store, snapshot)
        await asyncio.to_thread(Shelf(store.folder).remove, found.record.id)

    async def logs(
        self, *, follow: bool = False, source: Literal["console", "voidbox"] = "console"
    ) -> AsyncGenerator[str, None]:
        """Yield the lines of a log: its console's, or what voidbox said of it.

        They are the guest's words: not fit for a terminal unseen.

        Args:
            follow: wait for more, until it has ended.
        """
        names = {"console": "console.log", "voidbox": "owner.log"}
        if source not in names:
            raise ConfigError(f'source={source!r}: give "console" or "voidbox"')
        path = self._store.path(self._id, names[source])
        async with contextlib.aclosing(read_lines(path, self._is_alive, follow)) as lines:
            async for line in lines:
                yield line

    def _is_alive(self) -> bool:
        return self._store.is_alive(self._id)

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

    # Its end.

    async def stop(self, timeout: float = STOP_S) -> None:
        """End it politely, and wait: its agent is asked, then the power button, then it is killed.

        Before that a workspace is copied back; if that fails, it goes on.

        Its record and its logs stay until kill(), or `voidbox rm`.

        Args:
            timeout: how long its agent has for it.
        """
        check_seconds("timeout", timeout)
        if await self._discard():
            return
        if await self.is_running():
            await self._workspace.settle(self._session.limit_s(None), is_failing=False)
        await self._stop(timeout)
        await self._disconnect()

    async def _stop(self, timeout: float) -> None:
        with contextlib.suppress(AgentError):  # it has ended already
            await self._control("stop", timeout=timeout)
        await wait_or_kill(self._store, self._id, timeout + _STOP_GRACE_S)

    async def wait(self, timeout: float | None = None) -> SandboxInfo:
        """Wait until it has ended; return how.

        Raises:
            SandboxTimeout: it has not after so many seconds.
        """
        limit_s = None if timeout is None else check_seconds("timeout", timeout)
        if self._session.ended:
            return await self.get_info()
        if not await wait_gone(self._store, self._id, limit_s):
            raise SandboxTimeout(f"{self._name} still runs after {timeout:g} s of waiting")
        return await self.get_info()

    async def kill(self) -> bool:
        """End it at once, and wait for that; False if it had ended.

        Nothing of it is left, unless create() was told to keep it, or connect() found it. Its
        workspace is not copied back.
        """
        self._workspace.is_owed = False
        end = f"{self._name} has been ended by this program: by kill(), or with its block"
        self._session.ended = self._endpoint.own_end = end
        try:
            was_alive = await asyncio.to_thread(self._store.is_alive, self._id)
        except ConfigError:
            was_alive = False
        was_alive = was_alive or await self._discard()
        if was_alive:
            with contextlib.suppress(AgentError, SandboxTimeout):
                await self._control("kill")
            await wait_or_kill(self._store, self._id, KILL_S)
        await self._disconnect()  # it may have ended by itself
        if not self._keeps:
            with contextlib.suppress(ConfigError):  # somebody else has removed it
                await asyncio.to_thread(self._store.remove, self._id)
        return was_alive

    async def _discard(self) -> bool:
        """End it if it is suspended; whether it was."""
        try:
            await asyncio.to_thread(self._store.discard_suspended, self._id)
        except ConfigError:
            return False
        return True

    async def terminate(self) -> bool:
        """Another name of kill()."""
        return await self.kill()

    async def _disconnect(self) -> None:
        await asyncio.to_thread(self._session.agent.disconnect)

    async def close(self) -> None:
        """Leave it: only the connection ends, and commands that are not in the background."""
        await asyncio.to_thread(self._session.agent.close)

    async def __aenter__(self: Self) -> Self:
        return self

    async def __aexit__(self, type: object, *_: object) -> None:
        try:
            if not self._session.ended:
                await self._workspace.settle(self._session.limit_s(None), type is not None)
                if self._writes_volumes:  # a kill would be a power cut for their file systems
                    await self._stop(STOP_S)
        finally:
            await self.kill()


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _as_error(error: BaseException) -> Exception:
    """Return what fork() has in place of a sandbox; what is no error of a start is raised."""
    if isinstance(error, Exception):
        return error
    raise error
