"""A guard between a loopback port and servers that stand for the world."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography")
pytest.importorskip("h2")

from tests.unit.secrets.servers import Entrance, http2_server, https_server, make_ca, trusting
from voidbox.secrets.authority import issue, make_authority
from voidbox.secrets.guard import Guard
from voidbox.secrets.spec import Secret, resolve

VALUE = "sk-ant-api03-" + "Kq3vX9Zb7LmN2pRt5WyC8dFgHjQsUaVe4T6iOo1B"
OTHER_VALUE = "ghp_" + "Zx8Cv7Bn6Mq5Wl4Ek3Rj2Th1Yg0Uf9IdOsPa"
HOST, OTHER_HOST = "localhost", "other.test"


class World:
    """What a test has: `entrance`, `guard`, `server`, and what the guest knows.

    Attributes:
        placeholder: what the guest has in the secret's place.
        context: the guest's trust: the sandbox's CA, and the world's.
        lines: of the sandbox's log.
    """

    def __init__(self, folder: Path, entrance: Entrance, server: Any, ca: Any) -> None:
        self.folder, self.entrance, self.server, self.ca = folder, entrance, server, ca
        self.lines: list[str] = []
        self.authority = make_authority([HOST, OTHER_HOST])
        self.bundle = folder / "bundle.pem"
        self.bundle.write_text(self.authority.certificate + ca.certificate)
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_text(self.authority.certificate)
        self.context = ssl.create_default_context(cadata=self.bundle.read_text())
        self.placeholder = self.other_placeholder = ""

    def begin(self, http: tuple[str, ...] = (), **options: Any) -> None:
        """Make the guard, with the secrets API_KEY for HOST and GH_TOKEN for OTHER_HOST."""
        port = options.pop("port", self.entrance.port)
        clients = options.pop("clients", None) or trusting(self.ca)
        value = options.pop("value", VALUE)
        kept, values = resolve(
            [
                Secret("API_KEY", [f"{HOST}:{port}"], value, **options),
                Secret("GH_TOKEN", [f"{OTHER_HOST}:{port}"], OTHER_VALUE),
            ]
        )
        self.placeholder, self.other_placeholder = (one.placeholder for one in kept)
        self.guard = Guard(
            kept, values, http, self.authority, str(self.folder), "box", self.lines.append, clients
        )
        self.entrance.guard, self.entrance.far_port = self.guard, self.server.port

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.entrance.port}"

    @property
    def authority_bytes(self) -> bytes:
        return f"{HOST}:{self.entrance.port}".encode()

    def audit(self) -> list[dict[str, Any]]:
        path = self.folder / "http.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_audit(self, count: int) -> list[dict[str, Any]]:
        """Return the audit log once it has so many lines."""
        self.wait(lambda: len(self.audit()) >= count)
        return self.audit()

    @staticmethod
    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "it never became true"
            time.sleep(0.01)

    def check_no_secret(self) -> None:
        """Neither the log nor the audit log has a value in it."""
        text = "\n".join(self.lines) + json.dumps(self.audit())
        assert VALUE not in text and OTHER_VALUE not in text


@pytest.fixture(scope="session")
def ca() -> Any:
    return make_ca(HOST, OTHER_HOST, "untouched.test")


@pytest.fixture
def world(tmp_path: Path, ca: Any) -> Iterator[World]:
    """With an HTTP/1.1 server; call begin()."""
    entrance = Entrance()
    with https_server(issue(ca, HOST)) as server:
        yield World(tmp_path, entrance, server, ca)
        entrance.close()


@pytest.fixture
def world2(tmp_path: Path, ca: Any) -> Iterator[World]:
    """With an HTTP/2 server; call begin()."""
    entrance = Entrance()
    with http2_server(issue(ca, HOST)) as server:
        yield World(tmp_path, entrance, server, ca)
        entrance.close()
