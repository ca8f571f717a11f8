"""A machine whose guest runs the agent, from its making to the agent's first answer.

The machine is in a process of its own, which shuts itself in: see voidbox.sandbox.worker.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from voidbox.agent import connect, protocol
from voidbox.agent.client import AgentClient
from voidbox.agent.endpoint import await_ok, connect_vhost
from voidbox.boot import newc
from voidbox.errors import ConfigError
from voidbox.sandbox import kvm_speed
from voidbox.sandbox.mounts import check_mounted, mount_files
from voidbox.sandbox.root import RUNTIME
from voidbox.sandbox.worker.link import Link
from voidbox.sandbox.worker.machine import WorkerMachine, start_machine
from voidbox.sandbox.worker.surroundings import Walls
from voidbox.vmm.config import MachineConfig, VsockConfig

if TYPE_CHECKING:  # most need none
    from voidbox.sandbox.session import Session
    from voidbox.secrets.guard import Guard

_CPIO_MAGIC = b"0707"
# While Linux unpacks an initramfs, that still takes its place, and what it becomes may take half of
# the rest; kernel and page tables have some too. Found by trying: 46 MB need 152 to 160 MiB.
_MEMORY_PER_IMAGE, _MEMORY_SPARE_BYTES = 3.1, 20 << 20
# With the root on disks: 40 MiB do for the minimal kernel, 36 do not; the cloud kernel needs 80.
_MEMORY_ON_DISKS_BYTES = 40 << 20
_POST_MORTEM_S = 2.0  # between the loss of the connection and the machine's outcome


class Guest:
    """A machine with the agent in it. Thread: the caller's.

    The secret goes to the guest in an archive behind the initramfs, as a file that only root can
    read; the agent removes it once read.

    Args:
        config: its initramfs holds the agent; without a vsock it gets one that only this process
            can use.
        has_vsock: False for a machine that has none: all goes over the serial line.
        secret: what the agent will want to see; made here if None.
        snapshot: the folder of what the machine is restored from; its agent has its secret already.
        jail: how far the machine's process shuts itself in: "default", "strict" or "off"; None for
            $VOIDBOX_JAIL, or the default.
        worker: a process to put it into, and its walls; started here if None.
        guard: with `worker`, looks at the connections to guarded hosts.

    Raises:
        ConfigError, HostError: see Machine; or the jail is strict, and this host lacks a layer.

    Attributes:
        machine: for its console, outcome and statistics.
        secret: what its agent wants to see.
    """

    def __init__(
        self,
        config: MachineConfig,
        has_vsock: bool = True,
        secret: bytes | None = None,
        snapshot: str | None = None,
        *,
        jail: str | None = None,
        worker: tuple[Link, Walls] | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.secret = secret or os.urandom(protocol.SECRET_BYTES)
        if worker is None and snapshot is None:
            check(config)
        config = furnished(config, has_vsock, None if snapshot is not None else self.secret)
        if worker is None:
            self.machine = start_machine(config, jail, snapshot)
        else:
            self.machine = WorkerMachine(worker[0], config, worker[1], snapshot, guard)

    def connect(
        self,
        timeout_s: float = connect.BOOT_TIMEOUT_S,
        log: Callable[[str], None] = lambda line: None,
    ) -> AgentClient:
        """Return a client once the agent answers; see voidbox.agent.connect.

        Raises:
            ConfigError: the guest cannot mount what it was to.
        """
        client = connect.connect(MachineEndpoint(self.machine), self.secret, timeout_s, log)
        try:
            check_mounted(self.machine.config, client.link.capabilities)
        except BaseException:
            client.close()
            raise
        return client

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """What coroutines reach the agent by, over a connection of their own."""
        from voidbox.agent.aio import AsyncAgent
        from voidbox.sandbox.session import Session

        agent = AsyncAgent(MachineEndpoint(self.machine), self.secret)
        try:
            yield Session(agent, "the VM")
        finally:
            agent.close()

    def close(self) -> None:
        """End the machine at once. Idempotent."""
        self.machine.close()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def furnished(config: MachineConfig, has_vsock: bool, secret: bytes | None) -> MachineConfig:
    """Return a machine whose agent can be reached.

    Args:
        secret: that it is told; None for one that is restored, and has its own.
    """
    vsock = (config.vsock or VsockConfig()) if has_vsock else None
    config = config._replace(vsock=vsock, serial_line=True)
    if secret is None:
        return config
    files = (*secret_files(secret), *network_files(config), *mount_files(config))
    return config._replace(extra_files=(*config.extra_files, *files))


def check(config: MachineConfig) -> None:
    """Refuse what could not boot.

    Raises:
        ConfigError: too little memory for the image.
        HostError: this KVM cannot boot Linux.
    """
    check_memory(config)
    kvm_speed.check_can_boot(config.kernel)


def check_memory(config: MachineConfig) -> None:
    """Refuse a machine in which the image finds no room: its guest would have no agent.

    Of a compressed image nobody knows how large it gets.

    Raises:
        ConfigError: it has too little memory.
    """
    if any(disk.serial == RUNTIME for disk in config.disks):
        if config.memory_bytes < _MEMORY_ON_DISKS_BYTES:
            raise ConfigError(
                f"{config.memory_bytes >> 20} MiB of memory: the kernel and the agent find no room "
                f"in it; choose at least {_MEMORY_ON_DISKS_BYTES >> 20}M"
            )
        return
    try:
        with open(config.initramfs or os.devnull, "rb") as file:
            is_cpio = file.read(len(_CPIO_MAGIC)) == _CPIO_MAGIC
            size = os.fstat(file.fileno()).st_size if is_cpio else 0
    except OSError:
        return  # whoever loads it says what is wrong
    needed = int(size * _MEMORY_PER_IMAGE) + _MEMORY_SPARE_BYTES
    if size and config.memory_bytes < needed:
        raise ConfigError(
            f"{config.memory_bytes >> 20} MiB of memory: the image, {size >> 20} MiB, has no room "
            f"to unpack in it; choose at least {-(-needed >> 20)}M"
        )


def secret_files(secret: bytes) -> tuple[newc.Entry, ...]:
    """Return the archive's entries that bring a secret to the guest, for root alone."""
    path = protocol.SECRET_PATH.lstrip("/")
    folders = path.split("/")[:-1]
    return (
        *(
            newc.Entry("/".join(folders[: depth + 1]), stat.S_IFDIR | 0o755)
            for depth in range(len(folders))
        ),
        newc.Entry(path, stat.S_IFREG | 0o400, secret),
    )


def network_files(config: MachineConfig) -> tuple[newc.Entry, ...]:
    """Return what tells the agent its network: it sets it up before anything asks for it."""
    if config.net is None:
        return ()
    from voidbox.net.addresses import format_address

    network = config.net.network
    lines = (
        f"address {format_address(network.guest_ip)}/{network.prefix_bits}",
        f"gateway {format_address(network.gateway_ip)}",
        f"dns {format_address(network.dns_ip)}",
        *(f"search {','.join(search)}" for search in [config.net.search()] if search),
    )
    content = "".join(f"{line}\n" for line in lines).encode()
    return (newc.Entry(protocol.NETWORK_PATH.lstrip("/"), stat.S_IFREG | 0o644, content),)


class MachineEndpoint:
    """A machine that is kept here, as the agent's client sees it; see Endpoint. Thread: any."""

    def __init__(self, machine: WorkerMachine) -> None:
        vsock = machine.config.vsock
        self.cid = vsock.cid if vsock is not None else 0
        self._is_vhost = vsock is not None and vsock.is_vhost
        self._machine = machine

    def connect(self, port: int, timeout_s: float) -> socket.socket:
        """See Endpoint."""
        if self._is_vhost:
            return connect_vhost(self.cid, port, timeout_s)
        ours, theirs = socket.socketpair()
        try:
            self._machine.adopt_vsock(theirs, port)
            await_ok(ours, timeout_s)
        except BaseException:
            ours.close()
            raise
        return ours

    def connect_serial(self) -> socket.socket | None:
        """See Endpoint."""
        return self._machine.connect_serial()

    def has_ended(self, timeout_s: float) -> bool:
        """See Endpoint."""
        return self._machine.wait(timeout_s) is not None

    def explain_end(self) -> str:
        """See Endpoint."""
        outcome = self._machine.wait(_POST_MORTEM_S)
        story = "the guest still runs" if outcome is None else outcome.describe()
        tail = self._machine.console.tail()
        if not tail or tail in story:
            return story
        return f"{story}\nthe console's last lines:\n{tail}"
