"""A shell of a sandbox on a WebSocket: bytes both ways, its size as JSON."""

from __future__ import annotations

import contextlib
import json

from starlette.websockets import WebSocket, WebSocketDisconnect

from voidbox.errors import VoidboxError
from voidbox.serve.both_ways import until_one_ends
from voidbox.serve.dashboard.sessions import Sessions, check_origin
from voidbox.serve.envd.commands import Command, Config, quietly_kill
from voidbox.serve.errors import ApiError, ConnectError, SandboxGone
from voidbox.serve.registry import Registry
from voidbox.serve.served import Served

_POLICY_VIOLATION, _GOING_AWAY = 1008, 1001  # RFC 6455 §7.4.1
_SHELLS = ("/bin/bash", "/bin/sh")
_SIZE_MAX = 1000
_FOR_EVER_S = 1e6


class Terminal:
    """Serves them."""

    def __init__(self, registry: Registry, sessions: Sessions) -> None:
        self._registry = registry
        self._sessions = sessions

    async def serve(self, socket: WebSocket) -> None:
        """Run a shell until it ends, or the page goes."""
        key = self._sessions.key_of(socket)
        try:
            check_origin(socket)
            if key is None or not key.may("run"):
                raise ApiError(401, "enter the dashboard first")
            served = self._registry.find(socket.path_params["id"], key)
            command = await _start(served, *_size(dict(socket.query_params)))
        except (ApiError, ConnectError, VoidboxError) as error:
            await socket.close(_POLICY_VIOLATION, str(error)[:100])
            return
        self._registry.database.audit(key.name, "terminal", served.id)
        await socket.accept()
        try:
            await until_one_ends(
                _show(command, socket),
                _type(served, command, socket),
                self._registry.keys.until_removed(key),
            )
        finally:
            await quietly_kill(served.commands, command.pid)
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the page has gone
            await socket.close(_GOING_AWAY, "the shell has ended, or the key is removed")


async def _start(served: Served, rows: int, columns: int) -> Command:
    user = await served.users.find("")
    for shell in _SHELLS:
        values = {
            "argv": [shell, "-i", "-l"],
            "env": served.session.envs,
            "cwd": user.home,
            "user": str(user.uid),
            "stdin": True,
            "rows": rows,
            "columns": columns,
        }
        try:
            config = Config(shell, ("-i", "-l"), {}, user.home)
            return await served.commands.start(config, values, None)
        except ConnectError as error:
            if error.code != "not_found" or shell == _SHELLS[-1]:
                raise
    raise AssertionError("the last shell raises or returns")


def _size(fields: object) -> tuple[int, int]:
    found = []
    for name, default in (("rows", 24), ("cols", 80)):
        value = fields.get(name, default) if isinstance(fields, dict) else default
        if isinstance(value, str) and value.isdecimal():
            value = int(value[:6])
        found.append(value if isinstance(value, int) and 0 < value <= _SIZE_MAX else default)
    return found[0], found[1]


async def _show(command: Command, socket: WebSocket) -> None:
    viewer = command.view()
    try:
        with contextlib.suppress(SandboxGone):
            while (piece := await viewer.next(_FOR_EVER_S)) is not None:
                await socket.send_bytes(piece[1])
    finally:
        command.leave(viewer)


async def _type(served: Served, command: Command, socket: WebSocket) -> None:
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        if message.get("bytes"):
            await command.write(message["bytes"])
        elif message.get("text"):
            with contextlib.suppress(ValueError, RecursionError):
                size = _size(json.loads(message["text"]))
                await served.commands.resize(command.pid, *size)
