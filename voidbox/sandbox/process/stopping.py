"""How a sandbox is stopped: the agent is asked, the power button pressed, the machine killed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

AGENT_S = 10.0
POWER_BUTTON_S = 3.0
_ANSWER_LOST_S = 0.5  # between a lost answer and the end, if it was the end that cut it off

log = logging.getLogger(__name__)


class Stopping:
    """Stops a guest step by step, on a thread of its own. Thread: any.

    Args:
        ask_agent: asks the guest's agent to shut down; returns whether it will, after so many
            seconds at most.
        press_power_button: see Machine.
        kill: takes the reason.
        ended: set once the guest has ended.
    """

    def __init__(
        self,
        ask_agent: Callable[[float], bool],
        press_power_button: Callable[[], None],
        kill: Callable[[str], None],
        ended: threading.Event,
        power_button_s: float = POWER_BUTTON_S,
    ) -> None:
        self._ask_agent = ask_agent
        self._press_power_button = press_power_button
        self._kill = kill
        self._ended = ended
        self._power_button_s = power_button_s
        self._lock = threading.Lock()  # covers _thread
        self._thread: threading.Thread | None = None

    @property
    def has_begun(self) -> bool:
        """Whether it was asked for."""
        return self._thread is not None

    def begin(self, agent_s: float = AGENT_S) -> None:
        """Begin, and give the agent so many seconds; who has begun already goes on as before."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, args=(agent_s,), name="voidbox-stop"
                )
                self._thread.start()

    def join(self) -> None:
        """Wait for the thread, which ends soon after the guest."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, agent_s: float) -> None:
        agent_s = min(agent_s, threading.TIMEOUT_MAX)
        deadline = time.monotonic() + agent_s
        log.info("stop: asking the guest's agent to shut down, within %g s", agent_s)
        if self._ask_agent(agent_s):
            if self._ended.wait(deadline - time.monotonic()):
                return
            log.warning("stop: the guest still runs after %g s: pressing its power button", agent_s)
        else:
            if self._ended.wait(_ANSWER_LOST_S):
                return
            log.warning("stop: the agent does not answer: pressing the power button")
        self._press_power_button()
        if self._ended.wait(self._power_button_s):
            return
        log.warning("stop: the guest still runs after %g s: killing it", self._power_button_s)
        self._kill("it did not shut down when it was stopped, and was killed")
