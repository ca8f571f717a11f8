"""What the host asks of a machine that runs: limits, power button, ways to its guest, counts."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING

from voidbox.boot import layout
from voidbox.errors import ConfigError, HostError
from voidbox.named_tuple import NamedTuple
from voidbox.vmm.assembly import Assembly
from voidbox.vmm.config import MEMORY_BYTES_MIN
from voidbox.vmm.throttle import ThrottleStatistics

if TYPE_CHECKING:  # imported where they are used: a machine without them starts sooner
    import socket

    from voidbox.nat.backend import NatBackend
    from voidbox.virtio.balloon import BalloonStatistics
    from voidbox.virtio.block_config import BlockStatistics
    from voidbox.vsock.unix_listener import HandedListener, UnixListener


class MachineStatistics(NamedTuple):
    """Counts since the start.

    Attributes:
        exits: KVM_EXIT_* name to how often.
        port_exits: port to how often, of the KVM_EXIT_IO among them.
        boot_ns: from the first KVM_RUN to the guest's boot-timer write, or None.
        boot_timer_ns: time.monotonic_ns() of that write, or None.
        vcpu_ns: the host's CPU time of all vCPUs, which it counts in hundredths of a second.
        disks: what each disk did, in the guest's order.
        throttle: the limit of the vCPUs' CPU time.
        balloon: what the guest gave back, and said of its memory; None without a balloon.
    """

    exits: dict[str, int]
    port_exits: dict[int, int]
    boot_ns: int | None
    boot_timer_ns: int | None
    vcpu_ns: int
    disks: tuple[BlockStatistics, ...] = ()
    throttle: ThrottleStatistics = ThrottleStatistics(None, 0)
    balloon: BalloonStatistics | None = None


class Controls(Assembly):
    """Thread: any, where nothing else is said."""

    # Limits.

    def set_cpu_limit(self, cpus: float | None) -> None:
        """Let the vCPUs together use so many CPUs of the host's, such as 0.5; None: all they can.

        Raises:
            HostError: the host gives no thread.
        """
        try:
            self._throttle.set(cpus)
        except RuntimeError as error:
            raise HostError(f"the host gives no thread ({error}): end other processes") from error

    def set_memory_target(self, size_bytes: int) -> None:
        """Have the guest make do with so much memory; it gives the rest back as far as it can.

        It takes a while, and what the guest needs stays its own: a guest that runs out of memory
        takes it back. See statistics().

        Raises:
            ConfigError: the machine has no balloon, or less memory.
        """
        balloon = self._peripherals.balloon
        if balloon is None:
            raise ConfigError("the machine has no balloon: its memory is all its guest's")
        if not MEMORY_BYTES_MIN <= size_bytes <= self.config.memory_bytes:
            raise ConfigError(
                f"{size_bytes >> 20} MiB of memory: choose {MEMORY_BYTES_MIN >> 20}M to "
                f"{self.config.memory_bytes >> 20}M, which the machine has"
            )
        self.loop.call_soon(partial(balloon.set_target, self.config.memory_bytes - size_bytes))

    def set_disk_rates(self, bytes_s: int | None, requests_s: int | None) -> None:
        """Limit what the guest may do with each disk a second; None for no limit."""
        for disk in self._peripherals.disks:
            disk.set_rates(bytes_s, requests_s)

    # The guest, and how programs reach it.

    def press_power_button(self) -> None:
        """Ask the guest to shut down, as its ACPI power button does.

        What comes of it is the guest's choice: a kernel without ACPI, or a guest in which nobody
        listens for the button, does nothing.
        """
        with self._line_lock:
            self._pulse(layout.POWER_BUTTON_GSI)

    def _pulse(self, gsi: int) -> None:
        with self._end_lock:
            if self._outcome is None:  # afterwards the VM may be gone
                self._hardware.pulse(gsi)

    def announce_generation(self) -> None:
        """Have the guest's kernel look at the id, if it has a driver for it. Thread: any."""
        self._pulse(layout.VMGENID_GSI)

    @property
    def network(self) -> NatBackend | None:
        """The network behind the device, or None; on the loop's thread only."""
        return self._peripherals.network

    def adopt_vsock(self, sock: socket.socket, port: int) -> None:
        """Connect a stream socket to a port of the guest, past the host kernel.

        Its other end reads "OK <host port>\\n" once the guest has accepted, or the end if not.

        Raises:
            OSError: the machine has no vsock of its own.
        """
        if self._peripherals.unix_backend is None:
            sock.close()
            raise OSError(errno.ENODEV, "the machine has no such vsock")
        self.loop.call_soon(partial(self._peripherals.unix_backend.adopt, sock, port))

    def publish_vsock(self, listener: UnixListener | HandedListener) -> None:
        """Have host programs reach the guest through a socket, from now on.

        For a machine whose vsock was made without a path: a restored one lets nobody in before it
        is a machine of its own. The listener is the machine's.
        """
        backend = self._peripherals.unix_backend
        if backend is None:
            listener.close()
        else:
            self.loop.call_soon(lambda: backend.publish(listener))

    def connect_serial(self) -> socket.socket | None:
        """Return a stream to the second serial port, which ends the one before.

        None if the machine was made without such a port.
        """
        port = self._board.serial_port
        return port.connect() if port is not None else None

    def adopt_serial(self, sock: socket.socket) -> None:
        """Connect a program's socket to the second serial port, in place of the one before.

        It is closed if the machine was made without such a port.
        """
        if self._board.serial_port is not None:
            self._board.serial_port.adopt(sock)
        else:
            sock.close()

    def statistics(self) -> MachineStatistics:
        """Return the counts up to now."""
        reached_ns = self._board.boot_timer.reached_ns
        has_booted = reached_ns is not None and self._started_ns is not None
        boot_ns = reached_ns - self._started_ns if has_booted else None  # type: ignore[operator]
        return MachineStatistics(
            self._vcpus.exits(),
            self._vcpus.port_exits(),
            boot_ns,
            reached_ns,
            self._vcpus.cpu_ns(),
            tuple(disk.device.statistics() for disk in self._peripherals.disks),
            self._throttle.statistics(),
            self._balloon_statistics(),
        )

    def _balloon_statistics(self) -> BalloonStatistics | None:
        balloon = self._peripherals.balloon
        if balloon is None:
            return None
        self.loop.call_soon(balloon.ask_statistics)  # for who looks again
        return balloon.statistics()
