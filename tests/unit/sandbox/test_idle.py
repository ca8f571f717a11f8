"""Sandboxes that nobody uses, from the agent's word to their end."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

import pytest

from guest_agent.activity import Activity
from tests.unit.sandbox.owned import Sandboxes
from voidbox.agent.core import Pong
from voidbox.errors import AgentError
from voidbox.sandbox.process.idle import IdleLimit
from voidbox.sandbox.state.lifecycle import State


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_agent_says_since_when_nobody_has_used_it() -> None:
    clock, busy = Clock(), [False]
    activity = Activity(lambda: busy[0], clock)
    clock.now += 7
    assert activity.idle_s() == 7
    activity.use()  # a request that was done between two PINGs
    clock.now += 5
    assert activity.idle_s() == 0
    clock.now += 5
    assert activity.idle_s() == 5
    busy[0] = True
    assert activity.idle_s() == 0
    clock.now += 100
    assert activity.idle_s() == 0
    busy[0] = False  # it ended somewhen since: as late as can be
    clock.now += 5
    assert activity.idle_s() == 0
    clock.now += 3
    assert activity.idle_s() == 3


def pong(idle_s: object) -> Pong:
    return Pong("1", (), True, {"idle_s": idle_s})


def test_the_limit_ends_it_once() -> None:
    clock, ends = Clock(), list[float]()
    limit = IdleLimit(10, lambda: ends.append(clock.now), clock)
    clock.now += 50
    limit.use()  # a port was published, say: the guest knows nothing of it
    clock.now += 9
    limit.take(pong(40))
    assert not ends
    clock.now += 1
    for said in (True, "40", None, float("inf"), float("nan"), -5, 9.9, [40]):
        limit.take(pong(said))
    limit.take(Pong("1", (), True, {}))  # an older agent
    assert not ends
    limit.take(pong(10))
    limit.take(pong(11))
    assert ends == [160.0]


def test_how_often_it_looks() -> None:
    def nothing() -> None:
        pass

    assert IdleLimit(None, nothing).period_s(5) == 5
    assert IdleLimit(3600, nothing).period_s(5) == 5
    assert IdleLimit(2, nothing).period_s(5) == 0.5
    assert IdleLimit(1e-9, nothing).period_s(5) == 0.05
    IdleLimit(None, pytest.fail).take(pong(1e9))


def test_a_sandbox_that_nobody_uses_is_stopped(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch(idle_timeout_s=1)
    ended = sandboxes.wait_ended(record)
    assert (ended.state, ended.reason) == (State.STOPPED, "nobody used it for 1 s")
    assert "asking the guest's agent to shut down" in sandboxes.file(record, "owner.log")


@pytest.mark.slow
def test_one_that_runs_a_command_is_not(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch(idle_timeout_s=5)
    options: dict[str, Any] = {"user": str(os.getuid()), "cwd": "/", "env": {}}
    with sandboxes.connect(record) as client:
        client.exec(["sleep", "8"], background=True, **options)
    began = time.monotonic()
    ended = sandboxes.wait_ended(record)
    assert time.monotonic() - began > 8
    assert ended.reason == "nobody used it for 5 s"


@pytest.mark.slow
def test_one_that_is_asked_for_something_is_not(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch(idle_timeout_s=5)
    control = sandboxes.control(record)
    with sandboxes.connect(record) as client:
        for _ in range(12):
            time.sleep(0.5)
            client.stat("/", user=str(os.getuid()))
    for _ in range(12):
        time.sleep(0.5)
        control.request("set_timeout", timeout=100)
    assert sandboxes.store.is_alive(record.id)
    with suppress(AgentError):
        while True:  # who only looks does not use it
            control.request("metrics")
            time.sleep(0.1)
    assert sandboxes.wait_ended(record).reason == "nobody used it for 5 s"


@pytest.mark.slow
def test_one_that_is_paused_stays(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch(idle_timeout_s=5)
    sandboxes.control(record).request("pause")
    time.sleep(7)
    assert sandboxes.store.read(record.id).state is State.PAUSED
    sandboxes.control(record).request("resume")
    assert sandboxes.wait_ended(record).reason == "nobody used it for 5 s"
