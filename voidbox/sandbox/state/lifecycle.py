"""The states of a sandbox, and the one table of how it goes from one to another.

CREATING ──BOOTED──▶ RUNNING ◀──RESUME, PAUSE──▶ PAUSED
    │└───────STOP───────┴──────────STOP────────────┴──▶ STOPPING
    │               either ──SUSPEND──▶ SUSPENDED ──WAKE──▶ CREATING, and back by SUSPEND if
    └──SUSPEND──▶ SUSPENDED             that fails
any of these ──ENDED──▶ STOPPED, ──FAILED──▶ CRASHED: there it stays.
"""

from __future__ import annotations

from enum import Enum

from voidbox.errors import ConfigError


class State(Enum):
    """What a sandbox does; its value is the text that users see."""

    CREATING = "creating"
    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    STOPPING = "stopping"
    STOPPED = "stopped"
    CRASHED = "crashed"

    @property
    def is_final(self) -> bool:
        """Whether the sandbox has ended: nothing leads out of this state."""
        return self in _FINAL

    @property
    def has_process(self) -> bool:
        """Whether a process runs it: one that is suspended lies on the disk."""
        return self not in _FINAL and self is not State.SUSPENDED


class Event(Enum):
    """What happens to a sandbox; its value is what one says of it."""

    BOOTED = "boot"  # its agent has answered
    PAUSE = "be paused"
    RESUME = "be resumed"
    SUSPEND = "be suspended"
    WAKE = "be woken"
    STOP = "be stopped"
    ENDED = "end"  # as it should
    FAILED = "crash"


_FINAL = frozenset({State.STOPPED, State.CRASHED})

_TRANSITIONS = {
    (State.CREATING, Event.BOOTED): State.RUNNING,
    (State.CREATING, Event.STOP): State.STOPPING,
    (State.CREATING, Event.ENDED): State.STOPPED,
    (State.CREATING, Event.FAILED): State.CRASHED,
    (State.CREATING, Event.SUSPEND): State.SUSPENDED,  # it could not be woken
    (State.RUNNING, Event.PAUSE): State.PAUSED,
    (State.RUNNING, Event.SUSPEND): State.SUSPENDED,
    (State.RUNNING, Event.STOP): State.STOPPING,
    (State.RUNNING, Event.ENDED): State.STOPPED,
    (State.RUNNING, Event.FAILED): State.CRASHED,
    (State.PAUSED, Event.RESUME): State.RUNNING,
    (State.PAUSED, Event.SUSPEND): State.SUSPENDED,
    (State.PAUSED, Event.STOP): State.STOPPING,
    (State.PAUSED, Event.ENDED): State.STOPPED,
    (State.PAUSED, Event.FAILED): State.CRASHED,
    (State.SUSPENDED, Event.WAKE): State.CREATING,
    (State.SUSPENDED, Event.ENDED): State.STOPPED,
    (State.SUSPENDED, Event.FAILED): State.CRASHED,
    (State.STOPPING, Event.STOP): State.STOPPING,  # who asks again is not refused
    (State.STOPPING, Event.ENDED): State.STOPPED,
    (State.STOPPING, Event.FAILED): State.CRASHED,
}


def step(state: State, event: Event) -> State:
    """Return the state that follows.

    Raises:
        ConfigError: the event cannot happen in this state.
    """
    try:
        return _TRANSITIONS[state, event]
    except KeyError:
        raise ConfigError(f"a sandbox that is {state.value} cannot {event.value}") from None
