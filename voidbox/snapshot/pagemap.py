"""Which pages of a mapping are there, and which are no longer its file's (proc_pid_pagemap(5)).

One u64 a page: bit 63 present, bit 62 swapped, bit 61 a page of a file or shared. In a private
mapping of a file a page that is there and not the file's is one that was written; so is a swapped
one, for pages of files are dropped and not swapped. No privilege is needed for these bits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

PAGE_BYTES = 4096
_ENTRY_BYTES = 8
_READ_PAGES = 64 << 10  # an entry each: 512 KiB, for 256 MiB of memory

_FILE, _SWAPPED, _PRESENT = 0x20, 0x40, 0x80  # in an entry's highest byte


def _table(is_wanted: list[bool]) -> bytes:
    return bytes(is_wanted)


# From an entry's highest byte to whether the page counts.
PRESENT = _table([bool(byte & (_PRESENT | _SWAPPED)) for byte in range(256)])
WRITTEN = _table(
    [bool(byte & _SWAPPED) or (byte & (_PRESENT | _FILE)) == _PRESENT for byte in range(256)]
)
CLEAN = _table([(byte & (_PRESENT | _FILE)) == _PRESENT | _FILE for byte in range(256)])


def open_pagemap() -> int:
    """Open this process's; a forked child opens its own.

    Raises:
        OSError: EACCES: the process may not see its own.
    """
    return os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)


def runs(fd: int, address: int, length: int, table: bytes) -> Iterator[tuple[int, int]]:
    """Return runs of pages that count, as (offset, length) in bytes from `address`.

    Args:
        table: PRESENT, WRITTEN or CLEAN.
    Raises:
        OSError: it cannot be read.
    """
    pages = length // PAGE_BYTES
    first_page = address // PAGE_BYTES
    for start in range(0, pages, _READ_PAGES):
        count = min(_READ_PAGES, pages - start)
        entries = os.pread(fd, count * _ENTRY_BYTES, (first_page + start) * _ENTRY_BYTES)
        marks = entries[_ENTRY_BYTES - 1 :: _ENTRY_BYTES].translate(table)
        at = marks.find(1)
        while at >= 0:
            end = marks.find(0, at)
            if end < 0:
                end = len(marks)
            yield (start + at) * PAGE_BYTES, (end - at) * PAGE_BYTES
            at = marks.find(1, end)
