"""Ports of a sandbox that the host offers: `sandbox.ports`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from voidbox.errors import AgentError

Control = Callable[..., Awaitable[dict[str, object]]]


class AsyncPorts:
    """Publishes ports while the sandbox runs. They are written [IP:]HOSTPORT:GUESTPORT[/udp]."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def add(self, publish: str, *, request_timeout: float | None = None) -> str:
        """Offer a port of the guest; return where, as "127.0.0.1:8080:80/tcp".

        Args:
            publish: "8080:80", say; "0:80" for any port of the host that is free.
        Raises:
            ConfigError: it cannot be read, or the sandbox has no network.
            HostError: the host's port is taken.
        """
        answer = await self._control("port_add", request_timeout, publish=publish)
        return str(answer.get("forward"))

    async def remove(self, publish: str, *, request_timeout: float | None = None) -> None:
        """Offer it no longer.

        Raises:
            ConfigError: it is not published.
        """
        await self._control("port_remove", request_timeout, publish=publish)

    async def list(self, *, request_timeout: float | None = None) -> list[str]:
        """List what is offered, as add() returns it."""
        answer = await self._control("port_list", request_timeout)
        forwards = answer.get("forwards")
        if not isinstance(forwards, list):
            raise AgentError("the sandbox's process gave no list of ports")
        return [str(forward) for forward in forwards]
