"""What a server does without being asked: it pauses sandboxes in time, and measures them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

from voidbox.errors import VoidboxError
from voidbox.serve.errors import ApiError
from voidbox.serve.served import Served

if TYPE_CHECKING:
    from voidbox.serve.registry import Registry

_SAMPLE_S = 5.0
_ENDS_S = 0.5  # how exact the server's own time limits are

_logger = logging.getLogger("voidbox.serve")


async def see_to_ends(registry: Registry) -> None:
    """Pause each sandbox whose time is over and that is not to be killed. For ever."""
    while True:
        now = time.time()
        for sandbox_id, end_at in registry.database.ends().items():
            if end_at > now:
                continue
            registry.database.set_end(sandbox_id, None)
            with contextlib.suppress(ApiError):  # it has ended
                registry.spawn(_pause_in_time(registry, registry.find(sandbox_id)))
        await asyncio.sleep(_ENDS_S)


async def _pause_in_time(registry: Registry, served: Served) -> None:
    try:
        await registry.pause(served, "its timeout")
    except ApiError:
        pass  # it is
    except VoidboxError as error:
        _logger.error("%s cannot be paused at its end, so it is killed: %s", served.id, error)
        with contextlib.suppress(ApiError):
            await registry.kill(served, "its timeout")


async def sample_all(registry: Registry) -> None:
    """Measure all that run, again and again."""
    while True:
        running = [one for one in registry if one.is_sampled and one.is_running]
        await asyncio.gather(*(one.measure() for one in running))
        await asyncio.sleep(_SAMPLE_S)
