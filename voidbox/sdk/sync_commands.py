"""Commands and terminals of a sandbox, blocking; see commands and pty."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, overload

from voidbox.errors import SandboxTimeout
from voidbox.sdk.command_handle import AsyncCommandHandle, left_s
from voidbox.sdk.command_result import CommandResult, Output
from voidbox.sdk.commands import AsyncCommands, Command, Stdin
from voidbox.sdk.facade import Facade, blocking
from voidbox.sdk.loop_thread import run
from voidbox.sdk.pty import COLUMNS, ROWS, SHELL, AsyncPty, AsyncPtyHandle

# Takes a piece of output as text; called on the thread of whoever waits for the command.
OnText = Callable[[str], object]


class CommandHandle(Facade[AsyncCommandHandle]):
    """A command that runs; see AsyncCommandHandle. Its callbacks are called by wait()."""

    def __init__(
        self,
        core: AsyncCommandHandle,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
    ) -> None:
        super().__init__(core)
        self._callbacks = {"stdout": on_stdout, "stderr": on_stderr}

    @property
    def pid(self) -> int:
        """Its process id in the guest."""
        return self._core.pid

    @property
    def result(self) -> CommandResult | None:
        """How it ended; None while it runs, or while its output has not been read to the end."""
        return self._core.result

    read = blocking(AsyncCommandHandle.read)
    send_stdin = blocking(AsyncCommandHandle.send_stdin)
    close_stdin = blocking(AsyncCommandHandle.close_stdin)
    kill = blocking(AsyncCommandHandle.kill)
    detach = blocking(AsyncCommandHandle.detach)

    def __iter__(self) -> Iterator[Output]:
        while (output := self.read()) is not None:
            yield output

    def wait(self, timeout: float | None = None, *, check: bool = False) -> CommandResult:
        """Wait for the end; see AsyncCommandHandle.wait()."""
        if any(self._callbacks.values()):
            started, deadline = time.monotonic(), self._core._deadline_of(timeout)
            while True:
                try:
                    output = run(self._core._read_until(deadline))
                except SandboxTimeout:
                    break  # wait() says whose time limit it was
                if output is None:
                    break
                callback = self._callbacks[output.stream]
                if callback is not None and output.text:
                    callback(output.text)
            if timeout is not None:
                timeout = max(0.001, left_s(started + timeout))
        return run(self._core.wait(timeout, check=check))

    def __enter__(self) -> CommandHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


class Commands(Facade[AsyncCommands]):
    """Runs commands in a sandbox; see AsyncCommands."""

    list = blocking(AsyncCommands.list)
    kill = blocking(AsyncCommands.kill)

    @overload
    def run(
        self,
        cmd: Command,
        *,
        cwd: str | None = None,
        user: str | None = None,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        timeout: float | None = None,
        background: Literal[False] = False,
        stdin: Stdin = False,
        check: bool = False,
        request_timeout: float | None = None,
    ) -> CommandResult: ...

    @overload
    def run(
        self,
        cmd: Command,
        *,
        cwd: str | None = None,
        user: str | None = None,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        timeout: float | None = None,
        background: Literal[True],
        stdin: Stdin = False,
        check: bool = False,
        request_timeout: float | None = None,
    ) -> CommandHandle: ...

    def run(
        self,
        cmd: Command,
        *,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        background: bool = False,
        check: bool = False,
        **options: Any,
    ) -> CommandResult | CommandHandle:
        """Run a command; see AsyncCommands.run(). Callbacks are called on this thread."""
        if background:
            core = run(self._core.run(cmd, background=True, check=check, **options))
            return CommandHandle(core, on_stdout, on_stderr)
        if on_stdout is None and on_stderr is None:
            result: CommandResult = run(self._core.run(cmd, check=check, **options))
            return result
        with self.start(cmd, on_stdout=on_stdout, on_stderr=on_stderr, **options) as handle:
            return handle.wait(check=check)

    def start(
        self,
        cmd: Command,
        *,
        cwd: str | None = None,
        user: str | None = None,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        timeout: float | None = None,
        stdin: Stdin = False,
        request_timeout: float | None = None,
    ) -> CommandHandle:
        """Start a command to be followed; see AsyncCommands.start()."""
        core = run(
            self._core.start(
                cmd,
                cwd=cwd,
                user=user,
                envs=envs,
                timeout=timeout,
                stdin=stdin,
                request_timeout=request_timeout,
            )
        )
        return CommandHandle(core, on_stdout, on_stderr)

    def connect(
        self,
        pid: int,
        *,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        request_timeout: float | None = None,
    ) -> CommandHandle:
        """Follow a background command; see AsyncCommands.connect()."""
        core = run(self._core.connect(pid, request_timeout=request_timeout))
        return CommandHandle(core, on_stdout, on_stderr)


class PtyHandle(Facade[AsyncPtyHandle]):
    """A program on a terminal; see AsyncPtyHandle. Iterate over it for what it writes, as bytes."""

    @property
    def pid(self) -> int:
        """Its process id in the guest."""
        return self._core.pid

    send_input = blocking(AsyncPtyHandle.send_input)
    resize = blocking(AsyncPtyHandle.resize)
    read = blocking(AsyncPtyHandle.read)
    wait = blocking(AsyncPtyHandle.wait)
    kill = blocking(AsyncPtyHandle.kill)
    detach = blocking(AsyncPtyHandle.detach)

    def __iter__(self) -> Iterator[bytes]:
        while (data := self.read()) is not None:
            yield data

    def __enter__(self) -> PtyHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


class Pty(Facade[AsyncPty]):
    """Runs programs on terminals; see AsyncPty."""

    def create(
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
    ) -> PtyHandle:
        """Start a program on a new terminal; see AsyncPty.create()."""
        core = run(
            self._core.create(
                rows,
                cols,
                cmd=cmd,
                cwd=cwd,
                user=user,
                envs=envs,
                timeout=timeout,
                request_timeout=request_timeout,
            )
        )
        return PtyHandle(core)
