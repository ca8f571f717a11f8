"""The service process.Process: commands and terminals."""

from __future__ import annotations

import base64
import binascii
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from voidbox.agent import protocol
from voidbox.agent.call import RequestFailed
from voidbox.agent.client import Exit
from voidbox.sandbox.session import check_words
from voidbox.serve import bodies, telemetry
from voidbox.serve.bodies import Fields
from voidbox.serve.envd import access, wire
from voidbox.serve.envd.commands import Command, Config, quietly_kill
from voidbox.serve.envd.users import GuestUser
from voidbox.serve.envd.viewers import TooSlow
from voidbox.serve.errors import ConnectError
from voidbox.serve.served import Served

Event = dict[str, Any]
_BASH, _SHELL = "/bin/bash", "/bin/sh"
_SIZE_MAX = 0xFFFF  # struct winsize
_SIGNALS: dict[str | int, int] = {
    "SIGNAL_SIGKILL": signal.SIGKILL,
    "SIGNAL_SIGTERM": signal.SIGTERM,
    9: signal.SIGKILL,
    15: signal.SIGTERM,
}
# As Go's os.ProcessState says it, which SDKs show.
_SIGNAL_WORDS: dict[int, str] = {
    signal.SIGHUP: "hangup",
    signal.SIGINT: "interrupt",
    signal.SIGQUIT: "quit",
    signal.SIGABRT: "aborted",
    signal.SIGKILL: "killed",
    signal.SIGSEGV: "segmentation fault",
    signal.SIGPIPE: "broken pipe",
    signal.SIGALRM: "alarm clock",
    signal.SIGTERM: "terminated",
}


async def start(served: Served, request: Request) -> Response:
    """Start a command, and follow it."""
    fields = await wire.one_message(request)
    user = await access.acting_user(served, request)
    limit_s = wire.limit_s(request)
    began_at = time.monotonic()
    words = bodies.text(bodies.fields_of(fields, "process"), "cmd", "")
    span = telemetry.of(request.scope).begin("exec", sandbox=served.id, program=words[:200])
    try:
        command = await _start(served, fields, user, span.environment)
    except BaseException as error:
        span.end(error=str(error)[:500])
        raise
    command.when_over(lambda: span.end(**_how_ended(command)))
    left_s = None if limit_s is None else max(0.001, limit_s - (time.monotonic() - began_at))
    events = _events(served, command, wire.keepalive_s(request), left_s)
    return await wire.StreamResponse.begun(events)


def _how_ended(command: Command) -> dict[str, int]:
    end = command.end
    return {"pid": command.pid} if end is None else {"pid": command.pid, "status": end.status}


async def _start(
    served: Served, fields: Fields, user: GuestUser, environment: Mapping[str, str]
) -> Command:
    process = bodies.fields_of(fields, "process")
    config = Config(
        bodies.text(process, "cmd"),
        tuple(bodies.texts(process, "args")),
        bodies.text_map(process, "envs"),
        process.get("cwd") and bodies.text(process, "cwd"),
    )
    if not config.cmd:
        raise ConnectError("invalid_argument", "process.cmd: give a program")
    cwd = user.path(config.cwd or "")
    envs = {**environment, **served.session.envs, **config.envs}
    check_words("the command", (config.cmd, *config.args))
    check_words("envs", (f"{name}={value}" for name, value in envs.items()))
    values: dict[str, Any] = {
        "argv": [config.cmd, *config.args],
        "env": envs,
        "cwd": cwd,
        "user": str(user.uid),
        # Absent: an open pipe, as old SDKs want it.
        "stdin": bodies.flag(fields, "stdin", True),
    }
    if fields.get("pty") is not None:
        values["rows"], values["columns"] = _size(bodies.fields_of(fields, "pty"))
        values["stdin"] = True
    tag = bodies.text(fields, "tag", "") or None
    try:
        return await served.commands.start(config, values, tag)
    except ConnectError as error:
        if config.cmd != _BASH or error.code != "not_found":
            raise
        values["argv"][0] = _SHELL  # an image without bash
        return await served.commands.start(config, values, tag)
    except RequestFailed as error:
        if error.code in ("ENOENT", "ENOTDIR"):
            raise ConnectError("invalid_argument", f"cwd '{cwd}' does not exist") from error
        raise


def _size(pty: Fields) -> tuple[int, int]:
    size = bodies.fields_of(pty, "size")
    return (
        int(bodies.number(size, "rows", 24, 1, _SIZE_MAX)),
        int(bodies.number(size, "cols", 80, 1, _SIZE_MAX)),
    )


async def _events(
    served: Served, command: Command, keepalive_s: float, limit_s: float | None = None
) -> AsyncGenerator[Event]:
    """Yield what a command does, its process ID first."""
    viewer = command.view()
    deadline = None if limit_s is None else time.monotonic() + limit_s
    try:
        yield {"event": {"start": {"pid": command.pid}}}
        while True:
            wait_s = keepalive_s
            if deadline is not None:
                wait_s = max(0.0, min(wait_s, deadline - time.monotonic()))
            try:
                piece = await viewer.next(wait_s)
            except TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    await quietly_kill(served.commands, command.pid)
                    raise ConnectError("deadline_exceeded", "context deadline exceeded") from None
                yield {"event": {"keepalive": {}}}
                continue
            if piece is None:
                break
            yield {"event": {"data": _data(command, *piece)}}
        assert command.end is not None
        yield {"event": {"end": _end(command.end)}}
    except TooSlow:
        raise ConnectError("resource_exhausted", "nothing was read for minutes") from None
    finally:
        command.leave(viewer)


def _data(command: Command, stream: int, data: bytes) -> dict[str, str]:
    text = base64.b64encode(data).decode()
    if command.is_pty:
        return {"pty": text}
    return {"stderr" if stream == protocol.STDERR else "stdout": text}


def _end(end: Exit) -> dict[str, Any]:
    if end.signal is not None:
        word = _SIGNAL_WORDS.get(end.signal, f"signal {end.signal}")
        status = f"signal: {word}"
        return {"exitCode": -1, "exited": False, "status": status, "error": status}
    status = f"exit status {end.exit_code}"
    values = {"exitCode": end.exit_code or 0, "exited": True, "status": status}
    return values if not end.exit_code else {**values, "error": end.error or status}


async def _selected(served: Served, fields: Fields) -> Command:
    """Return the command that a request means, by its process ID or its tag."""
    selector = bodies.fields_of(fields, "process")
    if selector.get("tag") is not None:
        return served.commands.find_tag(bodies.text(selector, "tag"))
    return await served.commands.find(_pid(selector))


def _pid(selector: Fields) -> int:
    return int(bodies.number(selector, "pid", 0, 1, 1 << 31))


async def connect(served: Served, request: Request) -> Response:
    """Follow a command that runs, or ended not long ago."""
    command = await _selected(served, await wire.one_message(request))
    events = _events(served, command, wire.keepalive_s(request))
    return await wire.StreamResponse.begun(events)


async def stream_input(served: Served, request: Request) -> Response:
    """Take a stream of input for one command."""
    command: Command | None = None
    async for fields in wire.messages(request):
        if fields.get("start") is not None:
            command = await _selected(served, bodies.fields_of(fields, "start"))
        elif fields.get("data") is not None:
            if command is None:
                raise ConnectError("invalid_argument", "the first message names the process")
            data = bodies.fields_of(fields, "data")
            await command.write(_input(command, bodies.fields_of(data, "input")))

    async def nothing() -> AsyncGenerator[Event]:
        yield {}

    return wire.StreamResponse(nothing())


def _input(command: Command, fields: Fields) -> bytes:
    name = "pty" if fields.get("pty") is not None else "stdin"
    try:
        return base64.b64decode(bodies.text(fields, name, ""), validate=True)
    except (binascii.Error, ValueError):
        raise ConnectError("invalid_argument", f"input.{name} is not base64") from None


async def _send_input(served: Served, fields: Fields) -> Fields:
    command = await _selected(served, fields)
    _check_runs(command)
    await command.write(_input(command, bodies.fields_of(fields, "input")))
    return {}


def _check_runs(command: Command) -> None:
    if command.is_over:
        raise ConnectError("not_found", f"process with pid {command.pid} not found")


async def _close_stdin(served: Served, fields: Fields) -> Fields:
    command = await _selected(served, fields)
    _check_runs(command)
    if command.is_pty:
        raise ConnectError("failed_precondition", "a terminal's input cannot be closed")
    command.close_stdin()
    return {}


async def _update(served: Served, fields: Fields) -> Fields:
    command = await _selected(served, fields)
    _check_runs(command)
    if fields.get("pty") is not None:
        await served.commands.resize(command.pid, *_size(bodies.fields_of(fields, "pty")))
    return {}


async def _send_signal(served: Served, fields: Fields) -> Fields:
    wanted = fields.get("signal")
    number = _SIGNALS.get(wanted) if isinstance(wanted, str | int) else None
    if number is None:
        raise ConnectError("unimplemented", "signals other than SIGKILL and SIGTERM")
    selector = bodies.fields_of(fields, "process")
    has_tag = selector.get("tag") is not None
    pid = (await _selected(served, fields)).pid if has_tag else _pid(selector)
    await served.commands.signal(pid, number)
    return {}


async def _list(served: Served, fields: Fields) -> Fields:
    return {"processes": await served.commands.list()}


STREAMS: dict[str, Callable[[Served, Request], Awaitable[Response]]] = {
    "Start": start,
    "Connect": connect,
    "StreamInput": stream_input,
}
CALLS: dict[str, Callable[[Served, Fields], Awaitable[Fields]]] = {
    "List": _list,
    "SendInput": _send_input,
    "CloseStdin": _close_stdin,
    "Update": _update,
    "SendSignal": _send_signal,
}
