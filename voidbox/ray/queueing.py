"""Rollouts that wait for a node: each goes to one only when it has room for it.

Who is sent at once to a node that is full waits there, whatever comes free elsewhere, or is added.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from voidbox.ray.members import Member

AHEAD = 2  # times as many as a node has sandboxes: some wait there, so that none of them idles
_LOOK_S = 0.5  # nodes come, and go, without a word


class Queue:
    """First come, first served. Thread: the event loop's.

    Args:
        choose: returns one of the nodes that are given.
        alive: returns the nodes; raises what all are told, if there is none and none will come.
    """

    def __init__(
        self, choose: Callable[[list[Member]], Member], alive: Callable[[], list[Member]]
    ) -> None:
        self._choose, self._alive = choose, alive
        self._waiting: deque[asyncio.Future[Member]] = deque()
        self._serving: asyncio.Task[None] | None = None
        self._is_room = asyncio.Event()

    async def enter(self) -> Member:
        """Return a node that has room; the caller counts as asking it, until leave()."""
        future: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.leave(future.result())
            raise

    def leave(self, member: Member) -> None:
        """Ask it no longer."""
        member.asked -= 1
        self._is_room.set()

    def close(self, error: Exception) -> None:
        """Have all that wait fail. Idempotent."""
        if self._serving is not None:
            self._serving.cancel()
            self._serving = None
        for future in self._waiting:
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()

    async def _serve(self) -> None:
        while self._waiting:
            try:
                self._serve_some()
            except Exception as error:
                self._serving = None
                self.close(error)
                return
            self._is_room.clear()
            if self._waiting:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._is_room.wait(), _LOOK_S)
        self._serving = None

    def _serve_some(self) -> None:
        roomy = [one for one in self._alive() if one.asked < AHEAD * one.size]
        while self._waiting and roomy:
            future = self._waiting.popleft()
            if not future.done():
                member = self._choose(roomy)
                member.asked += 1
                future.set_result(member)
                if member.asked >= AHEAD * member.size:
                    roomy.remove(member)
