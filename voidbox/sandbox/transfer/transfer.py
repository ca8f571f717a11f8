"""What uploads and downloads have in common.

A folder's small files go in batches: all requests of a batch are under way at once, and the disk
is one call to a thread. Big files go in pieces; see pieces.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from voidbox.agent.aio import AsyncCall
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.session import Session
from voidbox.sandbox.transfer.telling import Progress, Teller
from voidbox.sandbox.transfer.trees import SMALL_BYTES, Entry

_logger = logging.getLogger("voidbox")

_BATCH_FILES, _BATCH_BYTES = 32, 2 << 20
_WORKERS = 4

T = TypeVar("T")


class TransferResult(NamedTuple):
    """What was copied.

    Attributes:
        files: how many.
        bytes: in them.
        skipped: what was not copied, each with the reason: links that lead outside, sockets, what
            could not be read in the guest.
        seconds: how long it took.
        carrier: what it went over: "vsock" or "serial".
        errors: how many of `skipped` could not be read.
    """

    files: int
    bytes: int
    skipped: tuple[str, ...]
    seconds: float
    carrier: str
    errors: int = 0


class Transfer:
    """One upload or download, and what is told about it."""

    def __init__(
        self,
        session: Session,
        what: str,
        user: str | None,
        progress: Progress | None,
        limit_s: float,
    ) -> None:
        self._session = session
        self._agent = session.agent
        self._what = what
        self._user = user
        self._teller = Teller(progress)
        self._limit_s = limit_s
        self._started = time.monotonic()
        self._done_bytes = self._total_bytes = 0
        self._files = self._errors = 0
        self._skipped: list[str] = []

    def _values(self, path: str, **others: object) -> dict[str, Any]:
        return self._session.values(self._user, path=path, **others)

    def _begin(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._on_bytes(0)

    def _on_bytes(self, count: int) -> None:
        self._done_bytes += count
        self._teller.tell(self._done_bytes, max(self._total_bytes, self._done_bytes))

    async def run(self, work: Awaitable[None]) -> TransferResult:
        """Return what came of one of the transfers that a subclass has."""
        try:
            await work
            await self._teller.end()
        finally:
            self._teller.cancel()
        return self._result()

    def _result(self) -> TransferResult:
        seconds = time.monotonic() - self._started
        carrier = self._agent.carrier
        result = TransferResult(
            self._files, self._done_bytes, tuple(self._skipped), seconds, carrier, self._errors
        )
        for line in self._skipped:
            _logger.info("%s: %s: left out", self._session.name, line)
        _logger.info(
            "%s: %s: %d files, %d bytes in %.2f s via %s",
            self._session.name, self._what, *result[:2], seconds, carrier,
        )  # fmt: skip
        return result

    async def _share(
        self,
        files: Sequence[Entry],
        do_batch: Callable[[Sequence[Entry]], Awaitable[None]],
        do_one: Callable[[Entry], Awaitable[None]],
    ) -> None:
        """Have a few coroutines do all files, the small ones in batches."""
        small = [entry for entry in files if entry.size <= SMALL_BYTES]
        work: list[Callable[[], Awaitable[None]]] = [
            partial(do_batch, batch) for batch in cut(small)
        ]
        work += [partial(do_one, entry) for entry in files if entry.size > SMALL_BYTES]
        waiting = iter(work)

        async def worker() -> None:
            for action in waiting:
                await action()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_WORKERS, len(work))):
                    group.create_task(worker())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None


class Calls(list[AsyncCall]):
    """Requests under way together; as a context manager it cancels those that have not ended."""

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        for call in self:
            if not call.is_over:
                call.cancel()


def cut(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut into batches of so many, and of so many bytes if they are files."""
    batch: list[T] = []
    total = 0
    for item in items:
        size = item.size if isinstance(item, Entry) else 0
        if batch and (len(batch) == _BATCH_FILES or total + size > _BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch


def join(path: str, parts: tuple[str, ...]) -> str:
    """Return the path of something in a folder."""
    return "/".join((path.rstrip("/") if parts else path, *parts))
