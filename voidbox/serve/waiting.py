"""Sandboxes of the default template that wait for clients, which need not wait for a start then."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, cast

from voidbox.errors import ConfigError, PoolFull, VoidboxError
from voidbox.pool.aio import AsyncPool
from voidbox.pool.options import complete
from voidbox.pool.stats import PoolStats
from voidbox.sandbox.state.store import Store
from voidbox.sdk import creating
from voidbox.sdk.creating import CreateOptions
from voidbox.serve.marks import Mark

# What can be said of a sandbox once it has started. With other options it is a start of its own.
_AT_HAND_OVER = frozenset(("timeout", "envs", "metadata"))

_logger = logging.getLogger("voidbox.serve")


class Waiting:
    """The sandboxes that wait. Thread: the event loop's.

    They end with the server; those that a client has been given do not.

    Args:
        count: how many.
        options: of AsyncSandbox.create(), all but those that are said at the hand-over.
    """

    def __init__(self, count: int, options: Mapping[str, Any], state_folder: str) -> None:
        self._options: dict[str, Any] = dict(options)
        self._store = Store(state_folder)
        self._pool = AsyncPool(count, warm=count, state_folder=state_folder, **options)

    async def check(self) -> None:
        """See that they can be, before anything has begun.

        Raises:
            ConfigError: the options make no sense, or there is no kernel.
        """
        given = cast(CreateOptions, self._options)
        await creating.make_record(self._store, complete(given), is_owned=True)

    async def start(self) -> None:
        """Begin to start them."""
        await self._pool.__aenter__()

    async def stop(self) -> None:
        """End those that wait still."""
        await self._pool.close()

    def stats(self) -> PoolStats:
        """Return what there is now."""
        return self._pool.stats()

    async def take(self, options: Mapping[str, Any], mark: Mark) -> str | None:
        """Return the ID of one that is the client's now; None if there is none like this.

        Args:
            options: of AsyncSandbox.create().
        """
        wanted = {name: value for name, value in options.items() if name not in _AT_HAND_OVER}
        if wanted != self._options:
            return None
        try:
            sandbox = await self._pool.acquire(timeout=0)
        except (PoolFull, ConfigError):  # the latter while the server ends
            return None
        given = mark._replace(given_at=time.time())
        metadata = {**options.get("metadata", {}), **given.to_metadata()}
        try:
            await sandbox.set_timeout(options.get("timeout"))
            await sandbox.hand_over(options.get("envs"), metadata)
            await sandbox.close()
        except BaseException as error:
            sandbox.retire()
            if not isinstance(error, VoidboxError):
                raise
            _logger.warning("a sandbox that waited cannot be given: %s", error)
            return None
        return sandbox.sandbox_id
