"""What the server tells of itself while it works: spans, figures, logs. Here: nothing; see otlp.

One object for the whole server, in `scope["voidbox.telemetry"]` of each request too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

if TYPE_CHECKING:
    from voidbox.serve.registry import Registry

_LOG_CHARACTERS = 64 << 10


class Lasting:
    """A span that outlives who began it: a command's.

    Attributes:
        environment: variables that have what a program in the guest does be a part of it, in W3C's
            words.
    """

    environment: Mapping[str, str] = {}

    def end(self, **attributes: str | int | float | bool) -> None:
        """End it, and say how. Idempotent."""


class Telemetry:
    """Tells nobody. Thread: the event loop's."""

    @contextlib.contextmanager
    def request(self, scope: Scope) -> Iterator[None]:
        """Have a block be the span of a request, and a part of the client's own."""
        yield

    @contextlib.contextmanager
    def span(self, name: str, **attributes: str | int | float | bool) -> Iterator[None]:
        """Have a block be a span."""
        yield

    def past(self, name: str, began_at: float, **attributes: str | int | float | bool) -> None:
        """Tell of a span that has ended just now; `began_at` in seconds since 1970."""

    def begin(self, name: str, **attributes: str | int | float | bool) -> Lasting:
        """Begin a span that somebody else ends."""
        return Lasting()

    def answered(self, plane: str, method: str, status: int, seconds: float) -> None:
        """Count a request, and how long it took."""

    def observe(self, registry: Registry) -> None:
        """Have the sandboxes be counted from now on."""

    def close(self) -> None:
        """Send what was not sent yet. Idempotent."""


def of(scope: Mapping[str, Any]) -> Telemetry:
    """Return a request's."""
    found = scope.get("voidbox.telemetry")
    return found if isinstance(found, Telemetry) else Telemetry()


def how_started(log: str) -> str:
    """Return what a sandbox's start was, by the log of its process: "restore" or "boot"."""
    with contextlib.suppress(OSError), open(log, errors="replace") as file:
        return "restore" if "restored from " in file.read(_LOG_CHARACTERS) else "boot"
    return "boot"
