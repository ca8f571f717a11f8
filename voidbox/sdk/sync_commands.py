"""Commands and terminals of a sandbox, blocking; see commands and pty."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Concatenate, Literal, ParamSpec, Unpack, overload

from voidbox.errors import SandboxTimeout
from voidbox.sdk.command_handle import AsyncCommandHandle, OnText, deadline_of, left_s
from voidbox.sdk.command_result import CommandResult, Output
from voidbox.sdk.commands import AsyncCommands, Command, RunOptions, one_input
from voidbox.sdk.facade import Facade, blocking, blocking_as, documented_by
from voidbox.sdk.loop_thread import run
from voidbox.sdk.pty import AsyncPty, AsyncPtyHandle

P = ParamSpec("P")


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
            given_up_at = deadline_of(timeout)
            while True:
                deadline = self._core._first_of(given_up_at)
                try:
                    output = run(self._core._read_until(deadline))
                except SandboxTimeout:
                    if deadline != given_up_at and self._core._is_to_go_on():
                        continue
                    break  # wait() says whose time limit it was
                if output is None:
                    break
                callback = self._callbacks[output.stream]
                if callback is not None and output.text:
                    callback(output.text)
            if given_up_at is not None:
                timeout = max(0.001, left_s(given_up_at))
        return run(self._core.wait(timeout, check=check))

    def __enter__(self) -> CommandHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


def _following(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, AsyncCommandHandle]],
) -> Callable[Concatenate[Facade[Any], P], CommandHandle]:
    """Return a method whose handle calls the callbacks, on the thread that waits."""
    name = method.__name__

    @functools.wraps(method)
    def call(self: Facade[Any], /, *arguments: P.args, **options: P.kwargs) -> CommandHandle:
        others: dict[str, Any] = {**options}
        callbacks = others.pop("on_stdout", None), others.pop("on_stderr", None)
        return CommandHandle(run(getattr(self._core, name)(*arguments, **others)), *callbacks)

    return call


class Commands(Facade[AsyncCommands]):
    """Runs commands in a sandbox; see AsyncCommands."""

    list = blocking(AsyncCommands.list)
    kill = blocking(AsyncCommands.kill)

    @overload
    def run(
        self, cmd: Command, *, background: Literal[False] = False, **options: Unpack[RunOptions]
    ) -> CommandResult: ...

    @overload
    def run(
        self, cmd: Command, *, background: Literal[True], **options: Unpack[RunOptions]
    ) -> CommandHandle: ...

    @documented_by(AsyncCommands.run)  # but the callbacks are called on this thread
    def run(
        self, cmd: Command, *, background: bool = False, **options: Unpack[RunOptions]
    ) -> CommandResult | CommandHandle:
        on_stdout, on_stderr = options.pop("on_stdout", None), options.pop("on_stderr", None)
        if background:
            core = run(self._core.run(cmd, background=True, **options))
            return CommandHandle(core, on_stdout, on_stderr)
        if on_stdout is None and on_stderr is None:
            return run(self._core.run(cmd, **options))
        options["stdin"] = one_input(options.get("stdin"), options.pop("input", None))
        check = options.pop("check", False)
        core = run(self._core.start(cmd, **options))  # type: ignore[misc]
        with CommandHandle(core, on_stdout, on_stderr) as handle:
            return handle.wait(check=check)

    start = _following(AsyncCommands.start)
    connect = _following(AsyncCommands.connect)


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

    create = blocking_as(PtyHandle, AsyncPty.create)
