"""virtio-9p: a folder of the host, by messages of 9P2000.L (linux/virtio_9p.h).

    guest ─► requestq ─► loop: copies the message ─► worker thread: Server
    guest memory ◄─────────── the files' data ──────────► preadv, pwritev
    guest ◄─ used ring ◄─ loop ◄──────────────────── worker

A file system may be slow, or hang for as long as a server of its own is away: nothing here waits
for it on the loop, but for a reset, which waits until no data is under way to or from guest memory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import struct
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from voidbox.buffers import clip, first_bytes, skip, write_bytes
from voidbox.errors import GuestError
from voidbox.ninep.numbers import P9_TWRITE
from voidbox.ninep.server import REQUEST_BYTES_MAX, Server
from voidbox.ninep.session import MSIZE_MAX
from voidbox.ninep.wire import HEADER, LERROR, READ_HEADER, WRITE_HEADER
from voidbox.virtio.device import VIRTIO_ID_9P, Transport, config_value
from voidbox.virtio.queue import Chain, Virtqueue

QUEUE_SIZE = 128  # Linux's VIRTQUEUE_NUM: how much of a chain it puts together
VIRTIO_9P_MOUNT_TAG = 1 << 0
TAG_BYTES_MAX = 32
# struct virtio_9p_config { __virtio16 tag_len; __u8 tag[]; };
_TAG_LEN = struct.Struct("<H")

log = logging.getLogger(__name__)


class _Stale(Exception):
    """The device was reset since the request came: its buffers are the driver's again."""


class _Gate:
    """Lets the worker touch guest memory for requests that no reset has overtaken. Thread: any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held while guest memory is read or written
        self.epoch = 0

    @contextlib.contextmanager
    def open_for(self, epoch: int) -> Iterator[None]:
        """Guest memory may be touched in the block.

        Raises:
            _Stale: it may not any more.
        """
        with self._lock:
            if epoch != self.epoch:
                raise _Stale
            yield

    def shut(self) -> None:
        """Let nobody in who is not yet; returns when those who are have left."""
        with self._lock:
            self.epoch += 1


class _Request:
    """A request and its buffers: an Exchange. Thread: the worker's, once it is made."""

    def __init__(self, chain: Chain, gate: _Gate) -> None:
        self.head_idx = chain.head_idx
        self.epoch = gate.epoch
        self._gate = gate
        self._writable = chain.writable
        self._writable_bytes = chain.writable_bytes
        start = first_bytes(chain.readable, WRITE_HEADER.size)
        size, kind, _ = HEADER.unpack_from(start)
        if not HEADER.size <= size <= chain.readable_bytes:
            raise GuestError(f"a 9P message of {size} bytes in {chain.readable_bytes}")
        self.message = start[:size]
        self.payload_bytes = 0
        self._payload: list[memoryview] = []
        rest = clip(skip(chain.readable, len(start)), size - len(self.message))
        if kind == P9_TWRITE:
            self.payload_bytes = size - len(self.message)
            self._payload = rest
        elif size <= REQUEST_BYTES_MAX:  # a longer one is none: without its fields it is refused
            self.message += b"".join(rest)

    @property
    def room_bytes(self) -> int:
        """See Exchange."""
        return self._writable_bytes - READ_HEADER.size

    def write_to(self, fd: int, offset: int, count: int) -> int:
        """See Exchange."""
        with self._gate.open_for(self.epoch):
            return os.pwritev(fd, clip(self._payload, min(count, MSIZE_MAX)), offset)

    def read_from(self, fd: int, offset: int, count: int) -> int:
        """See Exchange."""
        with self._gate.open_for(self.epoch):
            return os.preadv(fd, clip(self._room(), count), offset)

    def _room(self) -> list[memoryview]:
        return skip(self._writable, READ_HEADER.size)

    def payload(self, count: int) -> bytes:
        """See Exchange."""
        with self._gate.open_for(self.epoch):
            return b"".join(clip(self._payload, count))

    def answer(self, message: bytes) -> bool:
        """Write an answer; whether it had room."""
        if len(message) > self._writable_bytes:
            return False
        with self._gate.open_for(self.epoch):
            write_bytes(self._writable, message)
        return True


class _Done(NamedTuple):
    """A request that was answered; or, of fewer than no bytes, that had no room for that."""

    head_idx: int
    epoch: int
    written_bytes: int


class VirtioNinep:
    """The device. Thread: loop, where nothing else is said; it has one thread of its own.

    Args:
        server: of the folder; owned by this.
        tag: what the guest mounts it by.
    """

    device_id = VIRTIO_ID_9P
    device_features = VIRTIO_9P_MOUNT_TAG
    queue_max_sizes = (QUEUE_SIZE,)

    def __init__(self, server: Server, tag: str) -> None:
        self._server = server
        name = tag.encode()
        if not 0 < len(name) <= TAG_BYTES_MAX:
            raise ValueError(f"a mount tag of {len(name)} bytes")
        self._config = _TAG_LEN.pack(len(name)) + name
        self._transport: Transport | None = None
        self._queue: Virtqueue | None = None
        self._gate = _Gate()
        self._waiting: queue.SimpleQueue[_Request | Callable[[], bool]] = queue.SimpleQueue()
        self._done: deque[_Done] = deque()
        self._is_told = False  # the loop will look at _done
        self._thread: threading.Thread | None = None

    def read_config(self, offset: int, width: int) -> int:
        """Read the mount tag."""
        return config_value(self._config, offset, width)

    def write_config(self, offset: int, width: int, value: int) -> None:
        """There is nothing to write."""

    def activate(
        self, transport: Transport, driver_features: int, queues: Sequence[Virtqueue]
    ) -> None:
        """Start to serve requestq."""
        self._transport = transport
        (self._queue,) = queues
        self._is_told = False  # what the worker told before was told to nobody
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="voidbox-9p")
            self._thread.start()

    def reset(self) -> None:
        """Forget the queue and all requests; the session ends once the worker gets there."""
        self._transport = self._queue = None
        self._gate.shut()
        self._drain()
        self._waiting.put(self._end_session)

    def _drain(self) -> None:
        """Drop the requests that wait, and the buffers that they hold."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()

    def close(self) -> None:
        """End the worker, once it has done what it does, and close the folder. Idempotent.

        Thread: loop, or any once the loop is stopped.
        """
        self._gate.shut()
        self._drain()
        if self._thread is not None:
            self._waiting.put(lambda: False)
            self._thread.join()
            self._thread = None
        self._server.close()

    def queue_notify(self, queue_idx: int) -> None:
        """Hand what is there to the worker.

        One pass is bounded: no more chains can be out than the queue is long.
        """
        requests = self._queue
        if requests is None or self._transport is None:
            return
        requests.disable_notification()
        for _ in range(QUEUE_SIZE):
            chain = requests.next_chain()
            if chain is None:
                break
            if chain.readable_bytes < HEADER.size or chain.writable_bytes < LERROR.size:
                raise GuestError("a 9P request without a header, or without room for an answer")
            self._waiting.put(_Request(chain, self._gate))
        if requests.enable_notification():
            self._transport.defer(lambda: self.queue_notify(0))

    def _finish(self) -> None:
        """Return to the driver what the worker has answered."""
        self._is_told = False
        requests, transport = self._queue, self._transport
        if requests is None or transport is None:
            return
        while self._done:
            head_idx, epoch, written_bytes = self._done.popleft()
            if epoch != self._gate.epoch:
                continue
            if written_bytes < 0:
                raise GuestError("a 9P answer is longer than its buffer")
            requests.add_used(head_idx, written_bytes)
        if requests.publish():
            transport.interrupt_queues()

    # The worker. Thread: its own.

    def _work(self) -> None:
        while True:
            item = self._waiting.get()
            if isinstance(item, _Request):
                self._serve(item)
            elif not item():
                return
            del item  # it holds guest memory

    def _end_session(self) -> bool:
        self._server.reset()
        return True

    def _serve(self, request: _Request) -> None:
        try:
            answer = self._server.handle(request.message, request)
            has_room = request.answer(answer.message)
        except _Stale:
            return
        except Exception as error:  # a bug: handed to the loop, which ends the machine with it
            # Only told, for its traceback would hold guest memory.
            log.error("the 9P server failed: %s", traceback.format_exc())
            self._tell(_raiser(f"the 9P server failed: {error!r}"))
            return
        written_bytes = len(answer.message) + answer.data_bytes if has_room else -1
        self._done.append(_Done(request.head_idx, request.epoch, written_bytes))
        if not self._is_told:
            self._is_told = True
            self._tell(self._finish)

    def _tell(self, work: Callable[[], None]) -> None:
        transport = self._transport
        if transport is not None:  # else a reset came: nobody waits for it
            transport.defer(work)


def _raiser(reason: str) -> Callable[[], None]:
    def work() -> None:
        raise RuntimeError(reason)

    return work
