"""How a sandbox ends: as was decided here, else as its machine says, else by the error."""

from __future__ import annotations

import threading

from voidbox.errors import AgentError, VoidboxError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.state.lifecycle import Event
from voidbox.vmm.outcome import EndReason, Outcome

_WELL = frozenset({EndReason.POWER_OFF, EndReason.RESET, EndReason.STOPPED})


class Verdict(NamedTuple):
    """How the sandbox ended.

    Attributes:
        reason: one line.
        crash: the whole story; "" if there is none to tell.
        end: the machine's EndReason by name; "" where it was ended from here.
    """

    event: Event
    reason: str
    crash: str = ""
    end: str = ""


class Decision:
    """The verdict, once somebody has ended the sandbox from here. Thread: any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # covers _verdict
        self._verdict: Verdict | None = None

    @property
    def is_suspend(self) -> bool:
        """Whether it is being suspended."""
        verdict = self._verdict
        return verdict is not None and verdict.event is Event.SUSPEND

    @property
    def reason(self) -> str:
        """Why it ends; "" while nobody has ended it."""
        return self._verdict.reason if self._verdict is not None else ""

    @property
    def is_made(self) -> bool:
        """Whether somebody has ended it, or is suspending it."""
        return self._verdict is not None

    def end(self, event: Event, reason: str) -> bool:
        """Decide, unless it is decided; a suspension gives way. Returns whether it was."""
        with self._lock:
            is_open = self._verdict is None or self._verdict.event is Event.SUSPEND
            if is_open:
                self._verdict = Verdict(event, reason)
            return is_open

    def check(self) -> None:
        """Refuse to go on with what somebody has ended.

        Raises:
            AgentError: it was ended, or is being suspended.
        """
        if self._verdict is not None:
            raise AgentError(self._verdict.reason)

    def begin_suspend(self) -> None:
        """Decide that it is suspended.

        Raises:
            AgentError: it ends.
        """
        with self._lock:
            if self._verdict is not None:
                raise AgentError(f"it ends: {self._verdict.reason}")
            self._verdict = Verdict(Event.SUSPEND, "")

    def abort_suspend(self) -> None:
        """It goes on."""
        with self._lock:
            if self._verdict is not None and self._verdict.event is Event.SUSPEND:
                self._verdict = None

    def judge(
        self,
        outcome: Outcome | None,
        error: VoidboxError | None,
        *,
        console_tail: str,
        is_waking: bool,
        stop_reason: str,
    ) -> Verdict:
        """Return how it ended.

        Args:
            outcome: the machine's, or None if there was none.
            error: what its process failed with.
            is_waking: it was to be woken, and has not been yet.
            stop_reason: why it was asked to stop; "" if it was not.
        """
        verdict = self._verdict
        has_stopped = outcome is None or outcome.reason in _WELL
        if is_waking and verdict is None:  # what is on the disk is as it was
            why = str(error or (outcome and outcome.describe())).partition("\n")[0]
            return Verdict(Event.SUSPEND, f"it could not be woken: {why}")
        if verdict is not None and has_stopped:
            if verdict.event is Event.FAILED and console_tail:
                story = f"{verdict.reason}\nthe console's last lines:\n{console_tail}"
                return verdict._replace(crash=story)
            return verdict
        if outcome is None:
            return Verdict(Event.FAILED, str(error).partition("\n")[0], str(error))
        end = outcome.reason.name
        if has_stopped and stop_reason:
            return Verdict(Event.ENDED, stop_reason)
        if has_stopped:
            return Verdict(Event.ENDED, outcome.reason.value, end=end)
        story = outcome.describe()
        return Verdict(Event.FAILED, story.partition("\n")[0], story, end)
