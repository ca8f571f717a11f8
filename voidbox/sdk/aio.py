"""AsyncSandbox: a virtual machine that runs what one does not trust. Sandbox is the same, blocking.

async with await AsyncSandbox.create() as sandbox:
    result = await sandbox.commands.run("python3 -c 'print(6 * 7)'")
    print(result.stdout)

handle    what one may do with a sandbox that there is
ending    how it ends
copies    its start; snapshots, forks, suspend and resume
creating  from create()'s arguments to a record
"""

from __future__ import annotations

import asyncio
import builtins
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar, Unpack, cast, overload

from voidbox.errors import AgentError, ConfigError
from voidbox.sandbox import launch
from voidbox.sandbox.guarding import guard
from voidbox.sandbox.session import check_seconds
from voidbox.sandbox.state.store import Store
from voidbox.sdk import creating, snapshots, zygotes
from voidbox.sdk.command_handle import AsyncCommandHandle
from voidbox.sdk.command_result import CommandResult
from voidbox.sdk.commands import ExecOptions
from voidbox.sdk.copies import CopiedSandbox
from voidbox.sdk.creating import CreateOptions
from voidbox.sdk.info import SandboxInfo
from voidbox.sdk.launching import read_truly
from voidbox.sdk.snapshots import SnapshotInfo

if TYPE_CHECKING:  # few sandboxes have any
    from voidbox.secrets.spec import Secret

Self = TypeVar("Self", bound="AsyncSandbox")


def _is_remote(remote: str | None, state_folder: str | None) -> bool:
    return remote is not None or (state_folder is None and bool(os.environ.get("VOIDBOX_REMOTE")))


class AsyncSandbox(CopiedSandbox):
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
        secrets: gives secrets other values.
    """

    # Making and finding.

    @classmethod
    async def create(
        cls: type[Self],
        *,
        kernel: str | os.PathLike[str] | None = None,
        image: str | os.PathLike[str] | None = None,
        disk_size: int | str | None = None,
        init: str | None = None,
        memory: int | str | None = None,
        cpus: int = 1,
        envs: Mapping[str, str] | None = None,
        secret_envs: Mapping[str, str] | None = None,
        secrets: Sequence[Secret] | None = None,
        http: Sequence[str] | None = None,
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
        host_memory_bytes: int | None = None,
        pids: int | None = None,
        disk_bytes_s: int | None = None,
        disk_ops_s: int | None = None,
        jail: Literal["default", "strict", "off"] | None = None,
        volumes: Sequence[str] | None = None,
        snapshot: str | SnapshotInfo | None = None,
        cold: bool = False,
        detached: bool = False,
        keep: bool = False,
        isolated: bool = False,
        request_timeout: float | None = None,
        state_folder: str | None = None,
        remote: str | None = None,
    ) -> Self:
        """Start a sandbox; return once its agent answers.

        Args:
            kernel: a file; the one that was built last by default.
            image: the name of an image, see `voidbox image`; or a file, if it is a Path, or begins
                with /, ./, ../ or ~, or ends in .cpio. voidbox's own by default.
            disk_size: of the disk that takes what is written in the sandbox: MiB as a number, or
                text; 0: its memory does. 8 GiB for images, memory for voidbox's own.
            init: the image's program that is to be PID 1, such as /sbin/init; "auto": what the
                image runs, if that is an init. By default the agent is.
            memory: MiB as a number, or text such as "512M".
            cpus: how many.
            envs: variables of every command.
            secret_envs: more of them, whose values no record, log or list shows.
            secrets: what its commands can use and do not have: they see a placeholder, and requests
                by HTTPS to a Secret's hosts get the value.
            http: rules for what hosts may be asked, as "GET api.github.com/repos/acme/*"; see
                `voidbox run --help`.
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
            cpu_limit: CPUs of this host that it uses, such as 0.5; without a control group, its
                CPUs together. See docs/security.md.
            host_memory_bytes, pids: what its machine may hold of this host's memory, all in all,
                and of threads and processes.
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
            isolated: its process is a program of its own, also inside of voidbox.zygote().
            request_timeout: for its start; its guest has a minute to answer, or as long as this.
            state_folder: in place of the user's own.
            remote: the URL of a `voidbox serve` that it is to be a sandbox of; $VOIDBOX_REMOTE if
                there is no state_folder. See voidbox.sdk.remote.
        Raises:
            ConfigError: an argument makes no sense.
            HostError: this host cannot run it.
            AgentError: it crashed; the message has its console's last lines.
            SandboxTimeout: its agent did not answer in time.
        """
        limit_s = (
            None if request_timeout is None else check_seconds("request_timeout", request_timeout)
        )
        options = CreateOptions(
            kernel=kernel,
            image=image,
            disk_size=disk_size,
            init=init,
            memory=memory,
            cpus=cpus,
            envs=envs,
            secret_envs=secret_envs,
            secrets=secrets,
            http=http,
            metadata=metadata,
            timeout=timeout,
            idle_timeout=idle_timeout,
            name=name,
            workdir=workdir,
            user=user,
            disks=disks,
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
            workspace=workspace,
            workspace_mode=workspace_mode,
            workspace_cache=workspace_cache,
            cpu_limit=cpu_limit,
            host_memory_bytes=host_memory_bytes,
            pids=pids,
            disk_bytes_s=disk_bytes_s,
            disk_ops_s=disk_ops_s,
            jail=jail,
            volumes=volumes,
            snapshot=snapshot,
            cold=cold,
        )
        if _is_remote(remote, state_folder):
            from voidbox.sdk.remote import RemoteSandbox

            unusual = {"keep": keep, "isolated": isolated}
            made = await RemoteSandbox.make(remote, options, unusual, limit_s)
            return cast(Self, made)
        store = await asyncio.to_thread(Store, state_folder)
        record = await creating.make_record(store, options, is_owned=not detached)
        record, values = await asyncio.to_thread(guard, record, secrets, http)
        zygote = None if isolated else await asyncio.to_thread(zygotes.current)
        return await cls._launch(
            store, record, detached, keep, limit_s, secret_envs, zygote, values
        )

    @classmethod
    async def connect(
        cls: type[Self],
        id_or_name: str,
        *,
        auto_resume: bool = True,
        state_folder: str | None = None,
        remote: str | None = None,
    ) -> Self:
        """Find a sandbox that runs, by its ID, the beginning of one, or its name.

        It belongs to whoever made it: leave it by close(), not as a context manager.

        Args:
            auto_resume: wake one that is suspended; else resume() does.
            state_folder, remote: see create().
        Raises:
            ConfigError: there is none.
            AgentError: it has ended.
        """
        if not isinstance(id_or_name, str):
            raise ConfigError(f"{id_or_name!r} is no sandbox's ID or name: give text")
        if _is_remote(remote, state_folder):
            from voidbox.sdk.remote import RemoteSandbox

            return cast(Self, await RemoteSandbox.find(remote, id_or_name, auto_resume))
        store = await asyncio.to_thread(Store, state_folder)
        record = await asyncio.to_thread(read_truly, store, id_or_name)
        sandbox = cls(store, record, keep=True)
        if launch.is_asleep(store, record):
            if auto_resume:
                await snapshots.wake(store, record.id)
            return sandbox
        if record.state.is_final or not await asyncio.to_thread(store.is_alive, record.id):
            raise AgentError(await asyncio.to_thread(sandbox._endpoint.explain_end))
        return sandbox

    @staticmethod
    async def list(
        *, state_folder: str | None = None, remote: str | None = None
    ) -> list[SandboxInfo]:
        """List all sandboxes that are not removed, oldest first; also those that have ended."""
        if _is_remote(remote, state_folder):
            from voidbox.sdk.remote import RemoteSandbox

            return await RemoteSandbox.all(remote)
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
