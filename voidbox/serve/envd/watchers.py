"""Watches that clients ask again and again for what has happened, instead of being told."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from voidbox.errors import AgentError
from voidbox.sdk.watch import AsyncWatch, FileEvent
from voidbox.serve.errors import ConnectError

_WATCHERS_MAX = 256  # of one sandbox
_EVENTS_MAX = 10_000  # that nobody has asked for

Describe = Callable[[FileEvent], Awaitable[dict[str, Any]]]


class _Watcher:
    def __init__(self, watch: AsyncWatch, describe: Describe) -> None:
        self.watch = watch
        self.events: list[dict[str, Any]] = []
        self.error: ConnectError | None = None
        self.task = asyncio.create_task(self._collect(describe))

    async def _collect(self, describe: Describe) -> None:
        try:
            async for event in self.watch:
                if len(self.events) >= _EVENTS_MAX:
                    raise ConnectError(
                        "resource_exhausted", f"more than {_EVENTS_MAX} events wait: watch anew"
                    )
                self.events.append(await describe(event))
        except ConnectError as error:
            self.error = error
        except AgentError as error:
            self.error = ConnectError("unavailable", str(error))


class Watchers:
    """Those of one sandbox."""

    def __init__(self) -> None:
        self._watchers: dict[str, _Watcher] = {}

    async def add(self, watch: AsyncWatch, describe: Describe) -> str:
        """Collect what a watch tells; return the watcher's ID.

        Raises:
            ConnectError: there are too many.
        """
        if len(self._watchers) >= _WATCHERS_MAX:
            await watch.close()
            raise ConnectError(
                "resource_exhausted", f"{_WATCHERS_MAX} watchers: remove those of no use"
            )
        watcher_id = f"w{secrets.token_hex(8)}"
        self._watchers[watcher_id] = _Watcher(watch, describe)
        return watcher_id

    def drain(self, watcher_id: str) -> list[dict[str, Any]]:
        """Return what has happened since this was last asked.

        Raises:
            ConnectError: there is no such watcher, or it has failed.
        """
        watcher = self._find(watcher_id)
        events, watcher.events = watcher.events, []
        if not events and watcher.error is not None:
            raise watcher.error
        return events

    async def remove(self, watcher_id: str) -> None:
        """Watch no longer.

        Raises:
            ConnectError: there is no such watcher.
        """
        watcher = self._find(watcher_id)
        del self._watchers[watcher_id]
        watcher.task.cancel()
        with contextlib.suppress(AgentError):
            await watcher.watch.close()

    def _find(self, watcher_id: str) -> _Watcher:
        watcher = self._watchers.get(watcher_id)
        if watcher is None:
            raise ConnectError("not_found", f"watcher with id {watcher_id[:40]} not found")
        return watcher

    def close(self) -> None:
        """Remove all: their sandbox is gone."""
        for watcher in self._watchers.values():
            watcher.task.cancel()
        self._watchers.clear()
