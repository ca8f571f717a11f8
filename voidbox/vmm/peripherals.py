"""The virtio devices that a configuration asks for, each with its backend, in the slots' order.

    entropy ─ disks ─ sockets ─ network ─ shared folders ─ balloon

The order is the guest's too: a snapshot's slots are given to the same devices again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from voidbox.event_loop import EventLoop
from voidbox.kvm.vm import host_address
from voidbox.virtio.rng import VirtioRng
from voidbox.vmm.board import Board
from voidbox.vmm.config import MachineConfig, ShareConfig, VsockConfig
from voidbox.vmm.hardware import Hardware
from voidbox.vmm.virtio_slots import VirtioSlots

if TYPE_CHECKING:  # imported where they are used: a machine without them starts sooner
    from voidbox.nat.backend import NatBackend
    from voidbox.nat.config import NatConfig
    from voidbox.virtio.balloon import VirtioBalloon
    from voidbox.virtio.device import VirtioDevice
    from voidbox.vmm.disk import Disk
    from voidbox.vmm.restore import Restore
    from voidbox.vsock.unix import UnixBackend

log = logging.getLogger(__name__)


class Peripherals:
    """The virtio devices of a machine. Thread: the caller's.

    Args:
        disks: opened; they are the caller's.
        loop: the machine's; disks and shared folders have loops of their own.
        restore: the snapshot that the devices go on from, or None.
        resources: has what is made here closed, once the loop has stopped.
        on_loop_error: takes what a device's own loop failed with.

    Attributes:
        slots: where they are.
        network: the network behind the device, or None; on the loop's thread only.
        balloon: by which the guest gives memory back, or None.
        unix_backend: what carries the sockets' packets, unless the host's kernel does.
        loops: those of the devices.
    """

    def __init__(
        self,
        config: MachineConfig,
        disks: Sequence[Disk],
        hardware: Hardware,
        board: Board,
        loop: EventLoop,
        restore: Restore | None,
        resources: contextlib.ExitStack,
        on_loop_error: Callable[[BaseException], None],
    ) -> None:
        self._hardware = hardware
        self._loop = loop
        self._restore = restore
        self._resources = resources
        self._on_loop_error = on_loop_error
        self._hang_ups: list[Callable[[], None]] = []
        self.disks = disks
        self.network: NatBackend | None = None
        self.unix_backend: UnixBackend | None = None
        self.balloon: VirtioBalloon | None = None
        self.loops: list[EventLoop] = []
        for disk in disks:
            disk.make_loop(on_loop_error)
        count = sum(
            (1, len(disks), config.vsock is not None, config.net is not None, config.balloon)
        )
        slots = VirtioSlots(
            hardware.vm, hardware.memory, board.mmio, loop, count + len(config.shares),
            board.coalesced, hardware.has_readonly_memory,
        )  # fmt: skip
        self.slots = resources.enter_context(contextlib.closing(slots))
        self._add(VirtioRng())
        for disk in disks:
            self._add(disk.device, loop=disk.loop)
            resources.callback(disk.loop.stop)
            self.loops.append(disk.loop)
        if config.vsock is not None:
            self._attach_vsock(config.vsock)
        if config.net is not None:
            self._attach_network(config.net)
        for share in config.shares:
            self._attach_share(share, len(config.shares))
        if config.balloon:
            self._attach_balloon()

    def _add(
        self,
        device: VirtioDevice,
        kick_fds: Mapping[int, int] | None = None,
        loop: EventLoop | None = None,
    ) -> None:
        """Put a device into the next slot, with what a snapshot has of it."""
        state = self._restore.slot(len(self.slots)) if self._restore is not None else None
        self.slots.add(device, kick_fds, loop, state)

    def _attach_vsock(self, config: VsockConfig) -> None:
        from voidbox.virtio.vsock import PacketQueues, VirtioVsock

        cid = config.cid
        if config.is_vhost:
            from voidbox.vsock.vhost import VhostVsock

            plane = VhostVsock(cid, self._hardware.memory, lambda region: host_address(region.map))
            self._resources.callback(plane.close)
            self._hang_ups.append(plane.hang_up)
            device = VirtioVsock(cid, plane)
            self._add(device, dict(enumerate(plane.kick_fds)))
        else:
            from voidbox.vsock.unix import UnixBackend

            saved = self._restore.state.vsock if self._restore is not None else None
            next_port = saved.next_port if saved is not None else 0
            self.unix_backend = UnixBackend(config.path, cid, self._loop, next_port, config.dial)
            self._resources.callback(self.unix_backend.close)
            self._hang_ups.append(self.unix_backend.reset)
            device = VirtioVsock(cid, PacketQueues(self.unix_backend, self._loop.call_later))
            self._add(device)
        if self._restore is not None:
            device.transport_reset()

    def _attach_network(self, config: NatConfig) -> None:
        from voidbox.nat.backend import NatBackend
        from voidbox.virtio.net import VirtioNet

        self.network = NatBackend(config, self._loop, lambda line: log.info("%s", line))
        self._resources.callback(self.network.close)
        self._hang_ups.append(self.network.reset)
        if self._restore is not None and self._restore.state.net is not None:
            self.network.reset_flows(self._restore.state.net.flows)
        mac = config.network.guest_mac
        self._add(VirtioNet(self.network, mac, call_later=self._loop.call_later))

    def _attach_share(self, share: ShareConfig, share_count: int) -> None:
        from voidbox.fuse.server import Server
        from voidbox.virtio.fs import VirtioFs

        server = Server(share.path, share.is_read_only, share.cache, server_count=share_count)
        device = VirtioFs(server, share.tag)
        self._resources.callback(device.close)
        # Its own, as a disk's: a reset waits for the host's file system.
        loop = EventLoop(self._on_loop_error, name=f"voidbox-{share.tag}")
        self.loops.append(loop)
        self._resources.callback(loop.close)  # before the device's, after which nothing is reset
        self._add(device, dict.fromkeys((0, 1), device.kick_fd), loop)

    def _attach_balloon(self) -> None:
        from voidbox.virtio.balloon import VirtioBalloon

        memory = self._hardware.memory
        saved = self._restore.state.balloon if self._restore is not None else None
        self.balloon = VirtioBalloon(memory.discard, memory.reads_as_zero, saved)
        self._add(self.balloon)

    def resume_but_disks(self) -> None:
        """Have all go on after a pause but the disks, which are being copied. Thread: any."""
        self.slots.resume(but=[disk.loop for disk in self.disks])

    def hang_up(self) -> None:
        """Let the programs at the other ends know that nobody will answer. Thread: loop."""
        for hang_up in self._hang_ups:
            hang_up()
