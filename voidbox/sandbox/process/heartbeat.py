"""Asks the guest's agent every few seconds whether it lives."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from voidbox.agent.core import Pong
from voidbox.errors import AgentError, SandboxTimeout

PERIOD_S = 5.0
IDLE_PERIOD_S = 15.0  # while nobody uses the guest: nobody waits for it, and each ping wakes it
# Lost after so many in a row. Several short waits rather than a long one: when the host stops this
# process for a minute, only one of them runs out.
ATTEMPTS, ANSWER_S = 3, 10.0

log = logging.getLogger(__name__)


class Pinger(Protocol):
    """What the heartbeat needs of an agent's client."""

    def ping(self, secret: bytes, timeout_s: float | None = None) -> Pong:
        """Return what the agent says of itself."""


class Heartbeat:
    """Pings on a thread of its own until it is closed, or the agent lost. Thread: any.

    Args:
        client: to the agent.
        reconnect: returns another client, when the connection breaks though the guest lives.
        is_suspended: whether the guest cannot answer now: it is paused, or is shutting down.
        on_lost: called on the thread, at most once.
        period_s, idle_period_s: between pings; the latter while the guest says it has been idle
            for longer than the former.
        on_answer: called on the thread with each answer.
    """

    def __init__(
        self,
        client: Pinger,
        secret: bytes,
        reconnect: Callable[[], Pinger],
        is_suspended: Callable[[], bool],
        on_lost: Callable[[str], None],
        period_s: float = PERIOD_S,
        answer_s: float = ANSWER_S,
        on_answer: Callable[[Pong], None] = lambda pong: None,
        idle_period_s: float = 0.0,
    ) -> None:
        self._client = client
        self._secret = secret
        self._reconnect = reconnect
        self._is_suspended = is_suspended
        self._on_lost = on_lost
        self._on_answer = on_answer
        self._period_s = period_s
        self._idle_period_s = max(period_s, idle_period_s)
        self._is_idle = False
        self._answer_s = answer_s
        self._failures = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="voidbox-heartbeat")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End it; returns within an answer's time, at once if the client is closed. Idempotent."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._pause_s()):
            if self._is_suspended():
                self._failures = 0
                self._closing.wait(self._period_s)
            elif not self._beat():
                return

    def _pause_s(self) -> float:
        if self._failures:
            return 0.0
        return self._idle_period_s if self._is_idle else self._period_s

    def _beat(self) -> bool:
        """Ping once; False when it is over."""
        try:
            pong = self._client.ping(self._secret, self._answer_s)
            if self._failures:
                log.info("heartbeat: the guest's agent answers again")
            self._failures = 0
            idle_s = pong.info.get("idle_s")  # the guest's word, which moves its own pings alone
            self._is_idle = isinstance(idle_s, int | float) and idle_s > self._period_s
            self._on_answer(pong)
            return True
        except SandboxTimeout as error:
            return self._fail(str(error))
        except AgentError as error:
            if self._closing.is_set() or self._is_suspended():
                return True
            first_line = str(error).partition("\n")[0]
            log.warning("heartbeat: %s", first_line)
        try:
            self._client = self._reconnect()
            return True
        except (AgentError, SandboxTimeout) as error:
            return self._lose(str(error).partition("\n")[0])

    def _fail(self, problem: str) -> bool:
        if self._closing.is_set() or self._is_suspended():
            return True
        self._failures += 1
        self._is_idle = False
        log.warning("heartbeat: %s (%d of %d)", problem, self._failures, ATTEMPTS)
        return self._failures < ATTEMPTS or self._lose("the guest's agent does not answer")

    def _lose(self, reason: str) -> bool:
        if not self._closing.is_set():
            self._on_lost(reason)
        return False
