"""Guest memory: its maps, and the one checked way to reach them.

Every address and length that comes from the guest passes through `GuestMemory`, which hands out
`memoryview` slices of the map itself: nothing is copied, and nothing outside guest RAM can be
reached. RAM above 3 GiB is split around the hole in which MMIO devices live:

    0                    3 GiB        4 GiB
    ├── low RAM ──────────┤ MMIO hole  ├── high RAM ──────┤
"""

from __future__ import annotations

import contextlib
import mmap
import os

from voidbox.errors import GuestError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal

PAGE_BYTES = 4096
MMIO_HOLE_GPA = 0xC000_0000
MMIO_HOLE_END_GPA = 0x1_0000_0000

_MADV_REMOVE = 9  # <asm-generic/mman-common.h>: a hole in the memfd, which DONTNEED would leave
_MAP_NORESERVE = 0x4000  # <asm/mman.h>; Python 3.11's mmap module lacks it
_WORD_BYTES = {"H": 2, "I": 4, "Q": 8}


def layout(size_bytes: int) -> list[tuple[int, int]]:
    """Split `size_bytes` of RAM around the MMIO hole: a list of (gpa, length in bytes)."""
    low_bytes = min(size_bytes, MMIO_HOLE_GPA)
    ranges = [(0, low_bytes)]
    if size_bytes > low_bytes:
        ranges.append((MMIO_HOLE_END_GPA, size_bytes - low_bytes))
    return ranges


class MemoryRegion:
    """One contiguous range of guest RAM.

    Attributes:
        gpa: the first guest-physical address.
        size_bytes: its length.
        fd: the memfd of shared memory, for another process to map; or the file that private memory
            is a view of, whose pages become its own when they are written; else -1.
        file_offset: where in that file the region begins.
        is_shared: `fd` is a memfd.
        map: the whole region, as the object that KVM_SET_USER_MEMORY_REGION takes the address of.
        view: the same bytes, for slicing.
    """

    def __init__(
        self, gpa: int, size_bytes: int, shared: bool, file: tuple[int, int] | None = None
    ) -> None:
        self.gpa = gpa
        self.size_bytes = size_bytes
        self.fd = -1
        self.file_offset = 0
        self.is_shared = shared
        try:
            if file is not None:
                self.map = self._map_file(*file)
            else:
                self.map = self._map_shared() if shared else self._map_private()
        except OSError as error:
            self._close_fd()
            raise HostError.from_errno(f"map {size_bytes >> 20} MiB", error.errno or 0) from error
        self.view = memoryview(self.map)

    def _map_private(self) -> mmap.mmap:
        # Anonymous, not a memfd: only such memory gets huge pages on a stock host, and with them a
        # guest boots with a hundredth of the page faults. NORESERVE: pages are the host's only
        # once the guest touches them.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        mapped = mmap.mmap(-1, self.size_bytes, flags=flags)
        with contextlib.suppress(OSError):  # a host without transparent huge pages
            mapped.madvise(mmap.MADV_HUGEPAGE)
        return mapped

    def _map_shared(self) -> mmap.mmap:
        self.fd = os.memfd_create("voidbox-ram", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size_bytes)
        return mmap.mmap(self.fd, self.size_bytes, flags=mmap.MAP_SHARED | _MAP_NORESERVE)

    def _map_file(self, fd: int, offset: int) -> mmap.mmap:
        # The size first: pages past the end of a file end the process that touches them.
        if os.fstat(fd).st_size < offset + self.size_bytes:
            raise HostError("the file of guest memory was cut short")
        self.fd = os.dup(fd)
        self.file_offset = offset
        flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
        prot = mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(fd, self.size_bytes, flags=flags, prot=prot, offset=offset)

    def _close_fd(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def discard(self, offset: int, length: int) -> None:
        """Give whole pages back to the host. What they held is gone.

        Afterwards private memory reads as zeroes, or as the file that it is a view of: the kernel
        drops the pages that were written, and what another process has of the file stays as it is.
        """
        advice = _MADV_REMOVE if self.is_shared else mmap.MADV_DONTNEED
        with contextlib.suppress(OSError):  # EINVAL: they are locked in memory, and stay
            self.map.madvise(advice, offset, length)

    def close(self) -> None:
        """Release the map. Every slice handed out must have been released."""
        self.view.release()
        self._close_fd()
        self.map.close()


class GuestMemory:
    """All RAM of one guest. Thread: any; slices alias memory that the running guest may change.

    Args:
        size_bytes: a multiple of 4,096.
        shared: back it by memfds, which other processes can map, at the price of huge pages.
        file_fd: have it begin as this file, the regions back to back; what is written is not
            written there.
    """

    def __init__(self, size_bytes: int, shared: bool = False, file_fd: int | None = None) -> None:
        if size_bytes <= 0 or size_bytes % PAGE_BYTES:
            raise ValueError(f"guest memory of {size_bytes} bytes is no multiple of a page")
        self.size_bytes = size_bytes
        self.regions: list[MemoryRegion] = []
        try:
            offset = 0
            for gpa, length in layout(size_bytes):
                file = None if file_fd is None else (file_fd, offset)
                self.regions.append(MemoryRegion(gpa, length, shared, file))
                offset += length
        except HostError:
            self.close()
            raise

    def view(self, gpa: int, length: int) -> memoryview:
        """Return guest memory [gpa, gpa + length) as a writable slice of the map.

        Raises:
            GuestError: the range is not wholly inside one region of RAM.
        """
        for region in self.regions:
            offset = gpa - region.gpa
            if offset >= 0 and 0 <= length <= region.size_bytes - offset:
                return region.view[offset : offset + length]
        raise GuestError(f"guest address {gpa:#x} + {length:#x} bytes is not inside RAM")

    def words(self, gpa: int, code: Literal["H", "I", "Q"], count: int) -> memoryview:
        """Return `count` aligned little-endian words as an indexable view of u16, u32 or u64.

        Words that a running guest also writes (ring indices, flags) are accessed only this way:
        each index is one load or store of the whole word, where `struct` and byte-wise access
        tear. x86-64 is little-endian, as virtio 1.x and every boot structure are.

        Raises:
            GuestError: the range is misaligned or not wholly inside one region of RAM.
        """
        width = _WORD_BYTES[code]
        if gpa % width:
            raise GuestError(f"guest address {gpa:#x} is not aligned to {width} bytes")
        return self.view(gpa, count * width).cast(code)

    def read(self, gpa: int, length: int) -> bytes:
        """Copy `length` bytes out of guest memory."""
        return bytes(self.view(gpa, length))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` into guest memory."""
        self.view(gpa, len(data))[:] = data

    def discard(self, gpa: int, length: int) -> None:
        """Give whole pages back to the host; see MemoryRegion.discard.

        Raises:
            GuestError: they are no pages, or not wholly inside one region of RAM.
        """
        if gpa % PAGE_BYTES or length % PAGE_BYTES:
            raise GuestError(f"guest address {gpa:#x} + {length:#x} bytes are no whole pages")
        for region in self.regions:
            offset = gpa - region.gpa
            if offset >= 0 and 0 < length <= region.size_bytes - offset:
                region.discard(offset, length)
                return
        raise GuestError(f"guest address {gpa:#x} + {length:#x} bytes is not inside RAM")

    @property
    def reads_as_zero(self) -> bool:
        """Whether what was discarded does: not where memory is a view of a file."""
        return all(region.is_shared or region.fd < 0 for region in self.regions)

    def load_file(self, fd: int, offset: int, gpa: int, length: int) -> None:
        """Read `length` bytes at `offset` of a file straight into guest memory.

        Raises:
            GuestError: the range is outside RAM.
            HostError: the file ended early or could not be read.
        """
        done = 0
        # Released here: an error's traceback would hold the view, and the map could not be closed.
        with self.view(gpa, length) as target:
            while done < length:
                with target[done:] as rest:
                    count = os.preadv(fd, [rest], offset + done)
                if count == 0:
                    raise HostError(f"the file ended {length - done} bytes early")
                done += count

    def __iter__(self) -> Iterator[MemoryRegion]:
        return iter(self.regions)

    def close(self) -> None:
        """Give the memory back to the host. Idempotent."""
        while self.regions:
            self.regions.pop().close()

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
