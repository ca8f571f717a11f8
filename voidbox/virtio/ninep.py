"""virtio-9p: a folder of the host, by messages of 9P2000.L (linux/virtio_9p.h).

    guest ─► requestq, its ioeventfd ─► worker thread: Server ─► openat, preadv, pwritev
    guest ◄─ used ring, interrupt ◄──────────┘   the files' data goes straight to guest memory

A file system may be slow, or hang for as long as a server of its own is away, so requests never
come to the loop: the queue is the worker's. The loop gives it and takes it away, behind a gate that
the worker holds while it touches the queue or guest memory, or says that a driver broke the rules,
and at no other time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import threading
import traceback
from collections.abc import Iterator, Sequence

from voidbox.buffers import clip, first_bytes, skip, write_bytes
from voidbox.errors import GuestError, HostError
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

# How long a pause waits for a read or write that the host has begun.
PAUSE_S = 10.0

log = logging.getLogger(__name__)


class _Stale(Exception):
    """The device was reset since the request came: its buffers are the driver's again."""


class _Gate:
    """Lets the worker touch guest memory for requests that no reset has overtaken."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # held while the queue or guest memory is touched
        self.epoch = 0  # one more with each reset

    @contextlib.contextmanager
    def open_for(self, epoch: int) -> Iterator[None]:
        """Guest memory may be touched in the block.

        Raises:
            _Stale: it may not any more.
        """
        with self.lock:
            if epoch != self.epoch:
                raise _Stale
            yield


class _Request:
    """A request and its buffers: an Exchange. Thread: the worker's."""

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

    def write_answer(self, message: bytes) -> None:
        """Write an answer. The gate is open.

        Raises:
            GuestError: it has no room.
        """
        if len(message) > self._writable_bytes:
            raise GuestError("a 9P answer is longer than its buffer")
        write_bytes(self._writable, message)


class VirtioNinep:
    """The device. Thread: loop, where nothing else is said; it has one thread of its own.

    Args:
        server: of the folder; owned by this.
        tag: what the guest mounts it by.

    Attributes:
        kick_fd: an eventfd for the queue's kicks, which the worker waits for.
    """

    device_id = VIRTIO_ID_9P
    device_features = VIRTIO_9P_MOUNT_TAG
    queue_max_sizes = (QUEUE_SIZE,)

    def __init__(self, server: Server, tag: str) -> None:
        name = tag.encode()
        if not 0 < len(name) <= TAG_BYTES_MAX:
            raise ValueError(f"a mount tag of {len(name)} bytes")
        self._config = _TAG_LEN.pack(len(name)) + name
        self._server = server
        self._gate = _Gate()
        self._transport: Transport | None = None
        self._queue: Virtqueue | None = None  # behind the gate
        self._session_epoch = 0  # the worker's: which the server's session is of
        self._is_closing = False
        self._is_paused = False  # the gate's lock is held
        self._thread: threading.Thread | None = None
        self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC)

    def read_config(self, offset: int, width: int) -> int:
        """Read the mount tag."""
        return config_value(self._config, offset, width)

    def write_config(self, offset: int, width: int, value: int) -> None:
        """There is nothing to write."""

    def activate(
        self, transport: Transport, driver_features: int, queues: Sequence[Virtqueue]
    ) -> None:
        """Give requestq to the worker."""
        with self._gate.lock:
            self._transport = transport
            (self._queue,) = queues
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="voidbox-9p")
            self._thread.start()

    def queue_notify(self, queue_idx: int) -> None:
        """Pass a kick on that came another way."""
        os.eventfd_write(self.kick_fd, 1)

    def pause(self) -> None:
        """Keep the worker out of the queue and guest memory.

        Raises:
            HostError: it is there, and the host's file system does not let it go on.
        """
        if not self._gate.lock.acquire(timeout=PAUSE_S):
            raise HostError(f"a shared folder's file system did not answer in {PAUSE_S:g} s")
        self._is_paused = True

    def resume(self) -> None:
        """Let the worker go on."""
        if self._is_paused:
            self._is_paused = False
            self._gate.lock.release()

    def reset(self) -> None:
        """Take the queue away; the session ends once the worker gets there."""
        self._take_away()
        if self._thread is not None:
            os.eventfd_write(self.kick_fd, 1)

    def _take_away(self) -> None:
        """Returns when no data is under way to or from guest memory, and none will be."""
        self.resume()
        with self._gate.lock:
            self._gate.epoch += 1
            self._transport = self._queue = None

    def close(self) -> None:
        """End the worker, once it has done what it does, and close the folder. Idempotent.

        Thread: loop, or any once the loop is stopped.
        """
        self._take_away()
        self._is_closing = True
        if self._thread is not None:
            os.eventfd_write(self.kick_fd, 1)
            self._thread.join()
            self._thread = None
        if self.kick_fd >= 0:
            os.close(self.kick_fd)
            self.kick_fd = -1
        self._server.close()

    # The worker. Thread: its own.

    def _work(self) -> None:
        while not self._is_closing:
            os.eventfd_read(self.kick_fd)
            try:
                self._serve_all()
            except Exception as error:  # a bug: handed to the loop, which ends the machine with it
                # Only told, for its traceback would hold guest memory.
                log.error("the 9P server failed: %s", traceback.format_exc())
                self._tell(f"the 9P server failed: {error!r}")

    def _serve_all(self) -> None:
        try:
            while (request := self._next()) is not None:
                with contextlib.suppress(_Stale):
                    self._serve(request)
                del request  # it holds guest memory
        except GuestError as error:
            # Behind the gate: else a reset might come between, and the queue be the next driver's.
            with contextlib.suppress(_Stale), self._gate.open_for(self._session_epoch):
                transport, self._queue = self._transport, None
                if transport is not None:
                    transport.needs_reset(str(error))

    def _next(self) -> _Request | None:
        """Take a request; None if there is none, and a kick will tell of the next."""
        if self._session_epoch != self._gate.epoch:
            self._session_epoch = self._gate.epoch
            self._server.reset()
        with self._gate.lock:
            requests = self._queue
            if requests is None or self._session_epoch != self._gate.epoch:
                return None
            requests.disable_notification()
            chain = requests.next_chain()
            if chain is None:
                if not requests.enable_notification():
                    return None
                chain = requests.next_chain()  # it came just before
                if chain is None:
                    return None
            if chain.readable_bytes < HEADER.size or chain.writable_bytes < LERROR.size:
                raise GuestError("a 9P request without a header, or without room for an answer")
            return _Request(chain, self._gate)

    def _serve(self, request: _Request) -> None:
        message, data_bytes = self._server.handle(request.message, request)
        with self._gate.open_for(request.epoch):
            requests, transport = self._queue, self._transport
            if requests is None or transport is None:
                return
            request.write_answer(message)
            requests.add_used(request.head_idx, len(message) + data_bytes)
            is_wanted = requests.publish()
        if is_wanted:
            transport.interrupt_queues()

    def _tell(self, reason: str) -> None:
        def fail() -> None:
            raise RuntimeError(reason)

        transport = self._transport
        if transport is not None:  # else a reset came: nobody waits for it
            transport.defer(fail)
