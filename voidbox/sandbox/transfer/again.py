"""Once more over a new connection, when the old one is lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from voidbox.agent.aio import AsyncAgent, AsyncCall
from voidbox.errors import AgentError

_LOSSES_MAX = 3  # of the connection, one after the other at the same piece

T = TypeVar("T")


class ConnectionLost(Exception):
    """The connection broke; `error` is what to raise if it does not come back."""

    def __init__(self, error: AgentError) -> None:
        self.error = error


def lost_or(call: AsyncCall, error: AgentError) -> Exception:
    """Return what to raise for a request's error: ConnectionLost if it is that."""
    return ConnectionLost(error) if call.is_lost else error


async def again(agent: AsyncAgent, attempt: Callable[[], Awaitable[T]], limit_s: float) -> T:
    """Await `attempt()`, again with a new connection while it loses the one it had.

    Raises:
        AgentError: the guest is gone, or the connection is lost again and again.
    """
    for losses in range(1, _LOSSES_MAX + 1):
        try:
            return await attempt()
        except ConnectionLost as lost:
            if losses == _LOSSES_MAX:
                raise lost.error from None
            await agent.link(limit_s)  # says so if the guest is gone
    raise AssertionError("unreachable")
