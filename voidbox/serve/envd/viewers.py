"""Who follows a command: each gets all that comes from now on, at its own pace, within bounds."""

from __future__ import annotations

import asyncio
from collections import deque

from voidbox.serve.errors import SandboxGone

_WAITING_BYTES_MAX = 1 << 20  # of one viewer; then the command waits
_PATIENCE_S = 300.0  # with a viewer that takes nothing

Piece = tuple[int, bytes]  # protocol.STDOUT or STDERR, and what was written


class TooSlow(Exception):
    """A viewer has taken nothing for so long that the others no longer wait for it."""


class Viewer:
    """One of them. Thread: the event loop's."""

    def __init__(self) -> None:
        self._pieces: deque[Piece] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()  # for who reads
        self._room = asyncio.Event()  # for who writes
        self._room.set()
        self._is_over = False
        self._error: Exception | None = None

    async def put(self, piece: Piece) -> None:
        """Add what came, once there is room; a viewer that never makes any is given up."""
        if self._is_over:
            return
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._room.wait()
        except TimeoutError:
            self.end(TooSlow())
        if self._is_over:
            return
        self._pieces.append(piece)
        self._bytes += len(piece[1])
        if self._bytes >= _WAITING_BYTES_MAX:
            self._room.clear()
        self._changed.set()

    async def next(self, timeout_s: float) -> Piece | None:
        """Return what comes next; None at the end.

        Raises:
            TimeoutError: nothing came for so long.
            SandboxGone: the sandbox is.
            TooSlow: see there.
        """
        if not self._pieces and not self._is_over:
            async with asyncio.timeout(timeout_s):
                while not self._pieces and not self._is_over:
                    self._changed.clear()
                    await self._changed.wait()
        if not self._pieces:
            if self._error is not None:
                raise self._error
            return None
        piece = self._pieces.popleft()
        self._bytes -= len(piece[1])
        if self._bytes < _WAITING_BYTES_MAX:
            self._room.set()
        return piece

    def end(self, error: Exception | None = None) -> None:
        """Nothing more comes; what waits is still to be had. Idempotent."""
        if not self._is_over:
            self._is_over = True
            self._error = error
            self._room.set()
            self._changed.set()

    def lose(self) -> None:
        """The sandbox is gone."""
        self.end(SandboxGone())
