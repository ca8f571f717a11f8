"""Brings the interpreter into a guest: the bridge's files, and a Python that has ipykernel."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import time
import zipfile
from importlib import resources

from voidbox.errors import VoidboxError
from voidbox.sdk.command_handle import AsyncCommandHandle
from voidbox.sdk.command_result import CommandResult
from voidbox.sdk.commands import AsyncCommands
from voidbox.serve.errors import ApiError, ConnectError
from voidbox.serve.proxy.stream import GuestStream
from voidbox.serve.served import Served

PORT = 49999
_START_S = 120.0
_PAUSE_S_MIN, _PAUSE_S_MAX = 0.05, 0.5
_NO_KERNEL = 3
_UNPACK = (
    "import io, sys, zipfile; zipfile.ZipFile(io.BytesIO(sys.stdin.buffer.read())).extractall()"
)
_SCRIPT = f"""
for python in "$VOIDBOX_INTERPRETER" /opt/interpreter/bin/python3 python3; do
    [ -n "$python" ] && "$python" -c 'import ipykernel, jupyter_client' 2>/dev/null || continue
    cd "$(mktemp -d)" && "$python" -c '{_UNPACK}' || exit 1
    exec "$python" -m bridge {PORT} </dev/null
done
exit {_NO_KERNEL}
"""


class Interpreter:
    """The interpreter of one sandbox, which it knows by each call. Thread: the event loop's."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._session: object = None  # the one that it was seen by: after a pause there is another

    async def ready(self, served: Served) -> None:
        """Return once it answers; start it if nothing listens on its port.

        Raises:
            ApiError: the image has no ipykernel, or it does not start.
        """
        if self._session is served.session:
            return
        async with self._lock:
            session = served.session
            if not await _answers(served):
                await _start(served)
            self._session = session


async def _answers(served: Served) -> bool:
    try:
        (await GuestStream.open(served, PORT)).close()
    except ApiError as error:
        if error.more.get("port") == PORT:
            return False
        raise
    return True


async def _start(served: Served) -> None:
    try:
        user = await served.users.find("")
        handle = await AsyncCommands(served.session).run(
            _SCRIPT,
            cwd=user.home,
            user=str(user.uid),
            envs={"HOME": user.home, "USER": user.name},
            background=True,
            stdin=_packed(),
        )
    except (VoidboxError, ConnectError) as error:
        raise ApiError(500, f"the interpreter does not start: {error}") from error
    end = asyncio.ensure_future(_end_of(handle))
    try:
        await _await_port(served, end)
    finally:
        end.cancel()
        await asyncio.gather(end, return_exceptions=True)


async def _await_port(served: Served, end: asyncio.Future[CommandResult | None]) -> None:
    deadline, pause_s = time.monotonic() + _START_S, _PAUSE_S_MIN
    while not await _answers(served):
        if end.done():
            raise _why(end.result())
        if time.monotonic() > deadline:
            raise ApiError(504, f"the interpreter did not answer within {_START_S:g} s")
        await asyncio.wait([end], timeout=pause_s)
        pause_s = min(2 * pause_s, _PAUSE_S_MAX)


async def _end_of(handle: AsyncCommandHandle) -> CommandResult | None:
    with contextlib.suppress(VoidboxError):  # the sandbox has ended, say, which others tell
        return await handle.wait()
    return None


def _why(end: CommandResult | None) -> ApiError:
    if end is not None and end.exit_code == _NO_KERNEL:
        return ApiError(
            501,
            "this template has no ipykernel, which code is run by: docs/serve.md says how to build "
            "one that has",
        )
    story = "" if end is None else (end.stderr or end.stdout)[-500:]
    return ApiError(500, f"the interpreter does not start: {story}")


@functools.cache
def _packed() -> bytes:
    """Return the bridge as a zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in resources.files("voidbox.serve.interpreter.bridge").iterdir():
            if file.name.endswith(".py"):
                archive.writestr(f"bridge/{file.name}", file.read_bytes())
    return buffer.getvalue()
