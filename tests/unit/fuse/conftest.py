from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.fuse.client import Client
from voidbox.fuse.server import Server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The shared folder; beside it lies a secret."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("the secret")
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    server = Server(str(folder))
    yield server
    server.close()


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server)
