"""Terminals in a sandbox: `sandbox.pty`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from voidbox.agent import protocol
from voidbox.agent.call import RequestFailed
from voidbox.errors import ConfigError
from voidbox.sandbox.session import Session, check_seconds
from voidbox.sdk.command_handle import AsyncCommandHandle
from voidbox.sdk.command_result import CommandResult
from voidbox.sdk.commands import Command, begin, program

ROWS, COLUMNS = 24, 80
SHELL = ("/bin/sh", "-l")
_SIZE_MAX = 0xFFFF  # struct winsize


class AsyncPty:
    """Runs programs on terminals."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def create(
        self,
        rows: int = ROWS,
        cols: int = COLUMNS,
        *,
        cmd: Command = SHELL,
        cwd: str | None = None,
        user: str | None = None,
        envs: Mapping[str, str] | None = None,
        timeout: float | None = None,
        request_timeout: float | None = None,
    ) -> AsyncPtyHandle:
        """Start a program on a new terminal: a login shell, if nothing else is said.

        It ends with this connection. Arguments and errors are those of commands.run().
        """
        timeout_s = None if timeout is None else check_seconds("timeout", timeout)
        values = program(self._session, cmd, cwd, user, envs)
        values["rows"], values["columns"] = _size(rows, cols)
        if timeout_s is not None:
            values["timeout"] = timeout_s
        values["stdin"] = True
        handle = await begin(self._session, values, cmd, timeout_s, None, None, request_timeout)
        return AsyncPtyHandle(self._session, handle)


class AsyncPtyHandle:
    """A program on a terminal. Iterate over it for what it writes, as bytes.

    As an async context manager it ends the program.
    """

    def __init__(self, session: Session, handle: AsyncCommandHandle) -> None:
        self._session = session
        self._handle = handle

    @property
    def pid(self) -> int:
        """Its process id in the guest."""
        return self._handle.pid

    async def send_input(self, data: str | bytes, request_timeout: float | None = None) -> None:
        """Type something; "\\x03" is Ctrl-C.

        Raises:
            SandboxTimeout: the program did not read for so long.
        """
        await self._handle.send_stdin(data, request_timeout)

    async def resize(self, rows: int, cols: int, request_timeout: float | None = None) -> None:
        """Give the terminal another size. One whose program has ended is no error."""
        rows, cols = _size(rows, cols)
        values = {"pid": self.pid, "rows": rows, "columns": cols}
        with contextlib.suppress(RequestFailed):
            await self._session.agent.request(
                protocol.RESIZE, values, "resize", self._session.limit_s(request_timeout)
            )

    async def read(self) -> bytes | None:
        """Return what it writes next; None at the end."""
        while (output := await self._handle.read()) is not None:
            if output.data:
                return output.data
        return None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (data := await self.read()) is not None:
            yield data

    async def wait(self, timeout: float | None = None, *, check: bool = False) -> CommandResult:
        """Wait for its end; see AsyncCommandHandle.wait()."""
        return await self._handle.wait(timeout, check=check)

    async def detach(self) -> None:
        """Leave the terminal: its program is hung up on."""
        await self._handle.detach()

    async def kill(self, *, request_timeout: float | None = None) -> bool:
        """End it at once; False if it has ended."""
        return await self._handle.kill(request_timeout=request_timeout)

    async def __aenter__(self) -> AsyncPtyHandle:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._handle.detach()


def _size(rows: int, cols: int) -> tuple[int, int]:
    for value in (rows, cols):
        if type(value) is not int or not 0 < value <= _SIZE_MAX:
            raise ConfigError(f"a terminal of {rows!r} rows and {cols!r} columns: give numbers")
    return rows, cols
