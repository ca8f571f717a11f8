"""How a sandbox ends: politely, at once, or left to itself."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TypeVar

from voidbox.errors import AgentError, ConfigError, SandboxTimeout
from voidbox.sandbox.session import check_seconds
from voidbox.sdk.handle import SandboxHandle
from voidbox.sdk.info import SandboxInfo
from voidbox.sdk.launching import KILL_S

STOP_S = 10.0
_STOP_GRACE_S = 10.0  # for the power button, the kill and the last words

Self = TypeVar("Self", bound="EndingSandbox")


class EndingSandbox(SandboxHandle):
    """A sandbox that can be ended; see AsyncSandbox."""

    _leaves_nothing = False  # once it is killed, though this program may be killed just then, too

    async def stop(self, timeout: float = STOP_S) -> None:
        """End it politely, and wait: its agent is asked, then the power button, then it is killed.

        Before that a workspace is copied back; if that fails, it goes on.

        Its record and its logs stay until kill(), or `voidbox rm`.

        Args:
            timeout: how long its agent has for it.
        """
        check_seconds("timeout", timeout)
        if await self._discard():
            return
        if await self.is_running():
            await self._workspace.settle(self._session.limit_s(None), is_failing=False)
        await self._stop(timeout)
        await self._disconnect()

    async def _stop(self, timeout: float) -> None:
        with contextlib.suppress(AgentError):  # it has ended already
            await self._control("stop", timeout=timeout)
        await self._place.wait_or_kill(timeout + _STOP_GRACE_S)
        await self._discard()  # if somebody was just suspending it

    async def wait(self, timeout: float | None = None) -> SandboxInfo:
        """Wait until it has ended; return how.

        Raises:
            SandboxTimeout: it has not after so many seconds.
        """
        limit_s = None if timeout is None else check_seconds("timeout", timeout)
        if self._session.ended:
            return await self.get_info()
        if not await self._place.wait_gone(limit_s):
            raise SandboxTimeout(f"{self._name} still runs after {timeout:g} s of waiting")
        return await self.get_info()

    async def kill(self) -> bool:
        """End it at once, and wait for that; False if it had ended.

        Nothing of it is left, unless create() was told to keep it, or connect() found it. Its
        workspace is not copied back.
        """
        self._say_ended()
        try:
            was_alive = await asyncio.to_thread(self._place.is_alive)
        except ConfigError:
            was_alive = False
        was_alive = was_alive or await self._discard()
        if was_alive:
            with contextlib.suppress(AgentError, SandboxTimeout):
                await self._control("kill", leaves_nothing=self._leaves_nothing)
            await self._place.wait_or_kill(KILL_S)
        await self._disconnect()  # it may have ended by itself
        if not self._keeps:
            with contextlib.suppress(ConfigError):  # somebody else has removed it
                await asyncio.to_thread(self._place.remove)
        elif was_alive:
            await self._discard()  # if somebody was just suspending it
        return was_alive

    def _say_ended(self) -> None:
        """Have every use of it from here on say that this program has ended it."""
        self._workspace.is_owed = False
        end = f"{self._name} has been ended by this program: by kill(), or with its block"
        self._session.ended = self._endpoint.own_end = end

    async def _discard(self) -> bool:
        """End it if it is suspended; whether it was."""
        try:
            await asyncio.to_thread(self._place.discard_suspended)
        except ConfigError:
            return False
        return True

    async def terminate(self) -> bool:
        """Another name of kill()."""
        return await self.kill()

    async def _disconnect(self) -> None:
        await asyncio.to_thread(self._session.agent.disconnect)

    async def close(self) -> None:
        """Leave it: only the connection ends, and commands that are not in the background."""
        await asyncio.to_thread(self._session.agent.close)

    async def __aenter__(self: Self) -> Self:
        return self

    async def __aexit__(self, type: object, *_: object) -> None:
        try:
            if not self._session.ended:
                await self._workspace.settle(self._session.limit_s(None), type is not None)
                if self._place.writes_volumes:  # a kill would be a power cut for their file systems
                    await self._stop(STOP_S)
        finally:
            await self.kill()
