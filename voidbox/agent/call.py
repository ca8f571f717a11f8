"""One request on its way: what came for it, and what is still to be sent."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from threading import Condition
from typing import Any

from voidbox.agent.core import Data, Event, Failure, Result, printable
from voidbox.errors import AgentError, SandboxTimeout, VoidboxError

INPUT_BYTES_MAX = 256 << 10  # what write() queues before it waits for the guest


class RequestFailed(AgentError):
    """The guest could not do what was asked.

    Attributes:
        code: an errno's name ("ENOENT") or one of the protocol's codes.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class NotStarted(AgentError):
    """A command could not be executed.

    Attributes:
        status: 127 or 126, as a shell has it.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Call:
    """A request and its answers. Thread: any, several at once; `deliver` and `fail` the link's.

    Args:
        what: for messages, "exec" say.
        post: has the link's thread do something for this call.

    Attributes:
        on_change: called after anything came, or found its place; link thread, must not wait.
        is_lost: it ended because the connection is lost.
        is_waiting: it has not begun, for too many others are under way.
    """

    def __init__(self, what: str, post: Callable[[Callable[[], None]], None]) -> None:
        self.what = printable(what)  # it may quote what the guest calls a file
        self.on_change: Callable[[], None] = lambda: None
        self.is_lost = False
        self.is_waiting = False
        self.on_consumed: Callable[[int], None] = lambda cost: None  # link thread
        self.on_input: Callable[[], None] = lambda: None  # link thread
        self.on_cancel: Callable[[], None] = lambda: None  # link thread
        self._post = post
        self._changed = Condition()  # covers everything below
        self._events: deque[Event | Data] = deque()
        self._first_event: Event | None = None
        self._end: Result | None = None
        self._error: Callable[[], VoidboxError] | None = None
        self._input = bytearray()
        self._input_end: dict[str, Any] | None = None

    # The link's side.

    def deliver(self, event: Event | Data | Result | Failure) -> None:
        """Hand over what came."""
        with self._changed:
            if isinstance(event, Result):
                self._end = event
            elif isinstance(event, Failure):
                self._error = partial(RequestFailed, event.code, event.message)
            else:
                self._events.append(event)
                if self._first_event is None and isinstance(event, Event):
                    self._first_event = event
            self._changed.notify_all()
        self.on_change()

    def fail(self, error: Callable[[], VoidboxError]) -> None:
        """The connection is lost, or the request cannot be made; what came is still to be had.

        `error` is called by the caller's thread: it may wait for the guest's post-mortem.
        """
        with self._changed:
            if self._end is None and self._error is None:
                self._error = error
                self.is_lost = True
            self._changed.notify_all()
        self.on_change()

    def take_input(self, size: int) -> bytes:
        """Return up to `size` bytes that are to be sent."""
        with self._changed:
            data = bytes(self._input[:size])
            del self._input[:size]
            self._changed.notify_all()
        self.on_change()
        return data

    def give_back(self, data: bytes) -> None:
        """Take back what could not be sent yet."""
        with self._changed:
            self._input[:0] = data

    def take_input_end(self) -> dict[str, Any] | None:
        """Return what ends the input, once, when all of it has been taken."""
        with self._changed:
            if self._input:
                return None
            end, self._input_end = self._input_end, None
        return end

    # The caller's side.

    @property
    def is_over(self) -> bool:
        """Whether the request has ended, well or not."""
        return self._end is not None or self._error is not None

    @property
    def has_next(self) -> bool:
        """Whether next() returns at once; it may still wait for a dead guest's post-mortem."""
        return bool(self._events) or self.is_over

    @property
    def has_events(self) -> bool:
        """Whether something came that next() has not returned yet."""
        return bool(self._events)

    @property
    def has_room(self) -> bool:
        """Whether write() returns at once."""
        return len(self._input) < INPUT_BYTES_MAX or self.is_over

    def write(self, data: bytes | memoryview, timeout_s: float | None = None) -> None:
        """Send data, waiting while the guest is slow to take it; after the end nothing is sent.

        Raises:
            SandboxTimeout: the guest took nothing for so long.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.has_room, timeout_s):
                raise self.stalled(timeout_s)
            if self.is_over:
                return
            self._input += data
        self._post(self.on_input)

    def end_input(self, values: dict[str, Any] | None = None) -> None:
        """Say that no more data follows."""
        with self._changed:
            self._input_end = values or {}
        self._post(self.on_input)

    def cancel(self) -> None:
        """Ask for the request's end, which still comes as a result or an error."""
        # Looked up by the link's thread: only once that has begun the request is it there.
        self._post(lambda: self.on_cancel())

    @property
    def has_begun(self) -> bool:
        """Whether an event has come."""
        return self._first_event is not None

    def first_event(self) -> dict[str, Any] | None:
        """Wait for the first event; return its map, or None if the end came first.

        It is not taken: who calls next() gets it too.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._first_event is not None or self.is_over)
            return self._first_event.values if self._first_event is not None else None

    def next(self, timeout_s: float | None = None) -> Event | Data | None:
        """Return what came next, or None at the end, which result() then has.

        Raises:
            RequestFailed: the guest could not do it.
            AgentError: the connection is lost.
            ConfigError: the request is too long, or holds what is no text.
            SandboxTimeout: nothing came for so long.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.has_next, timeout_s):
                raise self.stalled(timeout_s)
            event = self._events.popleft() if self._events else None
        if event is None:
            if self._error is not None:
                raise self._error()
            return None
        self._post(lambda: self.on_consumed(event.cost))
        return event

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel it if it has not ended: nobody is interested any more."""
        if not self.is_over:
            self.cancel()

    def __iter__(self) -> Iterator[Event | Data]:
        while (event := self.next()) is not None:
            yield event

    def result(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Wait for the end, dropping what comes before it; return the result's map.

        Raises:
            RequestFailed, AgentError: see next().
            SandboxTimeout: it has not ended after so long; the request is cancelled.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while self.next(None if deadline is None else deadline - time.monotonic()) is not None:
                if deadline is not None and time.monotonic() > deadline:
                    raise self.stalled(timeout_s)  # events without end are no answer
        except SandboxTimeout:
            self.cancel()
            raise self.stalled(timeout_s) from None
        assert self._end is not None
        return self._end.values

    def stalled(self, timeout_s: float | None) -> SandboxTimeout:
        """Return the error for an answer that did not come in time."""
        if self.is_waiting:
            return SandboxTimeout(
                f"{self.what}: as many requests as can be are under way, and none of them ended "
                f"within {timeout_s:g} s"
            )
        return SandboxTimeout(
            f"{self.what}: the guest's agent did not answer within {timeout_s:g} s"
        )
