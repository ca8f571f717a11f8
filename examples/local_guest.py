"""The guest's agent without a guest: an ordinary program of this machine, on a Unix socket.

For examples and tests where no VM can run. It is the same agent, with the same protocol; but
NOTHING IS ISOLATED: what is run, runs on this machine, as whoever runs this.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from voidbox.agent import protocol
from voidbox.agent.aio import AsyncAgent
from voidbox.sandbox.session import Session
from voidbox.sdk.commands import AsyncCommands
from voidbox.sdk.files import AsyncFiles
from voidbox.sdk.sync_commands import Commands
from voidbox.sdk.sync_files import Files

_ROOT = Path(__file__).resolve().parents[1]
_START_S = 30.0
_END_S = 10.0

_logger = logging.getLogger("voidbox")


class LocalGuest:
    """An agent, its commands and its files. Thread: the caller's.

    Attributes:
        commands, files: as a Sandbox has them.
        workspace: the folder that relative paths begin in.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="voidbox-"))
        self.workspace = self._folder / "workspace"
        self.workspace.mkdir()
        secret = os.urandom(protocol.SECRET_BYTES)
        (self._folder / "secret").write_bytes(secret)
        path = self._folder / "socket"
        arguments = ("--socket", str(path), "--secret-file", str(self._folder / "secret"))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "guest_agent", *arguments],
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
        )
        self._agent = AsyncAgent(_SocketEndpoint(path, self._process), secret, log=_log)
        envs = {"HOME": str(self._folder)}
        session = Session(self._agent, "local", envs, str(self.workspace), str(os.getuid()))
        self.commands = Commands(AsyncCommands(session))
        self.files = Files(AsyncFiles(session))

    def close(self) -> None:
        """End it, and remove its folder. Idempotent."""
        self._agent.close()
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> LocalGuest:
        return self

    def __exit__(
        self,
        type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _log(line: str) -> None:
    _logger.info("local: %s", line)


class _SocketEndpoint:
    """The agent as its client sees it; see voidbox.agent.endpoint.Endpoint."""

    cid = 0  # there is no vsock

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self._path = path
        self._process = process

    def connect(self, port: int, timeout_s: float) -> socket.socket:
        """Connect; the socket appears a moment after the agent's start."""
        deadline = time.monotonic() + min(timeout_s, _START_S)
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(str(self._path))
                return sock
            except OSError:
                sock.close()
                if time.monotonic() > deadline or self.has_ended(0.01):
                    raise

    def connect_serial(self) -> None:
        """There is no serial line."""

    def has_ended(self, timeout_s: float) -> bool:
        """Wait so long for the agent's end; whether it has come."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def explain_end(self) -> str:
        """Return how it ended; "" if it runs."""
        status = self._process.poll()
        return "" if status is None else f"the local agent ended with status {status}"
