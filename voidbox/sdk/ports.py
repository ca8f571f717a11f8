"""Ports of a sandbox: `sandbox.ports`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from voidbox.agent.call import RequestFailed
from voidbox.errors import AgentError, SandboxTimeout
from voidbox.sandbox.ports import (
    LISTENERS,
    Listeners,
    PublishedPort,
    check_port,
    parse_published,
)
from voidbox.sandbox.session import Session, check_seconds
from voidbox.sdk.files import AsyncFiles

WAIT_S = 60.0
_PAUSE_S_MIN, _PAUSE_S_MAX = 0.05, 0.5
_TABLE_BYTES_MAX = 1 << 20  # some 7,000 connections

Control = Callable[..., Awaitable[dict[str, object]]]


class AsyncPorts:
    """Publishes ports while the sandbox runs. They are written [IP:]HOSTPORT:GUESTPORT[/udp]."""

    def __init__(self, control: Control, session: Session, files: AsyncFiles) -> None:
        self._control = control
        self._session = session
        self._files = files

    async def add(self, publish: str, *, request_timeout: float | None = None) -> PublishedPort:
        """Offer a port of the guest; return where: its text is "127.0.0.1:8080:80/tcp".

        Args:
            publish: "8080:80", say; "0:80" for any port of the host that is free.
        Raises:
            ConfigError: it cannot be read, or the sandbox has no network.
            HostError: the host's port is taken.
        """
        answer = await self._control("port_add", request_timeout, publish=publish)
        return parse_published(answer.get("forward"))

    async def remove(
        self, publish: str | PublishedPort, *, request_timeout: float | None = None
    ) -> None:
        """Offer it no longer.

        Raises:
            ConfigError: it is not published.
        """
        await self._control("port_remove", request_timeout, publish=str(publish))

    async def list(self, *, request_timeout: float | None = None) -> list[PublishedPort]:
        """List what is offered."""
        answer = await self._control("port_list", request_timeout)
        forwards = answer.get("forwards")
        if not isinstance(forwards, list):
            raise AgentError("the sandbox's process gave no list of ports")
        return [parse_published(forward) for forward in forwards]

    async def wait_for(
        self, port: int, timeout: float = WAIT_S, *, request_timeout: float | None = None
    ) -> None:
        """Wait until a program of the guest listens on a TCP port.

        For a port that is published, one that the host reaches: not on the guest's loopback alone.

        Args:
            port: the guest's.
            timeout: how long, in seconds; it is looked once in any case.
        Raises:
            ConfigError: it is no port, or the sandbox is paused.
            SandboxTimeout: nobody listens.
            AgentError: the sandbox has ended.
        """
        check_port(port)
        deadline = time.monotonic() + check_seconds("timeout", timeout)
        pause_s = _PAUSE_S_MIN
        while True:
            found = await self._listeners(port, request_timeout)
            if found.is_reached:
                return
            if found.is_there and not await self._is_published(port, request_timeout):
                return
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise SandboxTimeout(f"{self._explain(port, found)}, after {timeout:g} s")
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)

    def _explain(self, port: int, found: Listeners) -> str:
        name = self._session.name
        if not found.is_there:
            return f"nothing listens on port {port} of {name}"
        return (
            f"what listens on port {port} of {name} does so on the guest's loopback alone, where "
            "no published port leads: have it listen on 0.0.0.0"
        )

    async def _listeners(self, port: int, request_timeout: float | None) -> Listeners:
        found = Listeners(port)
        for path in LISTENERS:
            try:
                table = await self._files.read_part(
                    path, 0, _TABLE_BYTES_MAX, request_timeout=request_timeout
                )
            except RequestFailed as error:
                if error.code != "ENOENT":  # a kernel without IPv6
                    raise
            else:
                found.take(table)
        return found

    async def _is_published(self, port: int, request_timeout: float | None) -> bool:
        published = await self.list(request_timeout=request_timeout)
        return any(one.guest_port == port and one.protocol == "tcp" for one in published)
