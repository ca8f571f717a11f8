"""Commands and files of a sandbox, over a real agent that runs as an ordinary program."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.unit.agent.conftest import SECRET, agent_path
from tests.unit.sandbox.owned import Sandboxes
from voidbox.agent.aio import AsyncAgent
from voidbox.sandbox.session import Session
from voidbox.sdk.commands import AsyncCommands
from voidbox.sdk.files import AsyncFiles
from voidbox.sdk.pty import AsyncPty

__all__ = ["agent_path"]


def in_event_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test's coroutine."""

    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        async def main() -> None:
            async with asyncio.timeout(60):
                await test(*arguments, **fixtures)

        asyncio.run(main())

    return run


class CutEndpoint:
    """Reaches the agent; its connections can be cut, and the guest be said to be dead."""

    cid = 3

    def __init__(self, path: Path) -> None:
        self.connections: list[socket.socket] = []
        self.death = ""
        self._path = path

    def connect(self, port: int, timeout_s: float) -> socket.socket:
        if self.death:
            raise ConnectionRefusedError
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(self._path))
            self.connections.append(sock.dup())
        except BaseException:
            sock.close()
            raise
        return sock

    def connect_serial(self) -> None:
        return None

    def has_ended(self, timeout_s: float) -> bool:
        if not self.death:
            time.sleep(timeout_s)
        return bool(self.death)

    def explain_end(self) -> str:
        return self.death

    def cut(self, death: str = "") -> None:
        """Break the connections there are; with `death` the guest has ended so."""
        self.death = death
        for sock in self.connections:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for sock in self.connections:
            sock.close()


class Box:
    """What AsyncSandbox has, without a machine."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.endpoint = CutEndpoint(path)
        self.lines: list[str] = []
        self.agent = AsyncAgent(self.endpoint, SECRET, 20, self.lines.append)
        self.session = Session(
            self.agent, "box", {"FROM_SANDBOX": "1"}, str(folder), str(os.getuid())
        )
        self.commands = AsyncCommands(self.session)
        self.files = AsyncFiles(self.session)
        self.pty = AsyncPty(self.session)

    def close(self) -> None:
        self.agent.close()
        self.endpoint.close()


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """The folder that relative paths of the guest begin in."""
    path = tmp_path / "guest"
    path.mkdir()
    return path


@pytest.fixture
def box(agent_path: Path, guest: Path) -> Iterator[Box]:
    box = Box(agent_path, guest)
    yield box
    box.close()


@pytest.fixture
def sandboxes() -> Iterator[Sandboxes]:
    with tempfile.TemporaryDirectory() as folder:  # pytest's are too long for sockets
        made = Sandboxes(Path(folder))
        yield made
        made.close()
