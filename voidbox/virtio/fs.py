"""virtio-fs: a folder of the host, by messages of FUSE (VirtIO 1.2 §5.11).

    guest ─► hiprio, request queue, ioeventfds ─► worker thread: Server ─► openat, preadv, pwritev
    guest ◄─ used ring, interrupt ◄────────────────┘   the files' data goes straight to guest memory

A file system may be slow, or hang for as long as a server of its own is away, so requests never
come to the loop: the queues are the worker's. The loop gives them and takes them away, behind a
gate that the worker holds while it touches a queue or guest memory, or says that a driver broke the
rules, and at no other time. Answers that come close together are one interrupt.
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
from voidbox.fuse.numbers import FUSE_WRITE
from voidbox.fuse.server import PAGES_MAX, REQUEST_BYTES_MAX, WRITE_BYTES, Server
from voidbox.fuse.wire import IN_HEADER, OUT_HEADER
from voidbox.virtio.descriptors import Chain
from voidbox.virtio.device import VIRTIO_ID_FS, Transport, config_value
from voidbox.virtio.queue import Virtqueue

QUEUE_SIZE = 512  # Linux asks for so many pages at a time, less four, even with indirect tables
assert QUEUE_SIZE >= PAGES_MAX + 4
TAG_BYTES_MAX = 36
# struct virtio_fs_config { u8 tag[36]; le32 num_request_queues; };
_CONFIG = struct.Struct("<36sI")
# Answers that one interrupt tells of, at the most: the first of them has waited for the others.
_BATCH = 4
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
    """A request and its buffers: an Exchange. Thread: the worker's.

    Attributes:
        queue_idx: where it came from, and its answer goes.
        message: what Server.handle() takes.
    """

    def __init__(self, chain: Chain, queue_idx: int, gate: _Gate) -> None:
        self.head_idx = chain.head_idx
        self.queue_idx = queue_idx
        self.epoch = gate.epoch
        self.payload_bytes = 0
        self._gate = gate
        self._writable = chain.writable
        self._writable_bytes = chain.writable_bytes
        self._payload: list[memoryview] = []
        # Copied once, and not read again. What is longer than any request is refused as one that
        # ends before its fields do.
        self.message = first_bytes(chain.readable, WRITE_BYTES)
        size, opcode = IN_HEADER.unpack_from(self.message)[:2]
        if not IN_HEADER.size <= size <= chain.readable_bytes:
            raise GuestError(f"a FUSE message of {size} bytes in {chain.readable_bytes}")
        if opcode == FUSE_WRITE:
            self.payload_bytes = max(0, size - WRITE_BYTES)
            self._payload = skip(chain.readable, WRITE_BYTES)
        elif size > WRITE_BYTES and size <= REQUEST_BYTES_MAX:
            rest = clip(skip(chain.readable, WRITE_BYTES), size - WRITE_BYTES)
            self.message += b"".join(rest)
        self.message = self.message[:size]

    @property
    def room_bytes(self) -> int:
        """See Exchange."""
        return max(0, self._writable_bytes - OUT_HEADER.size)

    def write_to(self, fd: int, offset: int, count: int) -> int:
        """See Exchange."""
        with self._gate.open_for(self.epoch):
            return os.pwritev(fd, clip(self._payload, count), offset)

    def read_from(self, fd: int, offset: int, count: int) -> int:
        """See Exchange."""
        with self._gate.open_for(self.epoch):
            return os.preadv(fd, clip(skip(self._writable, OUT_HEADER.size), count), offset)

    def write_answer(self, message: bytes) -> None:
        """Write an answer. The gate is open.

        Raises:
            GuestError: it has no room.
        """
        if len(message) > self._writable_bytes:
            raise GuestError("a FUSE answer is longer than its buffer")
        write_bytes(self._writable, message)


class VirtioFs:
    """The device. Thread: loop, where nothing else is said; it has one thread of its own.

    Args:
        server: of the folder; owned by this.
        tag: what the guest mounts it by.

    Attributes:
        kick_fd: an eventfd for the queues' kicks, which the worker waits for.
    """

    device_id = VIRTIO_ID_FS
    device_features = 0
    queue_max_sizes = (QUEUE_SIZE, QUEUE_SIZE)  # hiprio, and one for requests

    def __init__(self, server: Server, tag: str) -> None:
        name = tag.encode()
        if not 0 < len(name) <= TAG_BYTES_MAX:
            raise ValueError(f"a mount tag of {len(name)} bytes")
        self._config = _CONFIG.pack(name, 1)
        self._server = server
        self._gate = _Gate()
        self._transport: Transport | None = None
        self._queues: tuple[Virtqueue, ...] = ()  # behind the gate
        self._session_epoch = 0  # the worker's: which the server's session is of
        self._unpublished = 0  # the worker's: answers of that epoch that the driver cannot see yet
        self._is_closing = False
        self._is_paused = False  # the gate's lock is held
        self._thread: threading.Thread | None = None
        self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC)

    def read_config(self, offset: int, width: int) -> int:
        """Read the mount tag, and how many queues for requests there are."""
        return config_value(self._config, offset, width)

    def write_config(self, offset: int, width: int, value: int) -> None:
        """There is nothing to write."""

    def activate(
        self, transport: Transport, driver_features: int, queues: Sequence[Virtqueue]
    ) -> None:
        """Give the queues to the worker."""
        with self._gate.lock:
            self._transport = transport
            self._queues = tuple(queues)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="voidbox-fs")
            self._thread.start()

    def queue_notify(self, queue_idx: int) -> None:
        """Pass a kick on that came another way."""
        os.eventfd_write(self.kick_fd, 1)

    def pause(self) -> None:
        """Keep the worker out of the queues and guest memory.

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
        """Take the queues away; the session ends once the worker gets there."""
        self._take_away()
        if self._thread is not None:
            os.eventfd_write(self.kick_fd, 1)

    def _take_away(self) -> None:
        """Returns when no data is under way to or from guest memory, and none will be."""
        self.resume()
        with self._gate.lock:
            self._gate.epoch += 1
            self._transport = None
            self._queues = ()

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
                log.error("the FUSE server failed: %s", traceback.format_exc())
                self._tell(f"the FUSE server failed: {error!r}")

    def _serve_all(self) -> None:
        try:
            is_more = True
            while is_more:
                while (request := self._next()) is not None:
                    with contextlib.suppress(_Stale):
                        self._serve(request)
                    del request  # it holds guest memory
                is_more = self._rest()
        except GuestError as error:
            # Behind the gate: else a reset might come between, and these be the next driver's.
            with contextlib.suppress(_Stale), self._gate.open_for(self._session_epoch):
                transport, self._queues = self._transport, ()
                if transport is not None:
                    transport.needs_reset(str(error))

    def _next(self) -> _Request | None:
        """Take a request; None if there is none."""
        if self._session_epoch != self._gate.epoch:
            self._session_epoch = self._gate.epoch
            self._unpublished = 0
            self._server.reset()
        with contextlib.suppress(_Stale), self._gate.open_for(self._session_epoch):
            for queue_idx, queue in enumerate(self._queues):
                queue.disable_notification()
                chain = queue.next_chain()
                if chain is not None:
                    if chain.readable_bytes < IN_HEADER.size:
                        raise GuestError("a FUSE request without a header")
                    return _Request(chain, queue_idx, self._gate)
        return None

    def _serve(self, request: _Request) -> None:
        answer = self._server.handle(request.message, request)
        with self._gate.open_for(request.epoch):
            if not self._queues:
                return
            written_bytes = 0
            if answer is not None:
                request.write_answer(answer.message)
                written_bytes = len(answer.message) + answer.data_bytes
            self._queues[request.queue_idx].add_used(request.head_idx, written_bytes)
            self._unpublished += 1
        if self._unpublished >= _BATCH:
            self._publish()

    def _publish(self) -> None:
        """Show the driver the answers that wait, and tell it if it wants to be told."""
        self._unpublished = 0
        with self._gate.open_for(self._session_epoch):
            transport = self._transport
            is_wanted = [queue.publish() for queue in self._queues]
        if transport is not None and any(is_wanted):
            transport.interrupt_queues()

    def _rest(self) -> bool:
        """Ask for kicks; returns whether requests came meanwhile, for which none may come."""
        with contextlib.suppress(_Stale):
            self._publish()
            with self._gate.open_for(self._session_epoch):
                return any([queue.enable_notification() for queue in self._queues])
        return False

    def _tell(self, reason: str) -> None:
        def fail() -> None:
            raise RuntimeError(reason)

        transport = self._transport
        if transport is not None:  # else a reset came: nobody waits for it
            transport.defer(fail)
