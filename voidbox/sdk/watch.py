"""What happens in a folder of a sandbox: `sandbox.files.watch_dir()`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import TypeAlias

from voidbox.agent import protocol
from voidbox.agent.aio import AsyncCall
from voidbox.agent.call import RequestFailed
from voidbox.agent.core import Data, Event, printable
from voidbox.errors import AgentError, SandboxTimeout
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.workspace.watching import SharedFolderWatch


class FileEvent(NamedTuple):
    """Something that happened in a watched folder.

    Attributes:
        kind: "create", "write", "chmod", "remove", "rename" (to another name, which comes as
            "create"), or "overflow": some were lost.
        name: relative to the folder.
        is_folder: whether it is about a folder.
    """

    kind: str
    name: str
    is_folder: bool


OnEvent: TypeAlias = Callable[[FileEvent], object] | Callable[[FileEvent], Awaitable[object]]


class SharedCall:
    """The watch of a folder that the host shares: its events are the host's, its end the guest's.

    Args:
        call: the guest's own watch, which says when the folder or the guest is gone.
    """

    def __init__(self, call: AsyncCall, folder: SharedFolderWatch) -> None:
        self._call = call
        self._folder = folder
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._end = asyncio.create_task(self._follow())
        self._end.add_done_callback(self._on_end)
        self._loop.add_reader(folder.fd, self._on_ready)

    async def _follow(self) -> None:
        while await self._call.next() is not None:
            pass

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._changed.set()
        if not task.cancelled():
            task.exception()  # next() raises it, if somebody asks

    def _on_ready(self) -> None:
        self._folder.read()
        self._changed.set()

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or not."""
        return self._call.is_over

    async def next(self, timeout_s: float | None = None) -> Event | Data | None:
        """As AsyncCall.next()."""
        tree = self._folder.tree
        try:
            async with asyncio.timeout(timeout_s):
                while not tree.pending and not tree.is_gone and not self._end.done():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise SandboxTimeout("nothing happened") from None
        if tree.pending:
            return Event(0, tree.pending.pop(0), 0)
        if not tree.is_gone:
            self._end.result()
        self.cancel()
        return None

    def cancel(self) -> None:
        """Watch no longer. Idempotent."""
        if self._folder.fd >= 0:
            self._loop.remove_reader(self._folder.fd)
            self._folder.close()
        if not self._call.is_over:
            self._call.cancel()


class AsyncWatch:
    """What happens in a folder: iterate over it, until close() or the folder's end."""

    def __init__(
        self, call: AsyncCall | SharedCall, path: str, on_event: OnEvent | None = None
    ) -> None:
        self._call = call
        self._path = printable(path)
        self._error: Exception | None = None
        self._is_closed = False
        self._task = asyncio.create_task(self._tell(on_event)) if on_event is not None else None

    async def _tell(self, on_event: OnEvent) -> None:
        with suppress(AgentError):  # next() says it
            while not self._is_closed and (event := await self._next(None)) is not None:
                try:
                    answer = on_event(event)
                    if inspect.isawaitable(answer):
                        await answer
                except Exception as error:
                    self._error = error
                    self._end()
                    return

    async def next(self, timeout: float | None = None) -> FileEvent | None:
        """Return the next event; None when the folder is gone, or after close().

        Raises:
            SandboxTimeout: nothing happened for so long; the watch goes on.
            AgentError: the guest or its agent is gone.
            Exception: what `on_event` raised, which has ended the watch.
        """
        if self._error is not None:
            raise self._error
        return await self._next(timeout)

    async def _next(self, timeout: float | None) -> FileEvent | None:
        try:
            event = await self._call.next(timeout)
        except SandboxTimeout:
            raise SandboxTimeout(f"{self._path}: nothing happened for {timeout:g} s") from None
        except RequestFailed as error:
            if error.code == protocol.CANCELLED:
                return None
            raise
        if event is None or isinstance(event, Data):
            return None
        values = event.values
        name = str(values.get("name", ""))
        return FileEvent(str(values.get("kind")), name, values.get("is_folder") is True)

    async def __aiter__(self) -> AsyncIterator[FileEvent]:
        while (event := await self.next()) is not None:
            yield event

    async def close(self) -> None:
        """Watch no longer. Idempotent.

        Raises:
            Exception: what `on_event` raised, which has ended the watch.
        """
        self._end()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._error is not None:
            raise self._error

    def _end(self) -> None:
        self._is_closed = True
        if not self._call.is_over:
            self._call.cancel()

    async def __aenter__(self) -> AsyncWatch:
        return self

    async def __aexit__(
        self,
        type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.close()
        except Exception:
            if error is None:  # else that one came first
                raise
