"""AsyncPool: sandboxes of one kind, a few of them waiting. Pool is the same, blocking.

async with AsyncPool(8, warm=2, image="python:3.12") as pool:
    async with pool.sandbox() as sandbox:
        await sandbox.commands.run("python3 -c 'print(6 * 7)'")
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable
from typing import TypeVar, Unpack

from voidbox.errors import ConfigError, PoolFull
from voidbox.file_limit import raise_file_limit
from voidbox.pool import options as given_options
from voidbox.pool.giving import Giving
from voidbox.pool.host_memory import AUTO, HostMemory
from voidbox.pool.member import PooledSandbox
from voidbox.pool.members import Members, Waiter
from voidbox.pool.start_limit import StartLimit
from voidbox.pool.stats import PoolStats
from voidbox.sandbox.session import check_seconds
from voidbox.sandbox.state.store import Store
from voidbox.sdk import creating, launching
from voidbox.sdk.creating import CreateOptions

_FDS, _FDS_EACH = 64, 6  # of this process: of its own, and of one that is started, used and watched

T = TypeVar("T")


class AsyncPool(Members, Giving[PooledSandbox]):
    """A pool of sandboxes. Use as a context manager: what it has made ends with it.

    No sandbox is used twice. Those that are warm have booted, or were restored, and have run
    nothing of anybody's. If this program dies, they end.

    Args:
        size: the most sandboxes that there are at once: those that are being started, are warm, are
            used, and are about to end.
        warm: how many wait for acquire(); when one is given, another is started.
        starts: the most that are started at once. None: half as many as there are CPUs at first,
            more while starts stay quick, fewer when they get slow.
        host_memory: "auto": none is started while the host has too little memory for it; a size,
            in MiB or as text: what all guests together are given; None: the host has enough.
        isolated: each sandbox's process is a program of its own. By default they are forked off
            one, which takes a tenth of the time and shares memory; but then they share their layout
            of addresses, too.
        request_timeout: for each start, in seconds.
        state_folder: in place of the user's own.
        options: of AsyncSandbox.create(), for each of them. With snapshot= they are restored.
    Raises:
        ConfigError: one of these makes no sense.
    """

    def __init__(
        self,
        size: int,
        *,
        warm: int = 0,
        starts: int | None = None,
        host_memory: int | str | None = AUTO,
        isolated: bool = False,
        request_timeout: float | None = None,
        state_folder: str | None = None,
        **options: Unpack[CreateOptions],
    ) -> None:
        given_options.check_count("size", size, 1)
        given_options.check_count("warm", warm, 0)
        if warm > size:
            raise ConfigError(f"warm={warm}: the pool has room for {size}")
        super().__init__(
            size,
            warm,
            StartLimit(*given_options.starts_at_first(starts)),
            HostMemory(host_memory, given_options.guest_bytes(options)),
            given_options.complete(options),
            None if request_timeout is None else check_seconds("request_timeout", request_timeout),
        )
        self._state_folder = state_folder
        self._is_isolated = isolated
        self._closing: asyncio.Task[None] | None = None
        self._pid = os.getpid()

    # Its life.

    async def __aenter__(self) -> AsyncPool:
        if self._store is not None:
            raise ConfigError("a pool is opened once: make another one")
        self._pid = os.getpid()
        raise_file_limit(_FDS + _FDS_EACH * self.size)
        self._store = await asyncio.to_thread(Store, self._state_folder)
        # What is wrong with the options is told here, and not by each start.
        await creating.make_record(self._store, self._options, is_owned=True)
        if not self._is_isolated:
            self._zygote = await asyncio.to_thread(launching.make_zygote)
        self._pump()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def drain(self) -> None:
        """Give out no more, end what is warm, and wait until all that are used have ended.

        Whoever waits in acquire() gets ConfigError.
        """
        self._check_ours()
        self._end_giving("the pool is being drained")
        while self._starting or self._given or self._warm or self._ending:
            for sandbox in list(self._warm):
                self._retire(sandbox)
            await asyncio.wait([*self._starting, *self._ending.values(), *self._watches.values()])

    async def close(self) -> None:
        """End all that it has made, and wait for that. Idempotent."""
        if self._pid != os.getpid():
            return  # a child has a copy of what we know, and its parent goes on
        self._end_giving("the pool is closed")
        closing = self._closing = asyncio.create_task(self._close())
        await asyncio.shield(closing)  # whoever waits for it may be cancelled

    async def _close(self) -> None:
        for start in self._starting:
            start.cancel()  # which leaves nothing behind
        await _settle(self._starting)
        await _settle([self._retire(one) for one in (*self._warm, *self._given, *self._ending)])
        await _settle(self._watches.values())
        if self._zygote is not None:
            await asyncio.to_thread(self._zygote.close)

    def _end_giving(self, why: str) -> None:
        self._closed = why
        if self._timer is not None:
            self._timer.cancel()
        while self._waiters:
            future = self._waiters.popleft().future
            if not future.done():
                future.set_exception(ConfigError(why))
                future.exception()  # whoever waited may have left just now

    # Taking and giving back.

    async def acquire(
        self, timeout: float | None = None, options: CreateOptions | None = None
    ) -> PooledSandbox:
        """Return a sandbox, which is nobody else's; its kill(), or its block's end, makes room.

        Args:
            timeout: wait so many seconds at most; 0: not at all. None: for ever.
            options: of create(), over the pool's: one is started then, and none taken that is warm.
        Raises:
            PoolFull: none was free in time.
            ConfigError: the pool is not open, or an option makes no sense.
            VoidboxError: what its start failed with.
        """
        self._check_open()
        if timeout is not None and timeout != 0:
            check_seconds("timeout", timeout)
        own_options = given_options.complete(self._options, options) if options else None
        waiter = Waiter(asyncio.get_running_loop().create_future(), own_options)
        self._waiters.append(waiter)
        self._pump()
        try:
            await asyncio.wait((waiter.future,), timeout=timeout)
        except asyncio.CancelledError:
            self._leave(waiter)
            raise
        if waiter.future.done():
            return waiter.future.result()
        if self._is_promised(waiter):
            return await self._promised(waiter)
        why = "the host has no memory for one more" if self._is_short else "all are in use"
        retry_after = self._retry_after()
        self._leave(waiter)
        raise PoolFull(
            f"the pool of {self.size} gave no sandbox in {timeout:g} s: {why}", retry_after
        )

    async def _promised(self, waiter: Waiter) -> PooledSandbox:
        """Wait for one that was warm: its start is short, and bounded."""
        try:
            return await asyncio.shield(waiter.future)
        except asyncio.CancelledError:
            self._leave(waiter)
            raise

    def stats(self) -> PoolStats:
        """Return what there is now."""
        return PoolStats(
            size=self.size,
            given=len(self._given),
            warm=len(self._warm),
            starting=len(self._starting),
            ending=len(self._ending),
            waiting=len(self._waiters),
            start_limit=self._limit.limit,
            started=self._started,
            failed=self._failed,
            start_s=self._limit.mean_s,
            used_s=self._used_s,
            is_short_of_memory=self._is_short,
        )

    def _check_open(self) -> None:
        if self._store is None:
            raise ConfigError("the pool is not open: use `async with AsyncPool(…) as pool`")
        if self._closed:
            raise ConfigError(self._closed)
        self._check_ours()

    def _check_ours(self) -> None:
        """Refuse a child without exec: it would give what its parent gives, too."""
        if self._pid != os.getpid():
            raise ConfigError("the pool is that of the process that opened it: open another one")

    def _leave(self, waiter: Waiter) -> None:
        """Have a call of acquire() wait no more; what it was given is somebody else's."""
        future = waiter.future
        if not future.done():
            future.cancel()
        elif not future.cancelled() and future.exception() is None:
            sandbox = future.result()
            if self._given.pop(sandbox, None) is not None:
                self._take_in(sandbox, waiter.options is None)
            else:  # it has ended meanwhile, and nobody else looks after what is left of it
                self._retire(sandbox)
        with contextlib.suppress(ValueError):
            self._waiters.remove(waiter)
        self._pump()


async def _settle(tasks: Iterable[asyncio.Task[T]]) -> None:
    """Wait for tasks, however they end."""
    await asyncio.gather(*tasks, return_exceptions=True)
