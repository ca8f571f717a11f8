"""A disk of its own over a base that any number of machines share.

What the guest wrote is in the overlay's file, all else in the base, which is only read. A cluster
of which a part is written for the first time gets the rest from the base. See overlay_format for
what the file is like and when it is right.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence

from voidbox.block.bitmap import Bitmap
from voidbox.block.host_file import File
from voidbox.block.host_io import Buffers
from voidbox.block.overlay_format import BITMAP_OFFSET, Header
from voidbox.buffers import Cursor

log = logging.getLogger(__name__)

_PIECE_CLUSTERS = 1024  # of a request, at a time: looking at bits costs more than in proportion
_ZEROES = bytes(64 << 10)


class OverlayBackend:
    """A Backend over two files, which become its own. Thread: any.

    Args:
        bits: the file's bitmap.
    """

    def __init__(
        self, base: File, file: File, header: Header, bits: bytearray, is_read_only: bool
    ) -> None:
        self.size_bytes = header.size_bytes
        self.is_read_only = is_read_only
        self._base = base
        self._file = file
        self._data_offset = header.data_offset
        self._cluster_bytes = header.cluster_bytes
        self._bitmap = Bitmap(bits)
        # Held while clusters are made, so that of two writes to one the second does not take from
        # the base what the first wrote. Clusters that are there need none.
        self._make_lock = threading.Lock()
        self._flush_lock = threading.Lock()  # taken first
        self._is_closed = False

    def _runs(self, offset: int, length: int) -> Iterator[tuple[bool, int, int]]:
        """Return pieces of a range that are in one file: whether ours, offset and length."""
        cluster_bytes = self._cluster_bytes
        end = offset + length
        while offset < end:
            first = offset // cluster_bytes
            last = min(-(-end // cluster_bytes), first + _PIECE_CLUSTERS)
            for is_ours, run_end in self._bitmap.runs(first, last):
                piece_end = min(run_end * cluster_bytes, end)
                yield is_ours, offset, piece_end - offset
                offset = piece_end

    def read(
        self, buffers: Sequence[memoryview], offset: int, length: int, nowait: bool = False
    ) -> None:
        """See Backend."""
        cursor = Cursor(buffers)
        for is_ours, at, piece_bytes in self._runs(offset, length):
            piece = buffers if piece_bytes == length else cursor.take(piece_bytes)
            if is_ours:
                self._file.read(piece, self._data_offset + at, piece_bytes, nowait)
            else:
                self._base.read(piece, at, piece_bytes, nowait)

    def write(self, buffers: Buffers, offset: int, length: int) -> None:
        """See Backend."""
        first, end = offset // self._cluster_bytes, -(-(offset + length) // self._cluster_bytes)
        if self._bitmap.are_set(first, end):
            self._file.write(buffers, self._data_offset + offset, length)
        elif length:
            with self._make_lock:
                self._write_clusters(buffers, offset, length, first, end)

    def _write_clusters(
        self, buffers: Buffers, offset: int, length: int, first: int, end: int
    ) -> None:
        """Write some clusters that are not there yet, the rest of the outer two from the base."""
        cluster_bytes = self._cluster_bytes
        start = offset if self._bitmap.is_set(first) else first * cluster_bytes
        stop = offset + length
        if not self._bitmap.is_set(end - 1):
            stop = min(end * cluster_bytes, self.size_bytes)
        pieces: list[memoryview | bytes] = list(buffers)
        if start < offset:
            pieces.insert(0, self._from_base(start, offset - start))
        if stop > offset + length:
            pieces.append(self._from_base(offset + length, stop - offset - length))
        self._file.write(pieces, self._data_offset + start, stop - start)
        self._bitmap.set(first, end)

    def _from_base(self, offset: int, length: int) -> memoryview:
        data = memoryview(bytearray(length))
        self._base.read([data], offset, length)
        return data

    def discard(self, offset: int, length: int) -> None:
        """See Backend. What is discarded hides the base, but for the parts of clusters."""
        first, end = self._whole_clusters(offset, length)
        if first >= end:
            return
        start = first * self._cluster_bytes
        stop = min(end * self._cluster_bytes, self.size_bytes)
        with self._make_lock:
            if self._file.discard(self._data_offset + start, stop - start):
                self._bitmap.set(first, end)

    def zero(self, offset: int, length: int, may_unmap: bool) -> None:
        """See Backend."""
        first, end = self._whole_clusters(offset, length)
        if first >= end:
            self._write_zeroes(offset, length)
            return
        start = first * self._cluster_bytes
        stop = min(end * self._cluster_bytes, self.size_bytes)
        self._write_zeroes(offset, start - offset)
        with self._make_lock:
            self._file.zero(self._data_offset + start, stop - start, may_unmap)
            self._bitmap.set(first, end)
        self._write_zeroes(stop, offset + length - stop)

    def _whole_clusters(self, offset: int, length: int) -> tuple[int, int]:
        """Return the clusters that lie wholly in a range; the disk's last may be a short one."""
        end = offset + length
        if end == self.size_bytes:
            end += -end % self._cluster_bytes
        return -(-offset // self._cluster_bytes), end // self._cluster_bytes

    def _write_zeroes(self, offset: int, length: int) -> None:
        """Write less than two clusters."""
        zeroes = memoryview(_ZEROES)
        while length > 0:
            count = min(length, len(zeroes))
            self.write([zeroes[:count]], offset, count)
            offset += count
            length -= count

    def flush(self) -> None:
        """See Backend. First the clusters, then the bits that say that they are there."""
        with self._flush_lock:
            with self._make_lock:
                pages = self._bitmap.take_dirty()
            try:
                self._file.sync()
                for offset, page in pages:
                    self._file.write([page], BITMAP_OFFSET + offset, len(page))
                if pages:
                    self._file.sync()
            except OSError:
                with self._make_lock:
                    self._bitmap.mark_dirty(offset for offset, _ in pages)
                raise

    def close(self) -> None:
        """See Backend. What was written and not flushed is kept, if the host can still do it."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._bitmap.is_dirty:
            try:
                self.flush()
            except OSError as error:
                log.error("an overlay lost what was not flushed: %s", error.strerror)
        self._file.close()
        self._base.close()
