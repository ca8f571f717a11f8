"""What a pool has, and what it is short of: each sandbox from its start to its end.

start ──► warm ──► given ──► ending ──► gone       each in one set; together never more than `size`
  ▲        │
  └────────┘ one that is held: restored, its CPUs have never run; it costs no processor time

Everything that changes a set ends with _pump(), which gives what is warm to who waits, and begins
what is missing. A start belongs to the pool, not to who waits for it: one that is cancelled leaves
a sandbox that somebody else gets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from itertools import count

from voidbox.errors import VoidboxError
from voidbox.named_tuple import NamedTuple
from voidbox.pool.host_memory import HostMemory
from voidbox.pool.member import PooledSandbox
from voidbox.pool.start_limit import StartLimit
from voidbox.sandbox.guarding import guard
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.zygote.client import Zygote
from voidbox.sdk import creating, launching
from voidbox.sdk.creating import CreateOptions

_LOOK_AGAIN_S = 0.5  # at the host's memory
_TRY_AGAIN_S = 0.5  # to watch a process, or to end it: without a descriptor there is no way
_TRIES = 10  # to remove what is left of one whose process is gone
_REST_S, _REST_S_MAX = 1.0, 30.0  # after a start that nobody waited for has failed
_ENDS_AT_ONCE = 16
_SMOOTHING = 0.2
_RETRY_S_MIN = 0.1
_REFILL_S_MAX = 1.0

_logger = logging.getLogger("voidbox")


class Waiter(NamedTuple):
    """A call of acquire().

    Attributes:
        options: all of the sandbox, if they are not the pool's.
    """

    future: asyncio.Future[PooledSandbox]
    options: CreateOptions | None


class Members:
    """The sandboxes of a pool. Thread: the event loop's.

    Args:
        size: the most there are.
        warm_size: how many are to be warm.
        limit: of starts at a time.
        memory: what the host admits.
        options: of each.
        start_s: the longest that a start may take.
    """

    def __init__(
        self,
        size: int,
        warm_size: int,
        limit: StartLimit,
        memory: HostMemory,
        options: CreateOptions,
        start_s: float | None,
    ) -> None:
        self.size = size
        self._warm_size = warm_size
        self._limit = limit
        self._memory = memory
        self._options = options
        self._start_s = start_s
        self._store: Store | None = None
        self._zygote: Zygote | None = None
        self._zygote_lock = asyncio.Lock()
        self._ends = asyncio.Semaphore(_ENDS_AT_ONCE)
        self._closed = ""  # why nothing is given any more
        self._waiters: deque[Waiter] = deque()
        self._beginning: dict[asyncio.Task[None], PooledSandbox] = {}  # of _starting: were held
        self._starting: dict[asyncio.Task[None], Waiter | None] = {}
        self._warm: deque[PooledSandbox] = deque()
        self._given: dict[PooledSandbox, float] = {}  # since when
        self._ending: dict[PooledSandbox, asyncio.Task[bool]] = {}
        self._watches: dict[PooledSandbox, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._rest_s = 0.0  # no start that nobody waits for, because the last ones failed
        self._is_resting = False
        self._refill_at = 0.0  # by the loop's time; see _is_too_soon
        self._is_short = False
        self._started = self._failed = 0
        self._used_s = 0.0

    # What is missing. Nothing here waits.

    def _retry_after(self) -> float:
        """Return in how many seconds one may be free."""
        if not self._given or self._is_short:
            return max(_RETRY_S_MIN, self._limit.mean_s, _LOOK_AGAIN_S if self._is_short else 0.0)
        return max(_RETRY_S_MIN, self._used_s / len(self._given))

    def _count(self) -> int:
        return len(self._starting) + len(self._warm) + len(self._given) + len(self._ending)

    def _pump(self) -> None:
        """Give what is warm to who waits, and begin what is missing."""
        if self._closed:
            return
        ready = [sandbox for sandbox in self._warm if not sandbox.is_held]
        for sandbox, waiter in zip(ready, self._usual_waiters(), strict=False):
            self._warm.remove(sandbox)
            self._give(sandbox, waiter)
        for _ in self._usual_waiters()[len(self._beginning) :]:
            if self._warm:
                self._let_begin(self._warm.popleft())
        while len(self._warm) > self._warm_size:  # nobody waits for it any more
            self._retire(self._warm.pop())
        self._is_short = False
        while (wanted := self._next_start()) is not None and self._has_room():
            self._begin(*wanted)

    def _next_start(self) -> tuple[Waiter | None] | None:
        """Return for whom one is missing: (None,) for whoever comes first; None for nobody."""
        begun = [waiter for waiter in self._starting.values() if waiter is not None]
        for waiter in self._waiters:
            if waiter.options is not None and waiter not in begun:
                return (waiter,)
        usual = sum(1 for waiter in self._starting.values() if waiter is None)
        missing = len(self._usual_waiters())
        if missing + self._warm_size <= usual + len(self._warm):
            return None
        if not missing and (self._is_resting or self._is_too_soon()):
            return None
        return (None,)

    def _is_too_soon(self) -> bool:
        """Whether the one that was given last is to have the processors to itself a little longer.

        A start at the same moment would take as much of them as its first command does.
        """
        left_s = self._refill_at - asyncio.get_running_loop().time()
        if left_s > 0:
            self._pump_later(left_s)
        return left_s > 0

    def _has_room(self) -> bool:
        if len(self._starting) >= self._limit.limit:
            return False
        if self._count() >= self.size:
            others = sum(waiter.options is not None for waiter in self._waiters)
            if self._warm and others > len(self._ending):
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

    def _usual_waiters(self) -> list[Waiter]:
        return [waiter for waiter in self._waiters if waiter.options is None]

    def _is_promised(self, waiter: Waiter) -> bool:
        """Whether one that was warm is on its way to who waits."""
        return waiter in self._usual_waiters()[: len(self._beginning)]

    def _let_begin(self, sandbox: PooledSandbox) -> None:
        """Have one that is held run, for whoever comes first then."""
        task = asyncio.create_task(self._run_held(sandbox))
        self._starting[task] = None
        self._beginning[task] = sandbox
        task.add_done_callback(self._on_start_over)

    async def _run_held(self, sandbox: PooledSandbox) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await sandbox.begin(self._start_s)
        except Exception as error:  # of any kind: who waits is to hear of it
            self._on_start_over(task)
            self._on_failure(error, None)
        else:
            del self._beginning[task]
            self._on_start_over(task)
            self._warm.appendleft(sandbox)
            if self._closed:
                self._retire(sandbox)
        self._pump()

    def _begin(self, waiter: Waiter | None) -> None:
        # Of those that nobody waits for, who knows how long they wait.
        is_held = waiter is None and not self._usual_waiters()
        task = asyncio.create_task(self._start(waiter, is_held))
        self._starting[task] = waiter
        task.add_done_callback(self._on_start_over)

    def _on_start_over(self, task: asyncio.Task[None]) -> None:
        self._starting.pop(task, None)  # one that is cancelled at once never ran
        sandbox = self._beginning.pop(task, None)
        if sandbox is not None:
            self._retire(sandbox)
        if task.done() and not task.cancelled():
            task.exception()

    async def _start(self, waiter: Waiter | None, is_held: bool) -> None:
        """Start one sandbox, for a waiter with options of its own or for whoever comes first."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        task = asyncio.current_task()
        assert task is not None
        try:
            options = self._options if waiter is None else waiter.options
            sandbox = await self._make(options, is_held)
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

    async def _make(self, options: CreateOptions | None, is_held: bool) -> PooledSandbox:
        store = self._store
        assert store is not None
        assert options is not None
        record = await creating.make_record(store, options, is_owned=True)
        record = record._replace(is_pooled=True, is_held=is_held)
        async with self._zygote_lock:
            if self._zygote is not None and not self._zygote.is_alive():
                _logger.warning("the pool's zygote was killed: starting another one")
                await asyncio.to_thread(self._zygote.close)
                self._zygote = await asyncio.to_thread(launching.make_zygote)
        record, values = guard(record, options.get("secrets"), options.get("http"))
        secret_envs = options.get("secret_envs")
        sandbox = await PooledSandbox._launch(
            store, record, False, False, self._start_s, secret_envs, self._zygote, values
        )
        sandbox.retire = lambda: self._retire(sandbox)
        sandbox.leave = lambda: self._leave_alone(sandbox)
        return sandbox

    def _on_failure(self, error: Exception, waiter: Waiter | None) -> None:
        self._failed += 1
        self._limit.failed()
        if waiter is None:
            waiter = next((one for one in self._waiters if one.options is None), None)
        if waiter is not None:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)
            if not waiter.future.done():
                waiter.future.set_exception(error)
                waiter.future.exception()  # who waited may have left just now
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

    def _give(self, sandbox: PooledSandbox, waiter: Waiter) -> None:
        with contextlib.suppress(ValueError):
            self._waiters.remove(waiter)
        now = self._given[sandbox] = asyncio.get_running_loop().time()
        if self._refill_at <= now:  # who is given many at once does not put it off for ever
            self._refill_at = now + min(self._limit.mean_s, _REFILL_S_MAX)
        waiter.future.set_result(sandbox)

    def _take_in(self, sandbox: PooledSandbox, is_usual: bool) -> None:
        """Keep what nobody has used for the next, unless it is of a kind that nobody asks for."""
        self._warm.append(sandbox)
        if self._closed or not is_usual:
            self._retire(sandbox)

    # Their ends.

    def _leave_alone(self, sandbox: PooledSandbox) -> None:
        """Have nothing more to do with a sandbox that somebody was given."""
        self._given.pop(sandbox, None)
        watch = self._watches.pop(sandbox, None)
        if watch is not None:
            watch.cancel()
        self._pump()

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
            async with self._ends:  # hundreds at once would take each other's time
                return await sandbox.end()
        except Exception as error:  # of any kind: there is no room before it is gone
            _logger.warning("%s does not end as it should: %s", sandbox.name, error)
            await self._kill_surely(sandbox)
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
            while True:
                try:
                    await self._wait_gone(sandbox)
                    break
                except VoidboxError as error:
                    _logger.warning("%s cannot be watched: %s", sandbox.name, error)
                    await asyncio.sleep(_TRY_AGAIN_S)
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

    async def _kill_surely(self, sandbox: PooledSandbox) -> None:
        for tries in count(1):
            try:
                await self._kill_process(sandbox)
                return
            except VoidboxError as error:
                _logger.warning("%s cannot be killed: %s", sandbox.name, error)
            if sandbox not in self._watches and tries >= _TRIES:
                return  # its record stays
            await asyncio.sleep(_TRY_AGAIN_S)

    async def _kill_process(self, sandbox: PooledSandbox) -> None:
        assert self._store is not None
        await launching.kill_and_remove(self._store, sandbox.sandbox_id)
