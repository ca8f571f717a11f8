"""Commands in a sandbox: `sandbox.commands`."""

from __future__ import annotations

import asyncio
import shlex
import signal as signals
from collections.abc import Mapping, Sequence
from typing import IO, Any, Literal, TypedDict, Unpack, overload

from voidbox.agent import protocol
from voidbox.agent.client import Exit, parse_exit
from voidbox.agent.core import Data, printable
from voidbox.errors import AgentError, ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.session import Session, check_seconds, check_words
from voidbox.sdk.command_handle import AsyncCommandHandle, OnText, send_signal, to_bytes
from voidbox.sdk.command_result import CommandResult

_WHAT_CHARACTERS_MAX = 80

# A line for /bin/sh, or a program and its arguments.
Command = str | Sequence[str]
# Nothing to read; all that there is to read, or a file that has it; or True: send_stdin() will
# bring it.
Stdin = bool | str | bytes | IO[str] | IO[bytes] | None


class RunOptions(TypedDict, total=False):
    """What commands.run() and exec() take, in both their forms; see AsyncCommands.run()."""

    cwd: str | None
    user: str | None
    envs: Mapping[str, str] | None
    on_stdout: OnText | None
    on_stderr: OnText | None
    timeout: float | None
    stdin: Stdin
    input: str | bytes | None
    check: bool
    request_timeout: float | None


class ExecOptions(RunOptions, total=False):
    """What exec() takes."""

    workdir: str | None


class CommandInfo(NamedTuple):
    """A command that the agent started.

    Attributes:
        pid: its process id in the guest.
        argv: the program and its arguments.
        cwd: its folder.
        user: whom it runs as.
        started_at: in seconds since 1970, by the guest's clock.
        exit_code: as in CommandResult; None while it runs.
    """

    pid: int
    argv: tuple[str, ...]
    cwd: str
    user: str
    started_at: float
    exit_code: int | None

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.exit_code is None


class AsyncCommands:
    """Runs commands in a sandbox.

    Three time limits, never to be confused: `timeout` is the command's own, after which the guest
    ends it; `request_timeout` is how long its agent may take to start it; the sandbox's is given
    to AsyncSandbox.create().
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    @overload
    async def run(
        self, cmd: Command, *, background: Literal[False] = False, **options: Unpack[RunOptions]
    ) -> CommandResult: ...

    @overload
    async def run(
        self, cmd: Command, *, background: Literal[True], **options: Unpack[RunOptions]
    ) -> AsyncCommandHandle: ...

    async def run(
        self,
        cmd: Command,
        *,
        cwd: str | None = None,
        user: str | None = None,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        timeout: float | None = None,
        background: bool = False,
        stdin: Stdin = False,
        input: str | bytes | None = None,
        check: bool = False,
        request_timeout: float | None = None,
    ) -> CommandResult | AsyncCommandHandle:
        """Run a command; return how it ended, or with `background` a handle on it at once.

        A background command outlives this connection: connect() finds it again. It never waits
        for anybody to read its output, of which the guest keeps the last 256 KiB. For a handle
        that gets every byte, see start().

        Args:
            cmd: a line for /bin/sh, or a list: a program and its arguments.
            cwd: the sandbox's workdir, else /workspace, by default.
            user: a name, a uid or uid:gid; the sandbox's user by default.
            envs: variables, beside those of the sandbox.
            on_stdout, on_stderr: called with text as it comes; may be coroutine functions.
            timeout: the command is ended after so many seconds.
            stdin: text or bytes to read, or an open file, which is read to its end before; True if
                send_stdin() brings it.
            input: text or bytes to read, as subprocess.run() has it.
            check: raise if the exit code is not 0.
            request_timeout: how long the agent may take to start it.
        Raises:
            CommandFailed: see check.
            CommandTimeout: see timeout.
            RequestFailed: no such folder or user.
            ConfigError: an argument makes no sense, or the sandbox is paused.
            AgentError: the guest or its agent is gone.
            SandboxTimeout: see request_timeout.
        """
        stdin = one_input(stdin, input)
        if stdin is True and not background:
            raise ConfigError("stdin=True: nobody could write it; give background=True or start()")
        if check and background:
            raise ConfigError("check=True: a background command's is for wait()")
        handle = await self._start(
            cmd, cwd, user, envs, on_stdout, on_stderr, timeout, background, stdin, request_timeout
        )
        if background:
            return handle
        async with handle:
            return await handle.wait(check=check)

    async def start(
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
    ) -> AsyncCommandHandle:
        """Start a command to be followed: iterate over the handle for its output.

        Every byte arrives: the command waits while nobody reads. It ends with this connection.
        Arguments and errors are those of run().
        """
        return await self._start(
            cmd, cwd, user, envs, on_stdout, on_stderr, timeout, False, stdin, request_timeout
        )

    async def _start(
        self,
        cmd: Command,
        cwd: str | None,
        user: str | None,
        envs: Mapping[str, str] | None,
        on_stdout: OnText | None,
        on_stderr: OnText | None,
        timeout: float | None,
        background: bool,
        stdin: Stdin,
        request_timeout: float | None,
    ) -> AsyncCommandHandle:
        timeout_s = None if timeout is None else check_seconds("timeout", timeout)
        values = program(self._session, cmd, cwd, user, envs)
        content = await _content(stdin)
        if timeout_s is not None:
            values["timeout"] = timeout_s
        if background:
            values["background"] = True
        if stdin is True or content is not None:
            values["stdin"] = True
        handle = await begin(
            self._session, values, cmd, timeout_s, on_stdout, on_stderr, request_timeout
        )
        if content is not None:
            handle._feed(content)
        return handle

    async def list(self, request_timeout: float | None = None) -> list[CommandInfo]:
        """List the commands that run, and background ones that ended not long ago."""
        answer = await self._session.agent.request(
            protocol.PROCESSES, {}, "commands.list", self._session.limit_s(request_timeout)
        )
        found = answer.get("processes")
        if not isinstance(found, list):
            raise AgentError("the guest's agent gave no list of processes")
        return [_info(item) for item in found]

    async def connect(
        self,
        pid: int,
        *,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        request_timeout: float | None = None,
    ) -> AsyncCommandHandle:
        """Follow a background command: its last output, what comes, and its end.

        Raises:
            RequestFailed: there is no such command (ESRCH), or it is not in the background (EBUSY).
        """
        limit_s = self._session.limit_s(request_timeout)
        what = f"command {pid}"
        call = await self._session.agent.call(protocol.ATTACH, {"pid": pid}, what, limit_s)
        return AsyncCommandHandle(
            self._session,
            call,
            what,
            pid=pid,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            is_background=True,
        )

    async def kill(
        self, pid: int, signal: int = signals.SIGKILL, *, request_timeout: float | None = None
    ) -> bool:
        """Send a signal to a command and its process group; False if there is none."""
        return await send_signal(self._session, pid, signal, request_timeout)


def one_input(stdin: Stdin, input: str | bytes | None) -> Stdin:
    """Return what a command is to read, given in one of two ways.

    Raises:
        ConfigError: it is given in both, or is neither text nor bytes.
    """
    if input is None:
        return stdin
    if stdin is not False and stdin is not None:
        raise ConfigError("give stdin or input, not both")
    return to_bytes(input)


async def _content(stdin: Stdin) -> bytes | None:
    """Return what a command is to read; None if that is not known yet, or nothing.

    Raises:
        ConfigError: it cannot be read.
    """
    if stdin is None or isinstance(stdin, bool):
        return None
    if isinstance(stdin, str | bytes | bytearray | memoryview):
        return to_bytes(stdin)
    read = getattr(stdin, "read", None)
    if not callable(read):
        raise ConfigError(f"stdin={stdin!r}: give text, bytes, an open file, True or False")
    try:
        return to_bytes(await asyncio.to_thread(read))
    except (OSError, ValueError) as error:
        raise ConfigError(f"stdin: the file cannot be read: {error}") from error


def program(
    session: Session,
    cmd: Command,
    cwd: str | None,
    user: str | None,
    envs: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Return the map of an EXEC.

    Raises:
        ConfigError: that is no command.
    """
    values: dict[str, Any] = session.values(user)
    if isinstance(cmd, str):
        values["shell"] = cmd
    elif isinstance(cmd, Sequence) and cmd and all(isinstance(word, str) for word in cmd):
        values["argv"] = list(cmd)
    else:
        raise ConfigError(f"{cmd!r} is no command: give a string, or a list of strings")
    if cwd is not None or session.workdir is not None:
        values["cwd"] = session.path(cwd or session.workdir or "")
    all_envs = {**session.envs, **(envs or {})}
    if all_envs:
        values["env"] = all_envs
    check_words("the command", [cmd] if isinstance(cmd, str) else cmd)
    check_words("envs", (f"{name}={value}" for name, value in all_envs.items()))
    return values


async def begin(
    session: Session,
    values: dict[str, Any],
    cmd: Command,
    timeout_s: float | None,
    on_stdout: OnText | None,
    on_stderr: OnText | None,
    request_timeout: float | None,
) -> AsyncCommandHandle:
    """Start a command, and return once it has begun, or could not be executed."""
    words = cmd if isinstance(cmd, str) else shlex.join(cmd)
    what = printable(words[:_WHAT_CHARACTERS_MAX])
    limit_s = session.limit_s(request_timeout)
    call = await session.agent.call(protocol.EXEC, values, what, limit_s)
    pid: int | None = None
    end: Exit | None = None
    try:
        first = await call.next(limit_s)
        if first is None:
            end = parse_exit(await call.result())
        else:
            found = None if isinstance(first, Data) else first.values.get("pid")
            if not isinstance(found, int):
                raise AgentError("the guest's agent gave no process id")
            pid = found
    except BaseException:
        call.cancel()
        raise
    return AsyncCommandHandle(
        session,
        call,
        what,
        pid=pid,
        timeout_s=timeout_s,
        on_stdout=on_stdout,
        on_stderr=on_stderr,
        end=end,
        is_background=values.get("background") is True,
    )


def _info(item: object) -> CommandInfo:
    if not isinstance(item, dict):
        raise AgentError("the guest's agent gave no list of processes")
    argv, end = item.get("argv"), item.get("end")
    pid, started_at = item.get("pid"), item.get("started_at")
    if not isinstance(pid, int) or not isinstance(argv, list):
        raise AgentError("the guest's agent described no process")
    return CommandInfo(
        pid,
        tuple(printable(str(word)) for word in argv),
        printable(str(item.get("cwd"))),
        printable(str(item.get("user"))),
        float(started_at) if isinstance(started_at, int | float) else 0.0,
        parse_exit(end).status if isinstance(end, dict) else None,
    )
