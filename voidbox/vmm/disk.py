"""One disk of the machine: its files, its device, and the event loop that both run on."""

from __future__ import annotations

from collections.abc import Callable

from voidbox.block.open_disk import make_overlay, open_backend
from voidbox.errors import HostError
from voidbox.event_loop import EventLoop
from voidbox.virtio.block import VirtioBlock
from voidbox.virtio.rate import Rates
from voidbox.vmm.config import DiskConfig


def prepare(config: DiskConfig) -> None:
    """Make what a disk is kept in, as far as it is made of itself: its overlay.

    Raises:
        ConfigError: it cannot be made.
    """
    if config.overlay is not None:
        make_overlay(config.path, config.overlay)


class Disk:
    """A disk, from the opening of its files to their closing. Thread: the caller's.

    Attributes:
        device: for a slot, with `loop`.
        loop: its own, so that no disk holds up the console, the network or another disk. Whoever
            has the machine starts it, and stops it before the slot is closed.
    Raises:
        ConfigError: what it is kept in cannot be used.
    """

    loop: EventLoop

    def __init__(self, config: DiskConfig, name: str) -> None:
        self._name = name
        self._loop: EventLoop | None = None
        self._backend = open_backend(config.path, config.is_read_only, config.overlay)
        try:
            self.device = VirtioBlock(self._backend, config.serial, f"{name} ({config.path})")
        except BaseException:
            self._backend.close()
            raise

    def make_loop(self, on_error: Callable[[BaseException], None]) -> None:
        """Make the loop.

        Raises:
            HostError: the host gives none.
        """
        self._loop = self.loop = EventLoop(on_error, name=f"voidbox-{self._name}")
        self.device.call_later = self.loop.call_later

    def set_rates(self, bytes_s: int | None, requests_s: int | None) -> None:
        """Limit what the guest may do with it a second; None for no limit. Thread: any."""
        self.loop.call_soon(lambda: self.device.set_rates(Rates(bytes_s, requests_s)))

    def flush(self) -> None:
        """Bring what the guest has written into the files. While the device is paused.

        Raises:
            HostError: the host cannot.
        """
        try:
            self._backend.flush()
        except OSError as error:
            raise HostError(
                f"{self._name}: cannot flush: {error.strerror}", error.errno or 0
            ) from error

    def close(self) -> None:
        """End the threads and close the files. Idempotent. After the slot's close()."""
        if self._loop is not None:
            self._loop.close()
        self.device.close()
        self._backend.close()
