"""Where a disk's requests are done: in place, as long as nothing blocks, else by workers.

pass ─► tried in place ───────────────► answered, counted
    └─► a worker ─► completions ─► loop ─► answered, counted
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from functools import partial

from voidbox.block.workers import Workers
from voidbox.errors import HostError
from voidbox.named_tuple import NamedTuple
from voidbox.virtio.block_config import BlockStatistics
from voidbox.virtio.block_request import (
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
    Request,
)
from voidbox.virtio.device import Transport
from voidbox.virtio.queue import Virtqueue

log = logging.getLogger(__name__)

# What is longer goes to a worker at once.
IN_PLACE_BYTES_MAX = 4 << 20
# What may block is tried in place. If it took longer than this, and each byte allowed for, the next
# so many go to workers.
SLOW_NS, SLOW_NS_PER_BYTE = 2_000_000, 10
SLOW_REQUESTS = 32
# How long a pause waits for requests that the host has not done.
PAUSE_S = 10.0


_NAMES = {
    VIRTIO_BLK_T_IN: "read",
    VIRTIO_BLK_T_OUT: "write",
    VIRTIO_BLK_T_FLUSH: "flush",
    VIRTIO_BLK_T_DISCARD: "discard",
    VIRTIO_BLK_T_WRITE_ZEROES: "write zeroes",
}


class _Done(NamedTuple):
    """A request that a worker has done: what `_finish` takes."""

    request: Request
    kind: int
    length: int
    error: OSError | None


class BlockWork:
    """Requests on their way to their answers. Thread: loop.

    Args:
        name: for threads and the log.
    """

    def __init__(self, name: str, now_ns: Callable[[], int]) -> None:
        self._name = name
        self._now_ns = now_ns
        self._workers = Workers(f"voidbox-{name}")
        self._transport: Transport | None = None
        self._queue: Virtqueue | None = None
        self._slow_left = 0  # requests for workers, after a slow one
        self._said: set[tuple[int, int]] = set()
        self._reads = self._read_bytes = self._writes = self._written_bytes = 0
        self._flushes = self._discards = self._zeroes = self._errors = self._refused = 0
        self._lock = threading.Lock()  # covers the next two; nothing is called with it held
        self._completions: list[_Done] = []
        self._is_completing = False  # _complete() is on its way to the loop

    def _forget(self) -> None:
        """Wait for what workers are at, drop what they have not begun, and let go of the queue."""
        self._workers.cancel()
        self._transport = self._queue = None
        with self._lock:
            self._completions.clear()
            self._is_completing = False

    def _drain(self) -> None:
        """Wait for what workers are at, and answer it.

        Raises:
            HostError: it takes too long.
        """
        if not self._workers.drain(PAUSE_S):
            raise HostError(f"{self._name}: the host's disk did not answer in {PAUSE_S:g} s")
        self._complete()

    def _try(self, request: Request, kind: int, length: int, work: Callable[[], None]) -> None:
        """Do what may block, in place for as long as it does not."""
        if self._slow_left or length > IN_PLACE_BYTES_MAX:
            self._slow_left = max(0, self._slow_left - 1)
            self._submit(request, kind, length, work)
            return
        started_ns = self._now_ns()
        error = _attempt(work)
        if self._now_ns() - started_ns > SLOW_NS + length * SLOW_NS_PER_BYTE:
            self._slow_left = SLOW_REQUESTS
        self._finish(request, kind, length, error)

    def _submit(self, request: Request, kind: int, length: int, work: Callable[[], None]) -> None:
        """Have a worker do it. No more can be under way than there are chains."""
        transport = self._transport
        assert transport is not None

        def job() -> None:
            try:
                done = _Done(request, kind, length, _attempt(work))
            except Exception:  # a bug: the loop says so, and the machine ends
                # As text: the error's frames hold slices of guest memory.
                transport.defer(partial(_fail, traceback.format_exc()))
                return
            with self._lock:
                self._completions.append(done)
                is_first, self._is_completing = not self._is_completing, True
            if is_first:
                transport.defer(self._complete)

        self._workers.submit(job)

    def _complete(self) -> None:
        """Answer what workers have done, all in one."""
        queue, transport = self._queue, self._transport
        if queue is None or transport is None:
            return
        with self._lock:
            completions, self._completions = self._completions, []
            self._is_completing = False
        for done in completions:
            self._finish(*done)
        if queue.publish():
            transport.interrupt_queues()

    def _finish(self, request: Request, kind: int, length: int, error: OSError | None) -> None:
        """Answer a request that was done, or that the host failed at."""
        if error is not None:
            self._errors += 1
            self._say(kind, error)
            self._answer(request, VIRTIO_BLK_S_IOERR, 0)
            return
        written_bytes = 0
        if kind == VIRTIO_BLK_T_IN:
            self._reads += 1
            self._read_bytes += length
            written_bytes = length
        elif kind == VIRTIO_BLK_T_OUT:
            self._writes += 1
            self._written_bytes += length
        elif kind == VIRTIO_BLK_T_FLUSH:
            self._flushes += 1
        elif kind == VIRTIO_BLK_T_DISCARD:
            self._discards += 1
        else:
            self._zeroes += 1
        self._answer(request, VIRTIO_BLK_S_OK, written_bytes)

    def _answer(self, request: Request, status: int, written_bytes: int) -> None:
        request.status[0] = status
        assert self._queue is not None
        self._queue.add_used(request.head_idx, written_bytes + 1)

    def _say(self, kind: int, error: OSError) -> None:
        """Log an error of the host's, the first of each sort."""
        sort = (kind, error.errno or 0)
        if sort not in self._said:
            self._said.add(sort)
            log.error(
                "%s: cannot %s: %s; the guest gets I/O errors, and only the first is said here",
                self._name,
                _NAMES[kind],
                error.strerror,
            )

    def statistics(self) -> BlockStatistics:
        """Return the counters. Thread: any."""
        return BlockStatistics(
            reads=self._reads,
            read_bytes=self._read_bytes,
            writes=self._writes,
            written_bytes=self._written_bytes,
            flushes=self._flushes,
            discards=self._discards,
            zeroes=self._zeroes,
            errors=self._errors,
            refused=self._refused,
        )


def _attempt(work: Callable[[], None]) -> OSError | None:
    try:
        work()
    except OSError as error:
        # Its traceback would hold the slices of guest memory that were being read or written.
        return error.with_traceback(None)
    return None


def _fail(story: str) -> None:
    raise RuntimeError(f"a disk's worker failed: {story}")
