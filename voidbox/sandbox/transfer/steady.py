"""A file that changes while it is read is read again: what is had is no mixture."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from voidbox.agent.call import RequestFailed
from voidbox.agent.core import printable
from voidbox.named_tuple import NamedTuple

_READS_MAX = 3

T = TypeVar("T")


class ReadInfo(NamedTuple):
    """What the guest said of a file that was read, as it was when that began and ended."""

    size: int
    mode: int
    mtime_ns: int
    file: int
    end_size: int
    end_mtime_ns: int

    def is_as(self, first: ReadInfo) -> bool:
        """Whether the file has not changed since `first`, nor while this was read."""
        return (
            self.file == first.file
            and self.size == self.end_size == first.size
            and self.mtime_ns == self.end_mtime_ns == first.mtime_ns
        )

    def is_grown(self, first: ReadInfo) -> bool:
        """Whether all that has changed is that more was added."""
        return self.file == first.file and self.end_size >= self.size >= first.size < self.end_size


class Changed(RequestFailed):
    """The file was replaced or written to while it was read."""

    def __init__(self, path: str) -> None:
        super().__init__("changed", f"{printable(path)}: it changed again and again")


async def steady(read: Callable[[bool], Awaitable[T]]) -> T:
    """Have a file read, again if it changed meanwhile.

    Args:
        read: its argument is whether to put up with a file that grows, as a log does: for one that
            does so all the time. What is had of it is as long as it was at the beginning.
    Raises:
        Changed: it changes all the time.
    """
    for takes_growth in (False, *(True,) * (_READS_MAX - 2)):
        try:
            return await read(takes_growth)
        except Changed:
            pass
    return await read(True)
