"""What the network device asks of the network behind it, and gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from voidbox.named_tuple import NamedTuple
from voidbox.virtio.net_header import FrameHeader


class Offloads(NamedTuple):
    """What the guest's driver takes.

    Attributes:
        guest_csum: frames with a partial checksum.
        guest_tso4: TCP segments larger than the MTU; includes guest_csum.
        mergeable: a frame may be spread over several rx chains.
    """

    guest_csum: bool
    guest_tso4: bool
    mergeable: bool


class RxFrames(Protocol):
    """The guest's receive buffers. Thread: loop, during transmit()."""

    def reserve(self, size: int, least: int = -1) -> list[memoryview] | None:
        """Return writable guest memory for one frame, with the header's room already cut off.

        Another reserve() takes the place of one that was not committed.

        Args:
            size: the most bytes the frame may have, up to 65,549; never more are returned.
            least: fewer are returned if the guest has no more, but never less than this, which is
                `size` unless said otherwise. Buffers can be counted on for MTU + 14, and for 65,549
                with Offloads.guest_tso4.
        Returns:
            None: not enough buffers now. Return False from transmit(); on the driver's next
            buffer a pass comes by itself.
        Raises:
            GuestError: the driver broke the ring, or gave buffers that can never hold `least`
                bytes. Let it pass.
            ValueError: no frame has such a size.
        """
        ...

    def commit(
        self,
        length: int,
        *,
        gso_size: int = 0,
        csum_start: int = 0,
        csum_offset: int = 0,
        header_bytes: int = 0,
    ) -> None:
        """Give the guest the frame that is in the reserved buffers.

        Args:
            length: its bytes, from 1 to what was returned; buffers that it does not reach into
                remain the guest's.
            gso_size: the payload bytes of each segment, with Offloads.guest_tso4 and csum_start.
            csum_start: where summing starts, with Offloads.guest_csum; 0: the checksum is whole.
            csum_offset: from there, where the sum goes.
            header_bytes: with gso_size, the bytes of Ethernet, IP and TCP headers.
        Raises:
            ValueError: the length or an offload is not one that was agreed on.
        """
        ...

    def cancel(self) -> None:
        """There is no frame after all."""
        ...


class FrameBackend(Protocol):
    """A network for the guest, such as a user-mode stack. Thread: loop.

    Attributes:
        on_pending: set by the device; called when has_pending() may have become true. During
            receive() and transmit() it need not be: the pass looks by itself.
    """

    on_pending: Callable[[], None]

    def start(self, offloads: Offloads) -> None:
        """The driver is ready."""
        ...

    def receive(self, frame: list[memoryview], header: FrameHeader) -> None:
        """Take one Ethernet frame of 14 to 65,549 bytes from the guest.

        Args:
            frame: slices of guest memory, valid during the call only. The guest may change what
                is there meanwhile.
            header: what the frame asks for.
        """
        ...

    def has_pending(self) -> bool:
        """Whether transmit() may have something."""
        ...

    def transmit(self, rx: RxFrames) -> bool:
        """Give the guest one frame, if there is one after all.

        Returns:
            False: the frame has to wait, for buffers if reserve() had too few in this call, else
            until on_pending() is called.
        """
        ...

    def pause(self) -> None:
        """The guest stands still: nothing is called before resume(), so ask for nothing."""
        ...

    def resume(self) -> None:
        """It goes on; a notification follows."""
        ...

    def reset(self) -> None:
        """The driver let go of the device; start() may come again."""
        ...
