"""A command for each line: how lines become commands, and what is printed of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError
from typing import Any, BinaryIO

from voidbox.cli import exit_status
from voidbox.cli.complain import complain
from voidbox.cli.count_bar import CountBar
from voidbox.cli.output import shown
from voidbox.errors import CommandTimeout, VoidboxError
from voidbox.named_tuple import NamedTuple
from voidbox.pool.aio import AsyncPool

PLACE = "{}"
_AHEAD_LINES = 1000  # that are read before there is a sandbox for them


class Job(NamedTuple):
    """What is to be run.

    Attributes:
        timeout_s: of each command.
        keeps_order: print in the lines' order, not as they end.
    """

    command: tuple[str, ...]
    timeout_s: float | None = None
    keeps_order: bool = False
    as_json: bool = False
    is_quiet: bool = False
    is_verbose: bool = False


class Limits(NamedTuple):
    """The pool; see AsyncPool."""

    size: int
    warm: int
    starts: int | None = None
    is_isolated: bool = False


class Outcome(NamedTuple):
    """What came of a line.

    Attributes:
        exit_code: None if its sandbox failed, or its time ran out.
        error: why.
    """

    line: str
    exit_code: int | None
    stdout: str
    stderr: str
    error: str
    seconds: float

    @property
    def is_well(self) -> bool:
        return self.exit_code == 0


def words_of(command: tuple[str, ...], line: str) -> list[str]:
    """Return the command for a line: in place of each {}, or as its last word."""
    if any(PLACE in word for word in command):
        return [word.replace(PLACE, line) for word in command]
    return [*command, line]


async def run(job: Job, limits: Limits, options: dict[str, Any]) -> int:
    """Run the command for each line of standard input; returns the exit status."""
    pool = AsyncPool(
        limits.size,
        warm=limits.warm,
        starts=limits.starts,
        isolated=limits.is_isolated,
        **options,
    )
    async with pool:
        with CountBar(job.is_quiet) as bar:
            work = _Work(job, pool, bar)
            await work.run(limits.size)
    return exit_status.OK if work.failed == 0 else exit_status.SOME_FAILED


class _Work:
    """Thread: the event loop's."""

    def __init__(self, job: Job, pool: AsyncPool, bar: CountBar) -> None:
        self._job = job
        self._pool = pool
        self._bar = bar
        self._read = self._done = self.failed = 0
        self._is_all_read = False
        self._next = 0  # to be printed, where the order is kept
        self._waiting: dict[int, Outcome] = {}

    async def run(self, size: int) -> None:
        lines = _Lines(sys.stdin.buffer)
        lines.start()
        workers = [asyncio.create_task(self._serve(lines)) for _ in range(size)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _serve(self, lines: _Lines) -> None:
        async for index, line in lines:
            outcome = await self._run_one(line)
            self._done += 1
            self.failed += not outcome.is_well
            self._print(index, outcome)
            self._show(lines)

    async def _run_one(self, line: str) -> Outcome:
        began = time.monotonic()

        def outcome(code: int | None, out: str, err: str, error: str = "") -> Outcome:
            return Outcome(line, code, out, err, error, round(time.monotonic() - began, 3))

        try:
            async with self._pool.sandbox() as sandbox:
                began = time.monotonic()
                words = words_of(self._job.command, line)
                result = await sandbox.commands.run(words, timeout=self._job.timeout_s)
                return outcome(result.exit_code, result.stdout, result.stderr)
        except CommandTimeout as error:
            limit = f"its time limit of {self._job.timeout_s:g} s ran out"
            return outcome(None, error.result.stdout, error.result.stderr, limit)
        except VoidboxError as error:
            return outcome(None, "", "", str(error))

    def _show(self, lines: _Lines) -> None:
        total = lines.count if lines.is_all_read else None
        self._bar.update(self._done, total, self.failed, self._pool.stats().given)

    def _print(self, index: int, outcome: Outcome) -> None:
        if not self._job.keeps_order:
            self._write(outcome)
            return
        self._waiting[index] = outcome
        while (ready := self._waiting.pop(self._next, None)) is not None:
            self._next += 1
            self._write(ready)

    def _write(self, outcome: Outcome) -> None:
        self._bar.clear()
        if self._job.as_json:
            print(json.dumps(outcome._asdict()), flush=True)
            return
        if outcome.stdout:
            print(outcome.stdout, end="", flush=True)
        if outcome.stderr:
            complain(outcome.stderr.removesuffix("\n"))
        if outcome.error:
            complain(f"voidbox: {shown(outcome.line)}: {outcome.error}")
        elif outcome.exit_code and self._job.is_verbose:
            complain(f"voidbox: {shown(outcome.line)}: exit status {outcome.exit_code}")


class _Lines:
    """Numbered lines, read ahead by a thread; each goes to one of those that ask.

    Attributes:
        count: how many were read.
        is_all_read: there are no more.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._queue: asyncio.Queue[tuple[int, str] | None] = asyncio.Queue(_AHEAD_LINES)
        self._loop = asyncio.get_running_loop()
        # A daemon: it may wait for input that never comes, and holds nothing.
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.count = 0
        self.is_all_read = False

    def start(self) -> None:
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(RuntimeError, CancelledError):  # the event loop ends, or has ended
            for content in self._source:
                line = content.decode(errors="surrogateescape").rstrip("\r\n")
                if line:
                    self._put((self.count, line))
                    self.count += 1
            self.is_all_read = True
            self._put(None)

    def _put(self, item: tuple[int, str] | None) -> None:
        put = self._queue.put(item)
        try:
            asyncio.run_coroutine_threadsafe(put, self._loop).result()
        finally:
            put.close()  # where the event loop is closed nobody has begun it

    async def __aiter__(self) -> AsyncIterator[tuple[int, str]]:
        while (item := await self._queue.get()) is not None:
            yield item
        await self._queue.put(None)  # for the others
