"""What a pool promises, whatever happens to whom: by sandboxes that are objects."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.pool.fakes import FakePool, ticks
from tests.unit.sandbox.conftest import in_event_loop
from voidbox.errors import ConfigError, HostError, PoolFull
from voidbox.pool import members
from voidbox.pool.aio import AsyncPool

pytestmark = pytest.mark.slow


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["acquire", "acquire", "own", "cancel", "kill", "die", "warm dies", "fail", "stuck"]
        ),
        st.integers(0, 50),
        st.integers(0, 4),
    ),
    max_size=60,
)


class Chaos:
    """Acquires, cancels, kills and deaths, in the order that hypothesis says."""

    def __init__(self, pool: FakePool) -> None:
        self.pool = pool
        self.calls: list[asyncio.Task[Any]] = []
        self.kills: list[asyncio.Task[Any]] = []
        self.used: set[Any] = set()

    def given(self) -> list[Any]:
        return list(self.pool._given)

    def do(self, what: str, which: int) -> None:
        pool = self.pool
        if what == "acquire":
            self.calls.append(asyncio.create_task(pool.acquire()))
        elif what == "own":
            self.calls.append(asyncio.create_task(pool.acquire(options={"cpus": 2})))
        elif what == "cancel" and self.calls:
            self.calls[which % len(self.calls)].cancel()
        elif what == "kill" and self.given():
            self.kills.append(asyncio.create_task(self.given()[which % len(self.given())].kill()))
        elif what == "die" and self.given():
            self.given()[which % len(self.given())].die()
        elif what == "warm dies" and pool._warm:
            pool._warm[0].die()  # type: ignore[attr-defined]
        elif what == "fail":
            pool.failures += 1
        elif what == "stuck":
            pool.fails_to_end = True

    def check(self) -> None:
        stats = self.pool.stats()
        count = stats.given + stats.warm + stats.starting + stats.ending
        assert count <= stats.size
        assert self.pool.alive <= stats.size
        for call in self.calls:
            if call.done() and not call.cancelled() and call.exception() is None:
                self.used.add(call.result())
        assert not self.used & set(self.pool._warm), "one that was used is given again"
        assert not any(sandbox.is_held for sandbox in self.used)

    async def settle(self) -> None:
        """Give back whatever comes; then everybody who waits has got one, or an error."""
        while any(not call.done() for call in self.calls):
            for sandbox in self.given():
                self.kills.append(asyncio.create_task(sandbox.kill()))
            await asyncio.sleep(0)
            self.check()


@settings(max_examples=200, deadline=None)
@given(size=st.integers(1, 4), warm=st.integers(0, 2), holds=st.booleans(), steps=STEPS)
def test_the_cap_is_never_passed(
    size: int, warm: int, holds: bool, steps: list[tuple[str, int, int]]
) -> None:
    async def run() -> None:
        async with FakePool(size, holds=holds, warm=min(warm, size)) as pool:
            chaos = Chaos(pool)
            for what, which, pause in steps:
                chaos.do(what, which)
                await ticks(pause)
                chaos.check()
            await chaos.settle()
        assert pool.alive == 0
        assert pool.peak <= size
        stats = pool.stats()
        assert (stats.given, stats.warm, stats.starting, stats.ending) == (0, 0, 0, 0)
        assert not pool._watches
        await asyncio.gather(*chaos.calls, *chaos.kills, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 60))


@in_event_loop
async def test_what_is_warm_is_given_at_once_and_replaced() -> None:
    async with FakePool(3, warm=2) as pool:
        await until(lambda: pool.stats().warm == 2)
        first = await pool.acquire(0)
        await until(lambda: pool.stats().warm == 2)
        assert pool.stats().given == 1
        assert pool.alive == 3
        await first.kill()
        assert pool.stats().given == 0


@in_event_loop
async def test_the_next_one_is_begun_a_little_after_one_was_given() -> None:
    async with FakePool(4, warm=1) as pool:
        await until(lambda: pool.stats().warm == 1)
        pool._limit.mean_s = 0.3
        loop = asyncio.get_running_loop()
        begun_at = loop.time()
        await pool.acquire(0)
        await ticks(20)
        assert pool.made == 1  # the given one's first command has the processors
        await until(lambda: pool.stats().warm == 1)
        assert loop.time() - begun_at >= 0.3
        await pool.acquire(0)
        waits = asyncio.create_task(pool.acquire())  # who waits is not kept waiting
        await ticks(20)
        assert waits.done() and pool.made == 4


@in_event_loop
async def test_one_that_is_held_begins_when_it_is_asked_for_and_not_before() -> None:
    async with FakePool(3, holds=True, warm=2) as pool:
        await until(lambda: pool.stats().warm == 2)
        held: Any = list(pool._warm)
        await ticks(50)
        assert [sandbox.begun for sandbox in held] == [0, 0]
        first: Any = await pool.acquire(0)  # it is there, and so is waited for
        assert first in held and first.begun == 1 and not first.is_held
        await until(lambda: pool.stats().warm == 2)
        assert sum(sandbox.begun for sandbox in held) == 1
        with pytest.raises(PoolFull):
            calls = [asyncio.create_task(pool.acquire(0)) for _ in range(2)]
            await asyncio.gather(*calls)
            await pool.acquire(0)


@in_event_loop
async def test_one_that_does_not_begin_is_told_and_replaced() -> None:
    async with FakePool(2, holds=True, warm=1) as pool:
        await until(lambda: pool.stats().warm == 1)
        pool.failures = 1
        with pytest.raises(HostError, match="does not begin"):
            await pool.acquire()
        sandbox: Any = await pool.acquire()
        assert not sandbox.is_held and pool.stats().failed == 1


@in_event_loop
async def test_whoever_leaves_while_one_begins_leaves_it_to_the_next() -> None:
    async with FakePool(1, holds=True, warm=1) as pool:
        await until(lambda: pool.stats().warm == 1)
        (held,) = pool._warm
        call = asyncio.create_task(pool.acquire())
        await ticks(1)
        call.cancel()
        await until(lambda: pool.stats().warm == 1)
        assert await pool.acquire(0) is held
        assert pool.made == 1


@in_event_loop
async def test_a_pool_that_is_full_says_when_to_come_back() -> None:
    async with FakePool(1) as pool:
        one = await pool.acquire()
        with pytest.raises(
            PoolFull, match="pool of 1 gave no sandbox in 0 s: all are in use"
        ) as no:
            await pool.acquire(0)
        assert no.value.retry_after > 0
        assert pool.stats().waiting == 0
        waits = asyncio.create_task(pool.acquire())
        await ticks(5)
        assert not waits.done()
        await one.kill()
        await waits


@in_event_loop
async def test_who_is_cancelled_leaves_a_sandbox_for_the_next() -> None:
    async with FakePool(1) as pool:
        pool.delay = 20
        one = asyncio.create_task(pool.acquire())
        await until(lambda: pool.stats().starting == 1)
        two = asyncio.create_task(pool.acquire())
        await ticks(3)
        one.cancel()
        await two
        assert pool.made == 1


@in_event_loop
async def test_what_nobody_waits_for_any_more_is_ended() -> None:
    async with FakePool(2) as pool:
        pool.delay = 20
        one = asyncio.create_task(pool.acquire())
        await until(lambda: pool.stats().starting == 1)
        one.cancel()
        await until(lambda: pool.made and not pool.alive)
        assert (pool.made, pool.stats().warm) == (1, 0)


@in_event_loop
async def test_no_more_start_at_once_than_may() -> None:
    async with FakePool(6, starts=2) as pool:
        pool.delay = 20
        calls = [asyncio.create_task(pool.acquire()) for _ in range(6)]
        seen = set()
        while not all(call.done() for call in calls):
            seen.add(pool.stats().starting)
            await asyncio.sleep(0)
        assert max(seen) == 2


@in_event_loop
async def test_a_place_is_free_once_the_process_is_gone_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_gone = asyncio.Event()

    async def wait_gone(_sandbox: Any) -> None:
        await is_gone.wait()

    async with FakePool(1) as pool:
        monkeypatch.setattr(pool, "_wait_gone", wait_gone)
        one = await pool.acquire()
        ends, waits = asyncio.create_task(one.kill()), asyncio.create_task(pool.acquire())
        await ticks(50)
        assert pool.made == 1 and not ends.done() and not waits.done()
        is_gone.set()
        await ends
        assert await waits is not one


@in_event_loop
async def test_a_failed_start_is_told_to_who_waits() -> None:
    async with FakePool(2) as pool:
        pool.failures = 1
        with pytest.raises(HostError, match="no"):
            await pool.acquire()
        assert (await pool.acquire()) is not None
        assert (pool.stats().started, pool.stats().failed) == (1, 1)


@in_event_loop
async def test_starts_that_nobody_waits_for_rest_after_a_failure() -> None:
    pool = FakePool(2, warm=1)
    pool.failures = 1000
    async with pool:
        await until(lambda: pool.stats().failed)
        await ticks(50)
        assert pool.stats().failed == 1
        pool.failures = 0
        assert await pool.acquire()  # somebody waits: no rest


@in_event_loop
async def test_options_of_ones_own_make_room_among_the_warm() -> None:
    async with FakePool(2, warm=2) as pool:
        await until(lambda: pool.stats().warm == 2)
        await pool.acquire(options={"memory": "1G"})
        assert pool.peak == 2


@in_event_loop
async def test_one_that_dies_by_itself_leaves_its_place() -> None:
    async with FakePool(1) as pool:
        one: Any = await pool.acquire()
        one.die()
        two = await pool.acquire()
        assert two is not one
        await one.kill()  # its record goes; the other one stays
        assert pool.stats().given == 1


@in_event_loop
async def test_one_that_dies_while_it_waits_is_given_to_nobody() -> None:
    async with FakePool(1, warm=1) as pool:
        await until(lambda: pool.stats().warm == 1)
        dead: Any = pool._warm[0]
        dead.die()
        await until(lambda: dead not in pool._warm)
        assert await pool.acquire() is not dead


@in_event_loop
async def test_one_of_somebodys_own_options_is_for_nobody_else() -> None:
    async with FakePool(2) as pool:
        pool.delay = 20
        own = asyncio.create_task(pool.acquire(options={"cpus": 2}))
        await until(lambda: pool.stats().starting == 1)
        usual = asyncio.create_task(pool.acquire())
        own.cancel()
        await until(lambda: pool.made == 2)
        assert (await usual).name == "fake-2"
        await until(lambda: pool.alive == 1)
        assert (pool.stats().given, pool.stats().warm) == (1, 0)


@in_event_loop
async def test_no_memory_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    has_memory = False
    async with FakePool(2) as pool:
        monkeypatch.setattr(pool._memory, "admits", lambda running, starting: has_memory)
        with pytest.raises(PoolFull, match="the host has no memory for one more") as no:
            await pool.acquire(0.01)
        assert no.value.retry_after >= 0.5
        has_memory = True
        await pool.acquire()


@in_event_loop
async def test_map_keeps_the_order_and_the_limit() -> None:
    async def double(sandbox: Any, task: int) -> int:
        assert not sandbox.is_used
        sandbox.is_used = True
        await ticks(task % 3)
        return 2 * task

    async with FakePool(4) as pool:
        assert await pool.map(double, range(30)) == [2 * task for task in range(30)]
        assert pool.peak <= 4
        assert await pool.map(double, []) == []
        assert await pool.map(double, range(9), concurrency=1) == [2 * n for n in range(9)]


@in_event_loop
async def test_map_ends_with_the_first_failure() -> None:
    begun = []

    async def fail(sandbox: Any, task: int) -> None:
        begun.append(task)
        if task == 3:
            raise ZeroDivisionError
        await ticks(5)

    async with FakePool(2) as pool:
        with pytest.raises(ZeroDivisionError):
            await pool.map(fail, range(1000))
        assert len(begun) < 10
        assert pool.stats().given == 0


@in_event_loop
async def test_drain_waits_for_what_is_used() -> None:
    async with FakePool(3, warm=1) as pool:
        one = await pool.acquire()
        await until(lambda: pool.stats().warm == 1)
        drained = asyncio.create_task(pool.drain())
        await ticks(20)
        assert not drained.done()
        with pytest.raises(ConfigError, match="is being drained"):
            await pool.acquire()
        await one.kill()
        await drained
        assert pool.alive == 0


@in_event_loop
async def test_close_ends_all_and_refuses_who_waits() -> None:
    pool = FakePool(1)
    async with pool:
        await pool.acquire()
        waits = asyncio.create_task(pool.acquire())
        await ticks(3)
    with pytest.raises(ConfigError, match="closed"):
        await waits
    assert pool.alive == 0
    await pool.close()
    with pytest.raises(ConfigError, match="closed"):
        await pool.acquire()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size=0"),
        ({"size": True}, "size=True"),
        ({"size": 2, "warm": 3}, "warm=3: the pool has room for 2"),
        ({"size": 2, "starts": 0}, "starts=0"),
        ({"size": 2, "name": "one"}, "name= is for one sandbox"),
        ({"size": 2, "colour": "red"}, "have no colour"),
        ({"size": 2, "host_memory": "10M"}, "not one guest of 512 MiB"),
        ({"size": 2, "request_timeout": -1}, "request_timeout"),
    ],
)
def test_what_is_no_pool(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AsyncPool(**options)


@in_event_loop
async def test_a_pool_that_is_not_open() -> None:
    with pytest.raises(ConfigError, match="async with"):
        await AsyncPool(1).acquire()


@in_event_loop
async def test_drain_ends_what_is_just_beginning() -> None:
    async with FakePool(2, holds=True, warm=1) as pool:
        await until(lambda: pool.stats().warm == 1)
        pool.delay = 10
        call = asyncio.create_task(pool.acquire())
        await until(lambda: pool._beginning)
        await asyncio.wait_for(pool.drain(), 30)
        with pytest.raises(ConfigError, match="is being drained"):
            await call
        assert pool.alive == 0


@in_event_loop
async def test_whoever_leaves_as_their_sandbox_ends_is_cancelled_and_no_more() -> None:
    async with FakePool(1) as pool:
        call = asyncio.create_task(pool.acquire())
        await until(lambda: pool._given)
        (sandbox,) = pool._given
        killed = asyncio.create_task(sandbox.kill())
        await ticks(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await killed
        await pool.acquire()
        assert pool.made == 2


@in_event_loop
async def test_a_process_that_cannot_be_killed_at_once_is_killed_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(members, "_TRY_AGAIN_S", 0.0)
    problems = [HostError("pidfd_open: Too many open files") for _ in range(3)]
    async with FakePool(1) as pool:
        kill = pool._kill_process

        async def fails_at_first(sandbox: Any) -> None:
            if problems:
                raise problems.pop()
            await kill(sandbox)

        monkeypatch.setattr(pool, "_kill_process", fails_at_first)
        sandbox = await pool.acquire()
        pool.fails_to_end = True
        await asyncio.wait_for(sandbox.kill(), 30)
        assert pool.alive == 0 and not problems


@in_event_loop
async def test_a_process_that_cannot_be_watched_at_once_is_watched_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(members, "_TRY_AGAIN_S", 0.0)
    problems = [HostError("pidfd_open: Too many open files") for _ in range(3)]
    async with FakePool(1) as pool:
        wait_gone = pool._wait_gone

        async def fails_at_first(sandbox: Any) -> None:
            if problems:
                raise problems.pop()
            await wait_gone(sandbox)

        monkeypatch.setattr(pool, "_wait_gone", fails_at_first)
        sandbox: Any = await pool.acquire()
        await ticks(10)
        sandbox.die()
        await asyncio.wait_for(until(lambda: pool.stats().given == 0), 30)


@in_event_loop
async def test_a_pool_is_closed_though_whoever_closes_it_is_cancelled() -> None:
    async with FakePool(2) as pool:
        await pool.acquire()
        pool.delay = 10
        waits = asyncio.create_task(pool.acquire())
        await until(lambda: pool.stats().starting == 1)
        closed = asyncio.create_task(pool.close())
        await ticks(1)
        closed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closed
        await asyncio.wait_for(until(lambda: pool.alive == 0), 30)
        with pytest.raises(ConfigError, match="closed"):
            await waits


@in_event_loop
async def test_no_more_of_the_warm_make_room_than_are_asked_for() -> None:
    async with FakePool(3, warm=3) as pool:
        await until(lambda: pool.stats().warm == 3)
        call = asyncio.create_task(pool.acquire(options={"cpus": 2}))
        await until(lambda: pool.stats().ending == 1)
        for _ in range(3):
            pool._pump()
        assert pool.stats().ending == 1
        await call
