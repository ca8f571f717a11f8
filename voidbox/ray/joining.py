"""Joins two sockets: what one end sends, the other receives, both ways, until both have ended.

By splice(2) through a pipe: the kernel moves the pages, and this process copies nothing. What a
sink does not take, its source is not asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket

_PIPE_BYTES = 1 << 20  # of each way: what is under way at most
_FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


class _Way:
    """One direction. Thread: the event loop's.

    Args:
        source, sink: they do not block.

    Attributes:
        ended: told when the source has ended, or what went wrong.
    """

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self._source, self._sink = source, sink
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._under_way = 0  # bytes in the pipe
        self._from, self._to = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # a user without privileges may have had its share
            fcntl.fcntl(self._to, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._loop.add_reader(source, self._take)

    def close(self) -> None:
        """Look at the sockets no more."""
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)
        os.close(self._from)
        os.close(self._to)
        self.ended.cancel()

    def _take(self) -> None:
        """Have the pipe, which is empty, take what there is, and pass it on."""
        try:
            size = os.splice(self._source.fileno(), self._to, _PIPE_BYTES, flags=_FLAGS)
            if not size:
                self._end()
                return
            self._under_way = size
            if not self._passed_on():
                self._loop.remove_reader(self._source)
                self._loop.add_writer(self._sink, self._go_on)
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(error)

    def _go_on(self) -> None:
        try:
            if self._passed_on():
                self._loop.remove_writer(self._sink)
                self._loop.add_reader(self._source, self._take)
        except OSError as error:
            self._fail(error)

    def _passed_on(self) -> bool:
        """Have the sink take what it takes; return whether that was all."""
        with contextlib.suppress(BlockingIOError):
            self._under_way -= os.splice(
                self._from, self._sink.fileno(), self._under_way, flags=_FLAGS
            )
        return not self._under_way

    def _end(self) -> None:
        self._loop.remove_reader(self._source)
        with contextlib.suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)
        if not self.ended.done():
            self.ended.set_result(None)

    def _fail(self, error: OSError) -> None:
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)
        if not self.ended.done():
            self.ended.set_exception(error)


async def join(one: socket.socket, other: socket.socket) -> None:
    """Join two sockets, which do not block; return when both have ended.

    Raises:
        OSError: one of them failed.
    """
    with contextlib.ExitStack() as stack:
        ways = []
        for source, sink in ((one, other), (other, one)):
            way = _Way(source, sink)
            stack.callback(way.close)
            ways.append(way)
        await asyncio.gather(*(way.ended for way in ways))
