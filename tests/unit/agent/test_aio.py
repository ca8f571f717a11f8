"""Requests as coroutines."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path

import pytest

from tests.unit.agent.conftest import SECRET, USER
from tests.unit.agent.test_call import FakeAgent, agent
from tests.unit.sandbox.conftest import Box, CutEndpoint, box, guest, in_event_loop
from voidbox.agent import link, protocol
from voidbox.agent.aio import AsyncAgent, AsyncCall
from voidbox.agent.call import RequestFailed
from voidbox.agent.core import Event
from voidbox.agent.packing import pack
from voidbox.errors import AgentError, SandboxTimeout

__all__ = ["agent", "box", "guest"]


@in_event_loop
async def test_a_thousand_requests_at_once_need_no_threads(box: Box) -> None:
    await box.agent.request(protocol.METRICS, {}, "metrics")
    before = threading.active_count()
    async with asyncio.TaskGroup() as group:
        for _ in range(1000):
            group.create_task(box.agent.request(protocol.PROCESSES, {}, "processes"))
        await asyncio.sleep(0)
        assert threading.active_count() <= before
    assert len(box.endpoint.connections) == 1


@pytest.fixture
def few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "REQUESTS_MAX", 4)
    monkeypatch.setattr(link, "_LASTING_MAX", 2)


@pytest.mark.usefixtures("few_places")
@in_event_loop
async def test_more_requests_than_there_are_places_wait_their_turn(box: Box) -> None:
    async with asyncio.TaskGroup() as group:
        for type in (protocol.PROCESSES, protocol.EXEC) * 20:
            values = {"argv": ["true"], "user": USER} if type == protocol.EXEC else {}
            group.create_task(box.agent.request(type, values, "request"))


@pytest.mark.usefixtures("few_places")
@in_event_loop
async def test_a_place_is_left_to_end_what_lasts(box: Box) -> None:
    values = {"argv": ["sleep", "60"], "user": USER}
    lasting = [await box.agent.call(protocol.EXEC, values, "exec") for _ in range(4)]
    pids = [(await call.next()).values["pid"] for call in lasting[:2]]  # type: ignore[union-attr]
    with pytest.raises(SandboxTimeout, match=r"exec: as many requests .* within 0\.05 s"):
        await lasting[2].result(0.05)
    with pytest.raises(RequestFailed, match="cancelled before it began"):
        await lasting[2].next()
    for pid in pids:
        await box.agent.request(protocol.KILL, {"pid": pid, "signal": 9}, "kill", 20)
    event = await lasting[3].next(20)
    assert isinstance(event, Event) and event.values["pid"]
    waiting = [await box.agent.call(protocol.EXEC, values, "exec") for _ in range(2)]
    box.endpoint.cut()
    for call in (lasting[3], *waiting):
        with pytest.raises(AgentError, match="lost"):
            await call.result(20)


@in_event_loop
async def test_those_who_come_together_share_one_connection(box: Box) -> None:
    links = await asyncio.gather(*(box.agent.link() for _ in range(10)))
    assert len(set(links)) == 1 and len(box.endpoint.connections) == 1


@in_event_loop
async def test_one_who_gives_up_does_not_take_the_connection_from_another(box: Box) -> None:
    first, second = (asyncio.create_task(box.agent.link()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert not (await second).is_lost


@in_event_loop
async def test_after_a_lost_connection_there_is_another(box: Box) -> None:
    await box.agent.link()
    box.endpoint.cut()
    while not (await box.agent.link()) or len(box.endpoint.connections) < 2:
        await asyncio.sleep(0.01)
    await box.agent.request(protocol.METRICS, {}, "metrics")


def resources() -> tuple[int, int]:
    """How many links' threads and descriptors there are."""
    threads = [thread for thread in threading.enumerate() if thread.name == "voidbox-loop"]
    return len(threads), len(os.listdir("/proc/self/fd"))


class Logging:
    """Has an agent that logs to it, as a sandbox has."""

    def __init__(self, path: Path) -> None:
        self.endpoint = CutEndpoint(path)
        self.agent = AsyncAgent(self.endpoint, SECRET, 20, self.log)

    def log(self, line: str) -> None:
        assert "OK" in line


@in_event_loop
async def test_an_agent_that_is_dropped_leaves_nothing(box: Box) -> None:
    await box.agent.request(protocol.METRICS, {}, "metrics")
    before = resources()
    for _ in range(5):
        dropped = Logging(box.endpoint._path)
        await dropped.agent.request(protocol.METRICS, {}, "metrics")
        dropped.endpoint.close()
    assert resources() > before
    del dropped
    gc.collect()
    while resources() > before:
        await asyncio.sleep(0.01)


@in_event_loop
async def test_a_lost_connection_leaves_nothing(box: Box) -> None:
    before = resources()
    link = await box.agent.link()
    call = link.call(protocol.EXEC, {"argv": ["sleep", "60"], "user": USER}, "exec")
    box.endpoint.cut()
    box.endpoint.close()
    with pytest.raises(AgentError, match="lost"):
        await asyncio.to_thread(call.result)
    for begin in (
        lambda: link.call(protocol.METRICS, {}, "metrics").result(),
        lambda: link.handshake(SECRET, 20),
    ):
        with pytest.raises(AgentError, match="lost"):
            await asyncio.to_thread(begin)
    await asyncio.to_thread(link._loop._thread.join)
    assert resources()[1] == before[1]
    link.close()


@in_event_loop
async def test_a_dead_guest_ends_requests_at_once_and_says_why(box: Box) -> None:
    values = {"argv": ["sleep", "60"], "user": USER}
    call = await box.agent.call(protocol.EXEC, values, "exec")
    await call.next(20)  # it has begun
    box.endpoint.cut("panic: not syncing")
    with pytest.raises(AgentError, match="panic: not syncing"):
        while await call.next(5) is not None:
            pass
    with pytest.raises(AgentError, match="panic: not syncing"):
        await box.agent.request(protocol.METRICS, {}, "metrics")


@in_event_loop
async def test_a_closed_agent_says_so(box: Box) -> None:
    await box.agent.link()
    box.agent.close()
    with pytest.raises(AgentError, match="closed"):
        await box.agent.link()


@in_event_loop
async def test_no_answer_is_a_timeout_and_the_request_is_cancelled(agent: FakeAgent) -> None:
    call = AsyncCall(agent.link.call(protocol.METRICS, {}, "metrics"))
    with pytest.raises(SandboxTimeout, match=r"metrics: .* 0\.05 s"):
        await call.result(0.05)
    agent.await_frame(protocol.CANCEL, 1)


@in_event_loop
async def test_events_without_end_are_no_answer(agent: FakeAgent) -> None:
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(0.002):
            agent._peer.sendall(protocol.encode(protocol.EVENT, 1, pack({})))

    call = AsyncCall(agent.link.call(protocol.METRICS, {}, "metrics"))
    await asyncio.to_thread(agent.await_frame, protocol.METRICS, 1)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(SandboxTimeout, match="metrics"):
            await call.result(0.2)
    finally:
        stop.set()
        sender.join()


@in_event_loop
async def test_a_writer_waits_for_a_slow_guest(box: Box, guest: Path) -> None:
    call = await box.agent.call(
        protocol.EXEC, {"argv": ["sleep", "60"], "stdin": True, "user": USER}, "exec"
    )
    with call, pytest.raises(SandboxTimeout):
        for _ in range(100):
            await call.write(bytes(256 << 10), 0.2)


@in_event_loop
async def test_a_flood_for_one_leaves_room_for_others(box: Box) -> None:
    """A coroutine that always finds something does not keep the event loop for itself."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    task = asyncio.create_task(tick())
    result = await box.commands.run("head -c 30000000 /dev/zero")
    task.cancel()
    assert len(result.stdout_bytes) == 30_000_000 and ticks > 50


def test_it_may_be_used_by_one_event_loop_after_another(box: Box) -> None:
    async def ask() -> None:
        await box.agent.request(protocol.METRICS, {}, "metrics")

    for _ in range(3):
        asyncio.run(ask())
    assert len(box.endpoint.connections) == 1
