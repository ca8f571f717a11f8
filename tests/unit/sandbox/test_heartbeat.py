"""The heartbeat, with agents that answer, are slow, and hang up."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from voidbox.agent.core import Pong
from voidbox.errors import AgentError, SandboxTimeout
from voidbox.sandbox.process.heartbeat import ATTEMPTS, Heartbeat

DEADLINE_S = 60


class Agent:
    """Answers as `answers` says, an entry a ping; then for ever as the last."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)
        self.pings = 0
        self.has_pinged = threading.Condition()

    def ping(self, secret: bytes, timeout_s: float | None = None) -> Pong:
        assert secret == b"s"
        with self.has_pinged:
            answer = self.answers[min(self.pings, len(self.answers) - 1)]
            self.pings += 1
            self.has_pinged.notify_all()
        if answer is not None:
            raise answer
        return Pong("1", (), True, {"idle_s": self.pings})

    def wait_pinged(self, times: int) -> None:
        with self.has_pinged:
            assert self.has_pinged.wait_for(lambda: self.pings >= times, DEADLINE_S)


SLOW, GONE = SandboxTimeout("slow"), AgentError("lost\nthe story")


def run(
    agent: Agent,
    reconnect: Callable[[], Agent],
    is_suspended: Callable[[], bool] = lambda: False,
) -> tuple[Heartbeat, list[str], threading.Event]:
    reasons: list[str] = []
    lost = threading.Event()

    def on_lost(reason: str) -> None:
        reasons.append(reason)
        lost.set()

    heartbeat = Heartbeat(agent, b"s", reconnect, is_suspended, on_lost, 0.001, 1)
    heartbeat.start()
    return heartbeat, reasons, lost


def test_an_idle_guest_is_asked_seldom() -> None:
    agent = Agent(None)
    heartbeat = Heartbeat(agent, b"s", no_reconnect, lambda: False, print, 2.0, idle_period_s=60.0)
    assert heartbeat._pause_s() == 2.0
    for _ in range(2):  # idle for 1 s, and 2: not for longer than a period
        assert heartbeat._beat()
        assert heartbeat._pause_s() == 2.0
    assert heartbeat._beat()
    assert heartbeat._pause_s() == 60.0
    agent.answers = [SLOW]
    assert heartbeat._beat()
    assert heartbeat._pause_s() == 0.0, "one that does not answer is asked again at once"
    agent.answers = [None]
    agent.pings = 0
    assert heartbeat._beat()
    assert heartbeat._pause_s() == 2.0


def no_reconnect() -> Agent:
    raise AssertionError("must not reconnect")


def test_an_agent_that_answers_again_in_time_lives() -> None:
    agent = Agent(*[None, *[SLOW] * (ATTEMPTS - 1)] * 5, None)
    heartbeat, reasons, _ = run(agent, no_reconnect)
    agent.wait_pinged(20)
    heartbeat.close()
    heartbeat.close()
    assert not reasons


def test_an_agent_that_stays_silent_is_lost() -> None:
    agent = Agent(None, SLOW)
    heartbeat, reasons, lost = run(agent, no_reconnect)
    assert lost.wait(DEADLINE_S)
    heartbeat.close()
    assert reasons == ["the guest's agent does not answer"]
    assert agent.pings == 1 + ATTEMPTS


def test_a_broken_connection_is_made_anew() -> None:
    second = Agent(None)
    heartbeat, reasons, _ = run(Agent(None, GONE), lambda: second)
    second.wait_pinged(3)
    heartbeat.close()
    assert not reasons


@pytest.mark.parametrize("error", [GONE, SLOW])
def test_a_connection_that_cannot_be_made_anew_is_the_end(error: Exception) -> None:
    def reconnect() -> Agent:
        raise error

    heartbeat, reasons, lost = run(Agent(GONE), reconnect)
    assert lost.wait(DEADLINE_S)
    heartbeat.close()
    assert reasons == [str(error).partition("\n")[0]]


def test_a_suspended_guest_need_not_answer() -> None:
    suspended = threading.Event()
    agent = Agent(None, *[SLOW] * (ATTEMPTS - 1), None)

    def is_suspended() -> bool:
        if agent.pings == ATTEMPTS:  # one failure short of the end
            suspended.set()
        return suspended.is_set()

    heartbeat, reasons, lost = run(agent, no_reconnect, is_suspended)
    assert suspended.wait(DEADLINE_S)
    assert not lost.wait(0.1)
    pings = agent.pings
    assert not lost.wait(0.05)
    assert agent.pings == pings
    heartbeat.close()
    assert not reasons
