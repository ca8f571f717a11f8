"""A real agent, run as an ordinary program of this machine on a Unix socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from voidbox.agent.client import AgentClient
from voidbox.agent.link import Link

ROOT = Path(__file__).parents[3]
SECRET = bytes(range(32))
USER = str(os.getuid())


def dial(path: Path) -> socket.socket:
    """Connect to the agent's socket, which appears a moment after its start."""
    deadline = time.monotonic() + 60
    while True:
        sock = socket.socket(socket.AF_UNIX)
        with suppress(FileNotFoundError, ConnectionRefusedError):
            sock.connect(str(path))
            return sock
        sock.close()
        assert time.monotonic() < deadline, "the agent did not start"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def agent_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("agent")
    (folder / "secret").write_bytes(SECRET)
    path = folder / "socket"
    command = [sys.executable, "-m", "guest_agent", "--socket", str(path)]
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [*command, "--secret-file", str(folder / "secret")], cwd=ROOT, stderr=stderr
        )
    dial(path).close()
    yield path
    process.terminate()
    assert process.wait(60) == 0
    faults = (folder / "stderr").read_text()
    assert "a fault of the agent's own" not in faults, faults


@pytest.fixture
def connect(agent_path: Path) -> Iterator[Callable[[], AgentClient]]:
    clients = []

    def connect() -> AgentClient:
        link = Link(dial(agent_path))
        link.handshake(SECRET, 20)
        clients.append(AgentClient(link))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Callable[[], AgentClient]) -> AgentClient:
    return connect()
