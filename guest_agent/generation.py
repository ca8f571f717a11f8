"""Requests around a snapshot: QUIESCE before it, RELEASE after it, ADOPT in what is made of it.

A guest that is restored is a copy: it has the original's random numbers, clock, secret and names.
ADOPT makes it one of its own, in one request, so that nothing of it can be forgotten; whoever
restores lets nobody else to the guest before it has been answered.
"""

from __future__ import annotations

from guest_agent import arguments, protocol
from guest_agent.connection import Connection, Request, RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from guest_agent.commands import ProcessTable
    from guest_agent.identity import Identity
    from guest_agent.loop import Loop, Timer

_RELEASE_S_MAX = 3600


class Generation:
    """Which copy of the guest this is, and whether another is being made.

    Args:
        table: the commands. While a snapshot is made, those in the foreground outlive their
            connection: in the copy all connections are cut.
        load_identity: returns what changes the guest itself; None for an agent that is a mere
            program.
        on_adopted: takes the connection that brought an ADOPT, and the new secret.
    """

    def __init__(
        self,
        loop: Loop,
        table: ProcessTable,
        load_identity: Callable[[], Identity] | None,
        on_adopted: Callable[[Connection, bytes], None],
    ) -> None:
        self._loop = loop
        self._table = table
        self._load_identity = load_identity
        self._identity: Identity | None = None
        self._on_adopted = on_adopted
        self._timer: Timer | None = None
        self._has_gone_on = False  # before anybody released what was frozen

    def _load(self) -> Identity | None:
        if self._identity is None and self._load_identity is not None:
            self._identity = self._load_identity()
        return self._identity

    def quiesce(self, freezes: bool, seconds: float) -> dict[str, Any]:
        """Be ready for a snapshot, until released or for so many seconds."""
        self.release()
        identity = self._load()  # whether or not it is needed here: the copy will have it at hand
        self._table.keeps_foreground = True
        self._timer = self._loop.call_later(seconds, self._go_on)
        is_frozen = freezes and identity is not None and identity.freeze()
        self._has_gone_on = False
        return {"is_frozen": is_frozen}

    def _go_on(self) -> None:
        """Nobody has released it in time."""
        self._has_gone_on = True
        self.release()

    def release(self) -> None:
        """Go on as before. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._table.keeps_foreground = False
        if self._identity is not None:
            self._identity.thaw()

    def adopt(self, connection: Connection, values: dict[str, Any]) -> dict[str, Any]:
        """Become another guest; what cannot be done is raised, and then nobody may use it."""
        entropy = _bytes(values, "entropy", protocol.SECRET_BYTES)
        secret = _bytes(values, "secret", protocol.SECRET_BYTES)
        clock_ns = arguments.integer(values, "clock_ns")
        environment = arguments.text_map(values, "env")
        names = {
            name: arguments.optional_text(values, name)
            for name in ("hostname", "machine_id", "generation")
        }
        notes: list[str] = []
        identity = self._load()
        if identity is not None:
            identity.reseed(entropy)
            identity.set_clock(clock_ns)
        self._table.keeps_foreground = True  # those whose connections end here and now
        self._on_adopted(connection, secret)
        if identity is not None:
            notes = identity.rename(**names)
        if self._has_gone_on:
            notes.append("its processes have run before it was told that it is another")
            self._has_gone_on = False
        self._table.environment = environment
        self.release()
        return {"notes": notes}


class _About(Request):
    def __init__(self, generation: Generation, connection: Connection, number: int) -> None:
        super().__init__(connection, number)
        self._generation = generation


class Quiesce(_About):
    """Be ready for a snapshot.

    Values: freeze (bool): have no process of the guest run but the agent; timeout (seconds): what
    nobody has released by then goes on. Answers: RESULT {is_frozen}.
    """

    def start(self, values: dict[str, Any]) -> None:
        seconds = arguments.seconds(values, "timeout")
        if seconds is None or seconds > _RELEASE_S_MAX:
            raise RequestError(protocol.BAD_REQUEST, "give a timeout, of an hour at most")
        self.result(self._generation.quiesce(arguments.flag(values, "freeze"), seconds))


class Release(_About):
    """The snapshot has been made, or given up: go on. Answers: RESULT {}."""

    def start(self, values: dict[str, Any]) -> None:
        self._generation.release()
        self.result({})


class Adopt(_About):
    """Be a guest of its own, after a restore.

    Values: entropy, secret (32 bytes each), clock_ns, and if they are given hostname, machine_id,
    generation, env. In this order: new random numbers, the clock, the new secret, by which all
    other connections end and the old one opens nothing any more, the names, the environment of
    commands; then what was frozen goes on.
    Answers: RESULT {notes}, of what a guest can do without. An ERROR means: use it for nothing.
    """

    def start(self, values: dict[str, Any]) -> None:
        self.result(self._generation.adopt(self.connection, values))


def _bytes(values: dict[str, Any], name: str, size: int) -> bytes:
    value = values.get(name)
    if not isinstance(value, bytes) or len(value) != size:
        raise RequestError(protocol.BAD_REQUEST, f"{name!r} must be {size} bytes")
    return value
