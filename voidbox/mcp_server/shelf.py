"""The sandboxes of one MCP server: made when needed, so many and no more, ended with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

from voidbox.errors import ConfigError, VoidboxError
from voidbox.sdk.commands import AsyncCommands
from voidbox.sdk.files import AsyncFiles
from voidbox.sdk.info import SandboxInfo

SANDBOXES_MAX = 4


class SandboxLike(Protocol):
    """An AsyncSandbox, as far as it is used here."""

    commands: AsyncCommands
    files: AsyncFiles

    @property
    def name(self) -> str:
        """Its name."""
        ...

    async def is_running(self) -> bool:
        """Whether it has not ended."""
        ...

    async def get_info(self) -> SandboxInfo:
        """What it is and how it is."""
        ...

    async def kill(self) -> bool:
        """End it."""
        ...


class Shelf:
    """Sandboxes by name. Thread: the event loop's.

    Args:
        make: makes one.
        sandboxes_max: how many there may be at a time.
    """

    def __init__(
        self, make: Callable[[], Awaitable[SandboxLike]], sandboxes_max: int = SANDBOXES_MAX
    ) -> None:
        self._make = make
        self._max = sandboxes_max
        self._sandboxes: dict[str, SandboxLike] = {}
        self._lock = asyncio.Lock()  # covers making one, so that they are counted right

    async def create(self) -> SandboxLike:
        """Make one.

        Raises:
            ConfigError: there are as many as there may be.
            VoidboxError: it cannot be made.
        """
        async with self._lock:
            return await self._create()

    async def _create(self) -> SandboxLike:
        await self._drop_ended()
        if len(self._sandboxes) >= self._max:
            names = ", ".join(self._sandboxes)
            raise ConfigError(f"there are {self._max} sandboxes already ({names}): end one first")
        sandbox = await self._make()
        self._sandboxes[sandbox.name] = sandbox
        return sandbox

    async def find(self, name: str) -> SandboxLike:
        """Return a sandbox by its name; with "" the only one, which is made if there is none.

        Raises:
            ConfigError: there is no such sandbox, or several and no name.
        """
        if not name:
            async with self._lock:
                await self._drop_ended()
                if not self._sandboxes:
                    return await self._create()
            if len(self._sandboxes) > 1:
                raise ConfigError(f"say which sandbox: {', '.join(self._sandboxes)}")
            (name,) = self._sandboxes
        if name not in self._sandboxes:
            raise ConfigError(f"no sandbox {name!r} of this server: sandbox_list tells them")
        return self._sandboxes[name]

    async def list(self) -> list[SandboxInfo]:
        """Return what is known of each; those that have ended are told once more, the last time.

        One whose record somebody else has removed is not told.
        """
        found = []
        for sandbox in [*self._sandboxes.values()]:
            with contextlib.suppress(VoidboxError):
                found.append(await sandbox.get_info())
        await self._drop_ended()
        return found

    async def kill(self, name: str) -> bool:
        """End one; False if it had ended.

        Raises:
            ConfigError: there is no such sandbox.
        """
        sandbox = self._sandboxes.pop(name, None)
        if sandbox is None:
            raise ConfigError(f"no sandbox {name!r} of this server: sandbox_list tells them")
        return await sandbox.kill()

    async def close(self) -> None:
        """End them all."""
        async with self._lock:
            sandboxes = [*self._sandboxes.values()]
            self._sandboxes.clear()
            await asyncio.gather(*(sandbox.kill() for sandbox in sandboxes), return_exceptions=True)

    async def _drop_ended(self) -> None:
        for name, sandbox in [*self._sandboxes.items()]:
            try:
                is_alive = await sandbox.is_running()
            except VoidboxError:  # its record is gone
                is_alive = False
            if not is_alive:
                self._sandboxes.pop(name, None)
                with contextlib.suppress(VoidboxError):
                    await sandbox.kill()  # removes what is left of it
