"""A command that runs, as its caller holds it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal as signals
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

from voidbox.agent import protocol
from voidbox.agent.aio import AsyncCall
from voidbox.agent.call import RequestFailed
from voidbox.agent.client import Exit, parse_exit
from voidbox.agent.core import Data
from voidbox.errors import AgentError, ConfigError, SandboxTimeout
from voidbox.sandbox.session import Session, check_seconds
from voidbox.sdk.command_result import OUTPUT_BYTES_KEPT, Collector, CommandResult, Output

# Takes a piece of output as text.
OnText: TypeAlias = Callable[[str], object] | Callable[[str], Awaitable[object]]

# The guest's agent ends a command at its time limit; it is given so long for that.
_TIMEOUT_GRACE_S = 10.0
_NO_LIMIT_S = 1e8


class AsyncCommandHandle:
    """A command that runs: a background one, or one that start() began.

    Iterate over it for its output. Whoever reads, in whatever way, gets each piece once; wait()
    has all of it in its result. As an async context manager it stops following the command: a
    background one goes on, another one is ended. A background command's handle that is dropped
    stops following it, too.
    """

    def __init__(
        self,
        session: Session,
        call: AsyncCall,
        what: str,
        *,
        pid: int | None = None,
        timeout_s: float | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        end: Exit | None = None,
        is_background: bool = False,
    ) -> None:
        self._session = session
        self._call = call
        self._what = what
        self._pid = pid
        self._timeout_s = timeout_s
        self._paused_s = session.paused_s
        self._deadline = (
            None if timeout_s is None else time.monotonic() + timeout_s + _TIMEOUT_GRACE_S
        )
        self._callbacks = {"stdout": on_stdout, "stderr": on_stderr}
        self._collector = Collector(session.output_bytes_kept or OUTPUT_BYTES_KEPT)
        self._reading = asyncio.Lock()
        self._result = self._collector.result(end) if end is not None else None
        self._rest: list[Output] = []  # of output, that comes after the result
        self._feeder: asyncio.Task[None] | None = None
        self._pump: asyncio.Task[None] | None = None
        if on_stdout is not None or on_stderr is not None:
            self._pump = asyncio.create_task(self._read_all())
        if is_background:  # it goes on, but takes no place among the requests
            weakref.finalize(self, call.drop).atexit = False

    @property
    def pid(self) -> int:
        """Its process id in the guest.

        Raises:
            AgentError: it could not be executed; wait() says why.
        """
        if self._pid is None:
            error = self._result.error if self._result is not None else ""
            raise AgentError(f"{self._what}: {error or 'it was not started'}")
        return self._pid

    @property
    def result(self) -> CommandResult | None:
        """How it ended; None while it runs, or while its output has not been read to the end."""
        return self._result

    def _first_of(self, given_up_at: float | None) -> float | None:
        """Return until when to wait: until then, or until the command's own time limit."""
        limits = (limit for limit in (self._deadline, given_up_at) if limit is not None)
        return min(limits, default=None)

    def _is_to_go_on(self) -> bool:
        """Whether its time limit is not over: pauses of the sandbox are no part of it."""
        self._session.is_paused()
        paused_s = self._session.paused_s - self._paused_s
        if self._deadline is None or paused_s <= 0:
            return False
        self._paused_s = self._session.paused_s
        self._deadline += paused_s
        return left_s(self._deadline) > 0

    async def read(self, timeout: float | None = None) -> Output | None:
        """Return the next piece of output; None at the end.

        Args:
            timeout: how long to wait; the command is not touched.
        Raises:
            AgentError: the guest or its agent is gone.
            SandboxTimeout: nothing came for so many seconds.
        """
        return await self._read_until(deadline_of(timeout))

    async def _read_until(self, deadline: float | None) -> Output | None:
        try:
            async with asyncio.timeout(None if deadline is None else left_s(deadline)):
                return await self._read()
        except TimeoutError:
            raise SandboxTimeout(f"{self._what}: it still runs") from None

    async def _read(self) -> Output | None:
        async with self._reading:
            while self._result is None:
                event = await self._call.next()
                if event is None:
                    end = parse_exit(await self._call.result())
                    self._rest = self._collector.flush()
                    self._result = self._collector.result(end)
                elif isinstance(event, Data):
                    output = self._collector.add(event.stream, event.data)
                    await self._tell(output)
                    return output
                else:
                    lost = event.values.get("lost")
                    self._collector.lost_parts += lost if isinstance(lost, int) else 0
            if not self._rest:
                return None
            output = self._rest.pop()
            await self._tell(output)
            return output

    async def _tell(self, output: Output) -> None:
        callback = self._callbacks[output.stream]
        if callback is not None and output.text:
            answer = callback(output.text)
            if inspect.isawaitable(answer):
                await answer

    async def _read_all(self) -> None:
        while await self._read() is not None:
            pass

    async def __aiter__(self) -> AsyncIterator[Output]:
        while (output := await self._read()) is not None:
            yield output

    async def wait(self, timeout: float | None = None, *, check: bool = False) -> CommandResult:
        """Wait for the end; return how it ended.

        Args:
            timeout: how long to wait; the command is not touched.
            check: raise if its exit code is not 0.
        Raises:
            SandboxTimeout: it has not ended after `timeout` seconds.
            CommandTimeout: its own time limit ended it.
            CommandFailed: see check.
            AgentError: the guest or its agent is gone.
        """
        given_up_at = deadline_of(timeout)
        while self._result is None:
            deadline = self._first_of(given_up_at)
            try:
                async with asyncio.timeout(None if deadline is None else left_s(deadline)):
                    if self._pump is not None:
                        await asyncio.shield(self._pump)
                    await self._read_all()
            except TimeoutError:
                if deadline == given_up_at:
                    raise SandboxTimeout(
                        f"{self._what}: it still runs after {timeout:g} s of waiting"
                    ) from None
                if self._is_to_go_on():
                    continue
                # The guest should have ended it: so it is not to be relied on.
                self._call.cancel()
                self._result = self._collector.result(Exit(None, signals.SIGKILL, True, ""))
        assert self._result is not None
        self._result.check_time(self._what, self._timeout_s)
        if check:
            self._result.check(self._what)
        return self._result

    async def send_stdin(self, data: str | bytes, request_timeout: float | None = None) -> None:
        """Write to its standard input; start it with stdin=True for this.

        Raises:
            SandboxTimeout: it did not read for so long.
        """
        limit_s = self._session.seconds(request_timeout)
        view = memoryview(to_bytes(data))
        for start in range(0, len(view), protocol.CHUNK_BYTES):
            await self._call.write(view[start : start + protocol.CHUNK_BYTES], limit_s)

    def _feed(self, data: bytes) -> None:
        """Have this written to its standard input, and nothing after it, while it is read from."""

        async def write() -> None:
            # The command may be as slow to read as it likes; once it has ended nothing is written.
            try:
                with contextlib.suppress(AgentError):  # whoever reads its output has that error too
                    await self.send_stdin(data, request_timeout=_NO_LIMIT_S)
            finally:
                self._call.end_input()

        self._feeder = asyncio.create_task(write())

    async def close_stdin(self) -> None:
        """Say that no more input follows; on a terminal, type the end-of-file character."""
        self._call.end_input()

    async def kill(
        self, signal: int = signals.SIGKILL, *, request_timeout: float | None = None
    ) -> bool:
        """Send a signal to it and its process group; False if it has ended."""
        if self._result is not None:
            return False
        return await send_signal(self._session, self.pid, signal, request_timeout)

    async def detach(self) -> None:
        """Follow it no longer: a background command goes on, another one is ended."""
        for task in (self._pump, self._feeder):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait([task])
        if not self._call.is_over:
            self._call.cancel()

    async def __aenter__(self) -> AsyncCommandHandle:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.detach()


def deadline_of(timeout: float | None) -> float | None:
    """Return when so many seconds will be over."""
    return None if timeout is None else time.monotonic() + check_seconds("timeout", timeout)


def left_s(deadline: float) -> float:
    """Return how long it is until then; not less than no time."""
    return max(0.0, deadline - time.monotonic())


def to_bytes(data: object) -> bytes:
    """Return input for a command: bytes, or text in UTF-8.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"input that is no text: {error}; give bytes") from None
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    raise ConfigError(f"input of type {type(data).__name__}: give text or bytes")


async def send_signal(
    session: Session, pid: int, signal: int, request_timeout: float | None
) -> bool:
    """Send a signal to a command and its process group; False if there is none."""
    values = {"pid": pid, "signal": int(signal)}
    try:
        answer = await session.agent.request(
            protocol.KILL, values, "kill", session.limit_s(request_timeout)
        )
    except RequestFailed as error:
        if error.code == "ESRCH":
            return False
        raise
    return answer.get("is_running") is True
