"""Rollouts on their way to a node and back: the runner's own code, without the cluster between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: make test-ray does that")

from ray.exceptions import RayActorError

from voidbox.ray.rollouts import BATCH_MAX, ROLLOUTS_MAX, Rollouts, RunnerLost, pickled
from voidbox.ray.runner import Runner

WAIT_S = 60.0


class Sandbox:
    def __init__(self, holding: Holding) -> None:
        self._holding = holding

    async def __aenter__(self) -> Sandbox:
        self._holding.live += 1
        self._holding.most = max(self._holding.most, self._holding.live)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._holding.live -= 1


class Holding:
    def __init__(self) -> None:
        self.live = self.most = 0

    async def open(self) -> None: ...

    async def acquire(self) -> Sandbox:
        return Sandbox(self)


class Method:
    def __init__(self, actor: Actor, name: str) -> None:
        self._actor, self._name = actor, name

    def remote(self, *arguments: Any, **named: Any) -> asyncio.Future[Any]:
        self._actor.calls.append(self._name)
        return asyncio.ensure_future(self._actor.answer(self._name, arguments, named))


class Actor:
    """A runner that is called as Ray's handle of it is."""

    def __init__(self) -> None:
        self.holding, self.calls = Holding(), list[str]()
        self.is_dead = asyncio.Event()
        cls = type("Own", (Runner,), {"hold": staticmethod(lambda _: self.holding)})
        self._runner = cls(None)

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)

    async def answer(self, name: str, arguments: Any, named: Any) -> Any:
        working = asyncio.ensure_future(getattr(self._runner, name)(*arguments, **named))
        dying = asyncio.ensure_future(self.is_dead.wait())
        await asyncio.wait((working, dying), return_when=asyncio.FIRST_COMPLETED)
        if self.is_dead.is_set():
            working.cancel()
            raise RayActorError
        dying.cancel()
        return working.result()


def run(test: Callable[[Actor, Rollouts], Any]) -> None:
    async def bounded() -> None:
        actor = Actor()
        async with asyncio.timeout(WAIT_S):
            await test(actor, Rollouts(actor))
        assert not actor.holding.live, "a sandbox is left"
        assert not actor._runner._rollouts, "a rollout is kept"

    asyncio.run(bounded())


async def append(sandbox: Any, word: str, to: list[str]) -> list[str]:
    to.append(word)
    return to


def test_many_go_in_few_calls_and_each_has_arguments_of_its_own() -> None:
    async def test(actor: Actor, rollouts: Rollouts) -> None:
        shared: list[str] = []
        words = [str(n) for n in range(3 * BATCH_MAX)]
        done = await asyncio.gather(*(rollouts.run(append, (word, shared), {}) for word in words))
        assert done == [[word] for word in words]
        assert shared == []
        assert actor.calls.count("begin") == 3
        assert len(actor.calls) < 50
        assert await rollouts.run(append, ("x",), {"to": []}) == ["x"], "and again, after a rest"

    run(test)


def test_no_more_than_so_many_are_there_at_once() -> None:
    async def test(actor: Actor, rollouts: Rollouts) -> None:
        gate = asyncio.Event()

        async def wait(sandbox: Any) -> int:
            await gate.wait()
            return 1

        functions_here(wait)
        count = ROLLOUTS_MAX + 10
        running = [asyncio.create_task(rollouts.run(wait, (), {})) for _ in range(count)]
        while actor.holding.live < ROLLOUTS_MAX:
            await asyncio.sleep(0.01)
        running[-1].cancel()  # that waits here
        running[0].cancel()  # that runs there
        while actor.holding.live == ROLLOUTS_MAX and actor.calls.count("cancel") == 0:
            await asyncio.sleep(0.01)
        gate.set()
        done = await asyncio.gather(*running, return_exceptions=True)
        assert done[1:-1] == [1] * (count - 2)
        assert actor.holding.most == ROLLOUTS_MAX

    run(test)


def functions_here(function: Any) -> None:
    """Have a function be itself on the other side, with what it closes over."""
    import voidbox.ray.functions as module

    module._pickled[function] = key = repr(function).encode()
    kept = {key: function}
    receive = module.receive
    module.receive = lambda data: kept.get(data) or receive(data)  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    import voidbox.ray.functions as module

    monkeypatch.setattr(module, "receive", module.receive)


async def fail(sandbox: Any, word: str) -> None:
    raise KeyError(word)


async def give_lock(sandbox: Any) -> Any:
    return threading.Lock()


async def repeat(sandbox: Any, data: bytes) -> bytes:
    return data + data


def test_what_fails_and_what_is_large_comes_alone() -> None:
    async def test(actor: Actor, rollouts: Rollouts) -> None:
        failing = [rollouts.run(fail, (str(n),), {}) for n in range(3)]
        found = await asyncio.gather(
            *failing, rollouts.run(repeat, (b"a",), {}), return_exceptions=True
        )
        assert [repr(one) for one in found] == [*(f"KeyError('{n}')" for n in range(3)), "b'aa'"]
        assert actor.calls.count("take") == 3
        assert isinstance(await rollouts.run(give_lock, (), {}), type(threading.Lock()))
        assert "run" not in actor.calls
        data = bytes(20 << 10)
        assert await rollouts.run(repeat, (data,), {}) == data + data, "only the result is large"
        assert actor.calls.count("take") == 5
        assert await rollouts.run(repeat, (data + data,), {}) == 4 * data
        assert actor.calls.count("run") == 1

    run(test)


def test_what_is_ray_s_is_ray_s_to_send() -> None:
    import ray

    reference = ray.ObjectRef(b"\1" * 28, skip_adding_local_ref=True)
    assert pickled([{"a": reference}]) is None
    assert pickled([{"a": 1}]) is not None


def test_functions_that_block_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voidbox.ray.runner.Sandbox", lambda sandbox: sandbox)

    async def test(actor: Actor, rollouts: Rollouts) -> None:
        count = 100
        all_there = threading.Barrier(count)

        def near(sandbox: Any, number: int) -> int:
            all_there.wait(WAIT_S)
            return number

        functions_here(near)
        done = await asyncio.gather(*(rollouts.run(near, (n,), {}) for n in range(count)))
        assert done == list(range(count))

    run(test)


def test_a_runner_that_ends_is_told_to_all() -> None:
    async def test(actor: Actor, rollouts: Rollouts) -> None:
        async def wait(sandbox: Any) -> None:
            await asyncio.Event().wait()

        functions_here(wait)
        running = [asyncio.create_task(rollouts.run(wait, (), {})) for _ in range(20)]
        while actor.holding.live < len(running):
            await asyncio.sleep(0.01)
        actor.is_dead.set()
        found = await asyncio.gather(*running, return_exceptions=True)
        assert {type(one) for one in found} == {RunnerLost}
        for task in actor._runner._rollouts.values():  # as its process would
            task.cancel()
        await asyncio.sleep(0.1)
        actor._runner._rollouts.clear()

    run(test)
