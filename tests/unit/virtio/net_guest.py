"""Both ends of a network device, for tests: a guest's driver, and a network of lists.

`NetGuest` does what Linux's virtio_net does with the queues: it sends frames behind a header, keeps
the rx ring filled with chains of a given layout, and puts merged buffers together again.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from tests.unit.virtio.driver import ALL_FEATURES, FakeLoop, IrqLine, MmioDriver
from voidbox.memory import GuestMemory
from voidbox.virtio.device import VIRTIO_CONFIG_S_NEEDS_RESET
from voidbox.virtio.mmio import MmioTransport
from voidbox.virtio.net import (
    NET_FEATURES,
    RX_QUEUE,
    TX_QUEUE,
    FrameHeader,
    Offloads,
    RxFrames,
    VirtioNet,
)
from voidbox.virtio.net_header import VIRTIO_NET_F_MRG_RXBUF

MAC = bytes.fromhex("0242c0a80002")
# By itself, so that a field the device moves is noticed.
HEADER = struct.Struct("<BBHHHHH")
PLAIN = bytes(12)
RAM_BYTES = 16 << 20


def header(
    flags: int = 0,
    gso_type: int = 0,
    hdr_len: int = 0,
    gso_size: int = 0,
    csum_start: int = 0,
    csum_offset: int = 0,
) -> bytes:
    return HEADER.pack(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, 0)


def pattern(length: int, seed: int = 0) -> bytes:
    """Bytes of which no two pieces look alike soon."""
    words = -(-length // 4)
    return struct.pack(
        f"<{words}I", *(((i + seed * 7919) * 2654435761) & 0xFFFFFFFF for i in range(words))
    )[:length]


class Wire:
    """A backend that keeps what comes, and gives what is queued."""

    def __init__(self) -> None:
        self.on_pending: Callable[[], None] = lambda: None
        self.received: list[tuple[bytes, FrameHeader]] = []
        self.pending: deque[tuple[bytes, dict[str, int]]] = deque()
        self.started: list[Offloads] = []
        self.resets = 0
        self.is_paused = False
        self.passes_starved = 0
        self.reserve_extra = 0  # asks for more room than the frame needs
        self.inside = False
        self.on_receive: Callable[[], None] = lambda: None
        self.on_starved: Callable[[], None] = lambda: None

    def queue(self, frame: bytes, **offloads: int) -> None:
        """Have a frame for the guest, and say so."""
        self.pending.append((frame, offloads))
        self.on_pending()

    def start(self, offloads: Offloads) -> None:
        self.started.append(offloads)

    def receive(self, frame: list[memoryview], header: FrameHeader) -> None:
        assert not self.inside, "a pass within a pass"
        assert all(map(len, frame)), "an empty buffer"
        self.received.append((b"".join(frame), header))
        self.inside = True
        self.on_receive()
        self.inside = False

    def has_pending(self) -> bool:
        return bool(self.pending)

    def transmit(self, rx: RxFrames) -> bool:
        assert not self.inside, "a pass within a pass"
        frame, offloads = self.pending[0]
        size = min(len(frame) + self.reserve_extra, 65549)
        buffers = rx.reserve(size, len(frame))
        if buffers is None:
            self.passes_starved += 1
            self.on_starved()
            return False
        assert len(frame) <= sum(map(len, buffers)) <= size
        assert all(map(len, buffers)), "an empty buffer"
        scatter(buffers, frame)
        rx.commit(len(frame), **offloads)
        self.pending.popleft()
        return True

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def reset(self) -> None:
        self.pending.clear()
        self.resets += 1


def scatter(buffers: Sequence[memoryview], data: bytes) -> None:
    done = 0
    for buffer in buffers:
        piece = data[done : done + len(buffer)]
        buffer[: len(piece)] = piece
        done += len(piece)
    assert done == len(data)


class Got(NamedTuple):
    """A frame that the driver received."""

    frame: bytes
    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    csum_start: int
    csum_offset: int
    num_buffers: int


class NetGuest:
    """A device behind its transport, and the driver in front of it.

    Args:
        features: of those offered, what the driver accepts.
        rx_layouts: the buffers of each rx chain in turn.
        queue_size: of both queues.
    """

    def __init__(
        self,
        *,
        features: int = ALL_FEATURES,
        rx_layouts: Sequence[Sequence[int]] = ((4096,),),
        queue_size: int | None = 64,
        device: Callable[[Wire], VirtioNet] = lambda wire: VirtioNet(wire, MAC),
        indirect: bool = False,
    ) -> None:
        self.memory = GuestMemory(RAM_BYTES)
        self.loop, self.line, self.wire = FakeLoop(), IrqLine(), Wire()
        self.device = device(self.wire)
        self.transport = MmioTransport(
            self.device, self.memory, self.line.pulse, self.loop.call_soon
        )
        self.driver = MmioDriver(self.transport, self.memory, self.line)
        self.features, self.queue_size = features, queue_size
        self.rx_layouts = rx_layouts
        self.indirect = indirect
        self._layout_idx = 0

    def boot(self, *, fill: bool = True) -> NetGuest:
        self.driver.probe(self.features, self.queue_size)
        if fill:
            self.refill()
        self.loop.run()
        return self

    @property
    def rx(self) -> Any:
        return self.driver.queues[RX_QUEUE]

    @property
    def tx(self) -> Any:
        return self.driver.queues[TX_QUEUE]

    @property
    def broken(self) -> bool:
        return bool(self.driver.status & VIRTIO_CONFIG_S_NEEDS_RESET)

    @property
    def mergeable(self) -> bool:
        return bool(self.driver.features & VIRTIO_NET_F_MRG_RXBUF)

    def post(self, *layout: int) -> None:
        """Add one rx chain; no kick."""
        self.rx.add(writable=layout, indirect=self.indirect and len(layout) > 1)

    def refill(self, most: int = 1 << 16) -> bool:
        """Fill the rx ring; whether the device wanted a kick for it."""
        for _ in range(most):
            layout = self.rx_layouts[self._layout_idx % len(self.rx_layouts)]
            descs = 1 if self.indirect else len(layout)
            if len(self.rx.free_descs) < descs:
                break
            self.post(*layout)
            self._layout_idx += 1
        return self.driver.kick(RX_QUEUE)

    def send(self, frame: bytes, head: bytes = PLAIN, *, cuts: Sequence[int] = (12,)) -> None:
        """Send a frame, header and all cut into buffers at these places; no kick."""
        data = head + frame
        places = [0, *(cut for cut in cuts if 0 < cut < len(data)), len(data)]
        pieces = [data[a:b] for a, b in pairwise(places) if a < b]
        self.tx.add(readable=pieces, indirect=self.indirect and len(pieces) > 1)

    def flush(self) -> bool:
        """Kick for what was sent, turn the loop until it rests; whether a kick was wanted."""
        kicked = self.driver.kick(TX_QUEUE)
        self.loop.run()
        return kicked

    def collect(self) -> list[Got]:
        """receive_buf: put together what the device returned."""
        done = deque(self.rx.completed())
        frames = []
        while done:
            data = done.popleft().data
            fields = HEADER.unpack(data[:12])
            assert fields[-1] >= 1
            assert self.mergeable or fields[-1] == 1
            parts = [data[12:]] + [done.popleft().data for _ in range(fields[-1] - 1)]
            assert all(parts[1:]), "a merged buffer with nothing in it"
            frames.append(Got(b"".join(parts), *fields))
        return frames

    def pump(self, rounds: int = 1000) -> list[Got]:
        """Turn, collect and refill until nothing moves any more."""
        frames: list[Got] = []
        for _ in range(rounds):
            self.loop.run()
            self.tx.completed()
            got = self.collect()
            frames += got
            self.refill()
            if not got and not self.loop.pending:
                return frames
        raise AssertionError("it never comes to rest")

    def close(self) -> None:
        """Fails if a slice of guest memory is still held somewhere."""
        self.transport.close()
        self.memory.close()

    def __enter__(self) -> NetGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def offload_subsets() -> list[int]:
    """Every mask of NET_FEATURES that a driver may accept."""
    bits = [1 << i for i in range(64) if NET_FEATURES >> i & 1]
    masks = []
    for choice in range(1 << len(bits)):
        mask = sum(bit for i, bit in enumerate(bits) if choice >> i & 1)
        needs = [(1 << 11, 1 << 0), (1 << 7, 1 << 1)]  # HOST_TSO4: CSUM; GUEST_TSO4: GUEST_CSUM
        if all(mask & base or not mask & one for one, base in needs):
            masks.append(mask)
    return masks
