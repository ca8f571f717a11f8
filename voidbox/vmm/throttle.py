"""A limit to the CPU time of the vCPUs, which needs no cgroup and no rights.

A token bucket of CPU time: it fills as time passes, what the vCPUs use is taken from it, and when
it is empty they are held until half a period's worth is in it again. Only their threads' time
counts, which is the guest's; devices work for it on others.
"""

from __future__ import annotations

import threading
import time

from voidbox.named_tuple import NamedTuple
from voidbox.vmm.vcpus import Vcpus

PERIOD_S = 0.1  # what may be used at once, in time at the limit
_LOOK_S_MIN = 0.002
_HELD_S_MAX = 5.0


class ThrottleStatistics(NamedTuple):
    """What a throttle did.

    Attributes:
        cpu_limit: in CPUs; None for none.
        held_ns: how long the vCPUs have been held, all together.
    """

    cpu_limit: float | None
    held_ns: int


class Throttle:
    """The limit of one machine. Thread: any; one of its own while there is a limit."""

    def __init__(self, vcpus: Vcpus) -> None:
        self._vcpus = vcpus
        self._changed = threading.Condition()  # covers all below
        self._limit: float | None = None
        self._is_closed = False
        self._held_ns = 0
        self._thread: threading.Thread | None = None

    def set(self, cpus: float | None) -> None:
        """Limit the vCPUs together to so many CPUs, such as 0.5; None for no limit.

        Raises:
            RuntimeError: the host gives no thread.
        """
        with self._changed:
            self._limit = cpus
            if cpus is not None and self._thread is None and not self._is_closed:
                thread = threading.Thread(target=self._run, name="voidbox-throttle")
                thread.start()
                self._thread = thread
            self._changed.notify_all()

    def statistics(self) -> ThrottleStatistics:
        """Return the limit, and what it has cost the guest."""
        with self._changed:
            return ThrottleStatistics(self._limit, self._held_ns)

    def close(self) -> None:
        """Limit nothing any more. Idempotent."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        tokens_ns = 0.0
        at_ns, used_ns = time.monotonic_ns(), self._vcpus.cpu_ns()
        while (limit := self._wait(tokens_ns)) is not None:
            now_ns, now_used_ns = time.monotonic_ns(), self._vcpus.cpu_ns()
            burst_ns = limit * PERIOD_S * 1e9
            # A vCPU that has ended takes its clock with it: then the sum is less than before.
            spent_ns = max(0, now_used_ns - used_ns)
            tokens_ns = min(burst_ns, tokens_ns + (now_ns - at_ns) * limit) - spent_ns
            at_ns, used_ns = now_ns, now_used_ns
            if tokens_ns <= 0:
                self._hold((burst_ns / 2 - tokens_ns) / limit / 1e9)

    def _wait(self, tokens_ns: float) -> float | None:
        """Wait as long as the tokens last at least; return the limit, None at the end.

        While there is no limit it waits for one.
        """
        with self._changed:
            count = max(1, len(self._vcpus.threads))
            if self._limit is not None and not self._is_closed:
                self._changed.wait(min(max(tokens_ns / count / 1e9, _LOOK_S_MIN), PERIOD_S))
            while self._limit is None and not self._is_closed:
                self._changed.wait()
            return self._limit if not self._is_closed else None

    def _hold(self, seconds: float) -> None:
        """Have the vCPUs stand still, unless the limit changes meanwhile."""
        began_ns = time.monotonic_ns()
        self._vcpus.hold()
        try:
            with self._changed:
                if not self._is_closed:
                    self._changed.wait(min(seconds, _HELD_S_MAX))
        finally:
            self._vcpus.let_go()
        with self._changed:
            self._held_ns += time.monotonic_ns() - began_ns
