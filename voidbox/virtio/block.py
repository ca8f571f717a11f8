"""virtio-blk, the block device (VirtIO 1.2 §5.2): one queue of requests, and a backend behind it.

guest ─► requestq ─► parsed, checked ─┬► done at once, in the pass ────────► used, one interrupt
                                      └► a worker thread, if it may block ─► completions ─┘

A disk has an event loop of its own, so that a pass may read and write in place: guest memory and
the page cache exchange data with no thread in between, which is what a thread would cost most of
the time. What has to wait for the disk goes to workers, and the pass goes on: a read that is not in
the page cache, where the file system can tell; all that followed something slow, where it cannot;
flushes, discards and zeroes always.

A reset waits for what workers are at: the driver may use the memory for something else afterwards.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from functools import partial

from voidbox.block.backend import Backend
from voidbox.buffers import write_bytes
from voidbox.virtio.block_config import (
    DISCARD_RANGES_MAX,
    DISCARD_SECTORS_MAX,
    QUEUE_SIZE,
    REQUEST_BYTES_MAX,
    VIRTIO_BLK_F_FLUSH,
    ZERO_RANGES_MAX,
    ZERO_SECTORS_MAX,
    config_of,
    encode_serial,
    features_of,
)
from voidbox.virtio.block_request import (
    SECTOR_BYTES,
    VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
    Refused,
    Request,
    parse,
    parse_ranges,
)
from voidbox.virtio.block_work import IN_PLACE_BYTES_MAX, BlockWork
from voidbox.virtio.device import VIRTIO_ID_BLOCK, Transport, config_value
from voidbox.virtio.queue import Virtqueue
from voidbox.virtio.rate import RateLimiter, Rates

# What one pass on the loop may cost: whichever comes first.
PASS_REQUESTS = 64
PASS_BYTES = 4 << 20
# After so many bytes the driver hears of what is done: it prepares more while the pass goes on.
TELL_BYTES = 512 << 10
_WAIT_S_MAX = 1.0  # for a rate, at a time
CallLater = Callable[[float, Callable[[], None]], object]


class VirtioBlock(BlockWork):
    """The block device. Thread: loop.

    Args:
        backend: the disk. It stays the caller's, who closes it after the device's close().
        serial: up to 20 characters of ASCII.
        name: for threads and the log.
    Raises:
        ConfigError: the serial is none.

    Attributes:
        call_later: the loop's, by which a disk with a rate waits.
    """

    device_id = VIRTIO_ID_BLOCK
    queue_max_sizes = (QUEUE_SIZE,)

    def __init__(
        self,
        backend: Backend,
        serial: str = "",
        name: str = "disk",
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._serial = encode_serial(serial)
        super().__init__(name, now_ns)
        self._backend = backend
        self._features = features_of(backend.is_read_only)
        self._config = config_of(backend.size_bytes)
        self._has_nowait = True
        self._limiter: RateLimiter | None = None
        self.call_later: CallLater | None = None
        self._is_writethrough = False
        self._deferred = False  # a pass is to come, and will see what is new

    @property
    def device_features(self) -> int:
        """VIRTIO_BLK_F_* that are offered."""
        return self._features

    def read_config(self, offset: int, width: int) -> int:
        """Read struct virtio_blk_config."""
        return config_value(self._config, offset, width)

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Nothing in it may be written."""

    def activate(
        self, transport: Transport, driver_features: int, queues: Sequence[Virtqueue]
    ) -> None:
        """Start to serve requestq."""
        self._transport = transport
        (self._queue,) = queues
        # §5.2.6.2: a driver that cannot flush is told that a write is done when it is on the disk.
        self._is_writethrough = not driver_features & VIRTIO_BLK_F_FLUSH

    def pause(self) -> None:
        """Wait for what is being read and written, and tell the driver of it.

        Raises:
            HostError: it takes too long.
        """
        self._drain()

    def resume(self) -> None:
        """Nothing was stopped but what the transport calls."""

    def reset(self) -> None:
        """Wait for what is being read and written, and forget the queue and what it had asked."""
        self._forget()
        self._is_writethrough = self._deferred = False

    def close(self) -> None:
        """End the threads. Idempotent. After the transport's close(). Thread: any."""
        self._workers.close()

    def set_rates(self, rates: Rates) -> None:
        """Limit what the guest may do with the disk a second."""
        has_limits = any(rate is not None for rate in rates)
        self._limiter = RateLimiter(rates, self._now_ns()) if has_limits else None
        if self._deferred and self._transport is not None:
            self._transport.defer(self._pass)  # who waits for the old rate waits no longer

    @property
    def rates(self) -> Rates:
        """The limits. Thread: any."""
        limiter = self._limiter
        return limiter.rates if limiter is not None else Rates()

    def queue_notify(self, queue_idx: int) -> None:
        """Serve what is there, unless a pass that will do so is under way."""
        if not self._deferred:
            self._pass()

    def _pass(self) -> None:
        """Begin some requests; leave the rest to the next turn of the loop."""
        queue, transport = self._queue, self._transport
        if queue is None or transport is None:
            return
        queue.disable_notification()
        more = True
        done_bytes = told_bytes = wait_ns = 0
        limiter = self._limiter
        for _ in range(PASS_REQUESTS):
            if limiter is not None and (wait_ns := limiter.wait_ns(self._now_ns())):
                break
            chain = queue.next_chain()
            if chain is None:
                more = False
                break
            chain_bytes = chain.readable_bytes + chain.writable_bytes
            done_bytes += chain_bytes
            if limiter is not None:
                limiter.take(chain_bytes)
            self._begin(*parse(chain))
            if done_bytes >= PASS_BYTES:
                break
            if done_bytes - told_bytes >= TELL_BYTES:
                told_bytes = done_bytes
                if queue.publish():
                    transport.interrupt_queues()
        if queue.publish():
            transport.interrupt_queues()
        self._deferred = more or queue.enable_notification()
        if self._deferred and wait_ns and self.call_later is not None:
            # By way of the transport, which defers nothing while the machine is paused.
            wait_s = min(wait_ns / 1e9, _WAIT_S_MAX)
            self.call_later(wait_s, partial(transport.defer, self._pass))
        elif self._deferred:
            transport.defer(self._pass)

    def _begin(self, kind: int, sector: int, request: Request) -> None:
        """Do a request, hand it to a worker, or refuse it."""
        offset = sector * SECTOR_BYTES
        try:
            if kind == VIRTIO_BLK_T_IN:
                self._check(offset, request.target_bytes)
                self._begin_read(request, offset)
            elif kind == VIRTIO_BLK_T_OUT:
                self._check(offset, request.source_bytes, is_write=True)
                self._begin_write(request, offset)
            elif kind == VIRTIO_BLK_T_FLUSH:
                self._submit(request, kind, 0, self._backend.flush)
            elif kind == VIRTIO_BLK_T_GET_ID:
                self._give_id(request)
            elif kind in (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES):
                self._begin_ranges(request, kind)
            else:
                raise Refused(VIRTIO_BLK_S_IOERR if kind < 0 else VIRTIO_BLK_S_UNSUPP)
        except Refused as refused:
            self._refused += 1
            self._answer(request, refused.args[0], 0)

    def _check(self, offset: int, length: int, is_write: bool = False) -> None:
        """Refuse what lies past the end or has no size of a request, and writes that may not be."""
        if (
            length % SECTOR_BYTES
            or length > REQUEST_BYTES_MAX
            or offset + length > self._backend.size_bytes
            or (is_write and self._backend.is_read_only)
        ):
            raise Refused(VIRTIO_BLK_S_IOERR)

    def _begin_read(self, request: Request, offset: int) -> None:
        target, length = request.target, request.target_bytes
        if self._has_nowait and length <= IN_PLACE_BYTES_MAX:
            try:
                self._backend.read(target, offset, length, nowait=True)
            except OSError as error:
                self._has_nowait = error.errno != errno.EOPNOTSUPP
                self._submit(
                    request,
                    VIRTIO_BLK_T_IN,
                    length,
                    partial(self._backend.read, target, offset, length),
                )
            else:
                self._finish(request, VIRTIO_BLK_T_IN, length, None)
        else:
            self._try(
                request,
                VIRTIO_BLK_T_IN,
                length,
                partial(self._backend.read, target, offset, length),
            )

    def _begin_write(self, request: Request, offset: int) -> None:
        length = request.source_bytes
        work = partial(self._backend.write, request.source, offset, length)
        if self._is_writethrough:
            self._submit(request, VIRTIO_BLK_T_OUT, length, partial(self._write_through, work))
        else:
            self._try(request, VIRTIO_BLK_T_OUT, length, work)

    def _write_through(self, work: Callable[[], None]) -> None:
        work()
        self._backend.flush()

    def _give_id(self, request: Request) -> None:
        if not request.target:
            raise Refused(VIRTIO_BLK_S_IOERR)
        length = min(request.target_bytes, VIRTIO_BLK_ID_BYTES)
        write_bytes(request.target, self._serial[:length])
        self._answer(request, VIRTIO_BLK_S_OK, length)

    def _begin_ranges(self, request: Request, kind: int) -> None:
        backend = self._backend
        if backend.is_read_only:
            raise Refused(VIRTIO_BLK_S_IOERR)
        is_discard = kind == VIRTIO_BLK_T_DISCARD
        ranges = parse_ranges(
            request,
            DISCARD_RANGES_MAX if is_discard else ZERO_RANGES_MAX,
            DISCARD_SECTORS_MAX if is_discard else ZERO_SECTORS_MAX,
            backend.size_bytes,
            is_discard,
        )

        def work() -> None:
            for offset, length, may_unmap in ranges:
                if is_discard:
                    backend.discard(offset, length)
                else:
                    backend.zero(offset, length, may_unmap)
            if self._is_writethrough:
                backend.flush()

        self._submit(request, kind, 0, work)
