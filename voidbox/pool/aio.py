"""AsyncPool: sandboxes of one kind, a few of them waiting. Pool is the same, blocking.

    async with AsyncPool(8, warm=2, image="python:3.12") as pool:
        async with pool.sandbox() as sandbox:
            await sandbox.commands.run("python3 -c 'print(6 * 7)'")

start ──► warm ──► given ──► ending ──► gone       each in one set; together never more than `size`

Everything that changes a set ends with _pump(), which gives what is warm to who waits, and begins
what is missing. A start belongs to the pool, not to who waits for it: one that is cancelled leaves
a sandbox that somebody else gets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import NamedTuple, TypeVar, Unpack

from voidbox.errors import ConfigError, PoolFull, VoidboxError
from voidbox.file_limit import raise_file_limit
from voidbox.pool import options as given_options
from voidbox.pool.host_memory import AUTO, HostMemory
from voidbox.pool.member import PooledSandbox
from voidbox.pool.start_limit import StartLimit
from voidbox.pool.stats import PoolStats
from voidbox.sandbox.session import check_seconds
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.zygote.client import Zygote
from voidbox.sdk import creating, launching
from voidbox.sdk.creating import CreateOptions

_FDS, _FDS_EACH = 64, 6  # of this process: of its own, and of one that is started, used and watched
_LOOK_AGAIN_S = 0.5  # at the host's memory
_REST_S, _REST_S_MAX = 1.0, 30.0  # after a start that nobody waited for has failed
_SMOOTHING = 0.2
_RETRY_S_MIN = 0.1

T = TypeVar("T")
R = TypeVar("R")

_logger = logging.getLogger("voidbox")


class _Waiter(NamedTuple):
    """A call of acquire().

    Attributes:
        own: all options of the sandbox, if they are not the pool's.
    """

    future: asyncio.Future[PooledSandbox]
    own: CreateOptions | None


class AsyncPool:
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
        self.size = given_options.check_count("size", size, 1)
        self._warm_size = given_options.check_count("warm", warm, 0)
        if warm > size:
            raise ConfigError(f"warm={warm}: the pool has room for {size}")
        self._limit = StartLimit(*given_options.starts_at_first(starts))
        self._options = given_options.complete(options)
        self._memory = HostMemory(host_memory, given_options.guest_bytes(options))
        self._start_s = (
            None if request_timeout is None else check_seconds("request_timeout", request_timeout)
        )
        self._state_folder = state_folder
        self._is_isolated = isolated
        self._store: Store | None = None
        self._zygote: Zygote | None = None
        self._zygote_lock = asyncio.Lock()
        self._closed = ""  # why nothing is given any more
        self._waiters: deque[_Waiter] = deque()
        self._starting: dict[asyncio.Task[None], _Waiter | None] = {}
        self._warm: deque[PooledSandbox] = deque()
        self._given: dict[PooledSandbox, float] = {}  # since when
        self._ending: dict[PooledSandbox, asyncio.Task[bool]] = {}
        self._watches: dict[PooledSandbox, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._rest_s = 0.0  # no start that nobody waits for, because the last ones failed
        self._is_resting = False
        self._is_short = False
        self._started = self._failed = 0
        self._used_s = 0.0

    # Its life.

    async def __aenter__(self) -> AsyncPool:
        if self._store is not None:
            raise ConfigError("a pool is opened once: make another one")
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
        self._end_giving("the pool is being drained")
        while self._starting or self._given or self._warm or self._ending:
            for sandbox in list(self._warm):
                self._retire(sandbox)
            await asyncio.wait([*self._starting, *self._ending.values(), *self._watches.values()])

    async def close(self) -> None:
        """End all that it has made, and wait for that. Idempotent."""
        self._end_giving("the pool is closed")
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
        own = given_options.complete(self._options, options) if options else None
        waiter = _Waiter(asyncio.get_running_loop().create_future(), own)
        self._waiters.append(waiter)
        self._pump()
        try:
            await asyncio.wait((waiter.future,), timeout=timeout)
        except asyncio.CancelledError:
            self._leave(waiter)
            raise
        if waiter.future.done():
            return waiter.future.result()
        why = "the host has no memory for one more" if self._is_short else "all are in use"
        retry_after = self._retry_after()
        self._leave(waiter)
        raise PoolFull(
            f"the pool of {self.size} gave no sandbox in {timeout:g} s: {why}", retry_after
        )

    @contextlib.asynccontextmanager
    async def sandbox(
        self, timeout: float | None = None, options: CreateOptions | None = None
    ) -> AsyncIterator[PooledSandbox]:
        """Have a sandbox for the length of a block; see acquire()."""
        async with await self.acquire(timeout, options) as sandbox:
            yield sandbox

    async def map(
        self,
        function: Callable[[PooledSandbox, T], Awaitable[R]],
        tasks: Iterable[T],
        concurrency: int | None = None,
    ) -> list[R]:
        """Return what `function(sandbox, task)` returns for each task, in their order.

        Each has a fresh sandbox. Tasks are taken one by one, as there is room. When one fails, the
        others are cancelled.

        Args:
            concurrency: at most so many at once; as many as there may be sandboxes by default.
        """
        self._check_open()
        wanted = self.size if concurrency is None else concurrency
        workers = min(self.size, given_options.check_count("concurrency", wanted, 1))
        todo = enumerate(tasks)
        results: dict[int, R] = {}

        async def work() -> None:
            for index, task in todo:
                async with self.sandbox() as sandbox:
                    results[index] = await function(sandbox, task)

        running = [asyncio.create_task(work()) for _ in range(workers)]
        try:
            await asyncio.gather(*running)
        finally:
            for one in running:
                one.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return [results[index] for index in range(len(results))]

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

    def _leave(self, waiter: _Waiter) -> None:
        """Have a call of acquire() wait no more; what it was given is somebody else's."""
        future = waiter.future
        if not future.done():
            future.cancel()
        elif not future.cancelled() and future.exception() is None:
            sandbox = future.result()
            del self._given[sandbox]
            self._take_in(sandbox, waiter.own is None)
        with contextlib.suppress(ValueError):
            self._waiters.remove(waiter)
        self._pump()

    def _retry_after(self) -> float:
        if not self._given or self._is_short:
            return max(_RETRY_S_MIN, self._limit.mean_s, _LOOK_AGAIN_S if self._is_short else 0.0)
        return max(_RETRY_S_MIN, self._used_s / len(self._given))

    # What there is, and what is missing. Nothing here waits.

    def _count(self) -> int:
        return len(self._starting) + len(self._warm) + len(self._given) + len(self._ending)

    def _pump(self) -> None:
        """Give what is warm to who waits, and begin what is missing."""
        if self._closed:
            return
        for waiter in [one for one in self._waiters if one.own is None]:
            if not self._warm:
                break
            self._give(self._warm.popleft(), waiter)
        while len(self._warm) > self._warm_size:  # nobody waits for it any more
            self._retire(self._warm.pop())
        self._is_short = False
        while (wanted := self._next_start()) is not None and self._has_room():
            self._begin(*wanted)

    def _next_start(self) -> tuple[_Waiter | None] | None:
        """Return for whom one is missing: (None,) for whoever comes first; None for nobody."""
        begun = [waiter for waiter in self._starting.values() if waiter is not None]
        for waiter in self._waiters:
            if waiter.own is not None and waiter not in begun:
                return (waiter,)
        usual = sum(1 for waiter in self._starting.values() if waiter is None)
        missing = sum(1 for waiter in self._waiters if waiter.own is None)
        if not missing and self._is_resting:
            return None
        return (None,) if missing + self._warm_size > usual + len(self._warm) else None

    def _has_room(self) -> bool:
        if len(self._starting) >= self._limit.limit:
            return False
        if self._count() >= self.size:
            if self._warm and any(waiter.own is not None for waiter in self._waiters):
                self._retire(self._warm.pop())  # its end makes room for another kind
            return False
        running = len(self._warm) + len(self._given) + len(self._ending)
        if self._memory.admits(running, len(self._starting)):
            return True
        self._is_short = True
        self._pump_later(_LOOK_AGAIN_S)
        return False

    def _pump_later(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._pump)

    def _begin(self, waiter: _Waiter | None) -> None:
        task = asyncio.create_task(self._start(waiter))
        self._starting[task] = waiter
        task.add_done_callback(self._on_start_over)

    def _on_start_over(self, task: asyncio.Task[None]) -> None:
        self._starting.pop(task, None)  # one that is cancelled at once never ran
        if not task.cancelled():
            task.exception()

    async def _start(self, waiter: _Waiter | None) -> None:
        """Start one sandbox, for a waiter with options of its own or for whoever comes first."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        task = asyncio.current_task()
        assert task is not None
        try:
            sandbox = await self._make(self._options if waiter is None else waiter.own)
        except Exception as error:  # of any kind: who waits is to hear of it
            self._starting.pop(task)
            self._on_failure(error, waiter)
        else:
            self._starting.pop(task)
            self._limit.succeeded(loop.time() - began)
            self._started += 1
            self._rest_s, self._is_resting = 0.0, False
            self._watches[sandbox] = asyncio.create_task(self._watch(sandbox))
            if waiter is not None and not waiter.future.done():
                self._give(sandbox, waiter)
            else:
                self._take_in(sandbox, waiter is None)
        self._pump()

    async def _make(self, options: CreateOptions | None) -> PooledSandbox:
        store = self._store
        assert store is not None
        assert options is not None
        record = await creating.make_record(store, options, is_owned=True)
        record = record._replace(is_pooled=True)
        async with self._zygote_lock:
            if self._zygote is not None and not self._zygote.is_alive():
                _logger.warning("the pool's zygote was killed: starting another one")
                await asyncio.to_thread(self._zygote.close)
                self._zygote = await asyncio.to_thread(launching.make_zygote)
        secret_envs = options.get("secret_envs")
        sandbox = await PooledSandbox._launch(
            store, record, False, False, self._start_s, secret_envs, self._zygote
        )
        sandbox.retire = lambda: self._retire(sandbox)
        return sandbox

    def _on_failure(self, error: Exception, waiter: _Waiter | None) -> None:
        self._failed += 1
        self._limit.failed()
        if waiter is None:
            waiter = next((one for one in self._waiters if one.own is None), None)
        if waiter is not None:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)
            if not waiter.future.done():
                waiter.future.set_exception(error)
            return
        self._rest_s = min(_REST_S_MAX, 2 * self._rest_s or _REST_S)
        self._is_resting = True
        _logger.warning(
            "a pool's sandbox could not be started, the next one in %g s: %s", self._rest_s, error
        )
        asyncio.get_running_loop().call_later(self._rest_s, self._end_rest)

    def _end_rest(self) -> None:
        self._is_resting = False
        self._pump()

    def _give(self, sandbox: PooledSandbox, waiter: _Waiter) -> None:
        with contextlib.suppress(ValueError):
            self._waiters.remove(waiter)
        self._given[sandbox] = asyncio.get_running_loop().time()
        waiter.future.set_result(sandbox)

    def _take_in(self, sandbox: PooledSandbox, is_usual: bool) -> None:
        """Keep what nobody has used for the next, unless it is of a kind that nobody asks for."""
        self._warm.append(sandbox)
        if self._closed or not is_usual:
            self._retire(sandbox)

    # Their ends.

    def _retire(self, sandbox: PooledSandbox) -> asyncio.Task[bool]:
        """Begin a sandbox's end; return what can be waited for. Idempotent."""
        if sandbox not in self._ending:
            since = self._given.pop(sandbox, None)
            if since is not None:
                used_s = asyncio.get_running_loop().time() - since
                self._used_s += (_SMOOTHING if self._used_s else 1.0) * (used_s - self._used_s)
            with contextlib.suppress(ValueError):
                self._warm.remove(sandbox)
            self._ending[sandbox] = asyncio.create_task(self._end(sandbox))
        return self._ending[sandbox]

    async def _end(self, sandbox: PooledSandbox) -> bool:
        try:
            return await sandbox.end()
        except VoidboxError as error:
            _logger.warning("%s does not end as it should: %s", sandbox.name, error)
            await self._kill_process(sandbox)
            return True
        finally:
            watch = self._watches.get(sandbox)
            if watch is not None:  # until its process is gone there is no room for another
                await asyncio.wait((watch,))
            self._ending.pop(sandbox, None)
            self._pump()

    async def _watch(self, sandbox: PooledSandbox) -> None:
        """Wait until a sandbox's process is gone; one that ended by itself leaves its place."""
        try:
            await self._wait_gone(sandbox)
        finally:
            self._watches.pop(sandbox, None)
        if sandbox in self._warm:
            self._retire(sandbox)
        elif sandbox in self._given:
            del self._given[sandbox]  # its record and its logs are its user's, up to kill()
            self._pump()

    async def _wait_gone(self, sandbox: PooledSandbox) -> None:
        assert self._store is not None
        await launching.wait_gone(self._store, sandbox.sandbox_id, None)

    async def _kill_process(self, sandbox: PooledSandbox) -> None:
        assert self._store is not None
        await asyncio.to_thread(launching.kill_process, self._store, sandbox.sandbox_id)


async def _settle(tasks: Iterable[asyncio.Task[T]]) -> None:
    """Wait for tasks, however they end, and though we are cancelled meanwhile."""
    waited = list(tasks)
    if waited:
        await asyncio.shield(asyncio.gather(*waited, return_exceptions=True))
