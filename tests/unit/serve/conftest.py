"""A server with stand-ins for sandboxes, and a bare client of it."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from voidbox.sandbox.launch import wait_ended
from voidbox.sandbox.state.store import Store
from voidbox.serve.database import Database
from voidbox.serve.keys import Keys

ROOT = Path(__file__).parents[3]
DEADLINE_S = 60.0
ENVELOPE = struct.Struct("!BI")


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class StandIn:
    """A server in a process of its own.

    Attributes:
        command: that starts it, but for its folder, address and settings.

    Args:
        prefix: of its command: what puts it into a network namespace, say.
    """

    command: tuple[str, ...] = (sys.executable, "-m", "tests.unit.serve.standin")

    def __init__(
        self, folder: Path, settings: dict[str, Any], prefix: tuple[str, ...] = ()
    ) -> None:
        self.folder = folder
        self.port = 0
        self.log = folder / "server.log"
        self._settings = settings
        self._prefix = prefix
        self._store = Store(str(folder / "state"))
        self.key = self.add_key("main", "run")
        self.start()

    @property
    def where(self) -> str:
        return str(self.folder)

    def add_key(self, name: str, *scopes: str) -> str:
        database = Database(self._store.folder)
        _, secret = Keys(database).add(name, scopes)
        database.close()
        return secret

    def remove_key(self, name: str) -> None:
        database = Database(self._store.folder)
        Keys(database).remove(name)
        database.close()

    def start(self) -> None:
        command = [
            *self._prefix,
            *(*self.command, self.where),
            *(f"127.0.0.1:{self.port}", json.dumps(self._settings)),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("voidbox serve: http"), self.log.read_text()
        self.port = int(line.rpartition(":")[2])

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self._reap()

    def stop(self) -> None:
        self.process.terminate()
        self._reap()

    def _reap(self) -> None:
        self.process.wait(DEADLINE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def close(self) -> None:
        """End it and all sandboxes that it has left."""
        if self.process.poll() is None:
            self.stop()
        for record in self._store.list():
            fd = self._store.open_owner(record.id)
            if fd is not None:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                os.close(fd)
                wait_ended(self._store, record.id, DEADLINE_S)
        self._store.close()

    def records(self) -> list[str]:
        return [record.id for record in self._store.list()]

    # As a client of it.

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def api(self, method: str, path: str, fields: object = None, key: str | None = None) -> Answer:
        body = None if fields is None else json.dumps(fields).encode()
        return self.request(method, path, body, {"X-API-KEY": self.key if key is None else key})

    def create(self, key: str | None = None, **fields: object) -> Box:
        answer = self.api("POST", "/v2/sandboxes", {"templateID": "base", **fields}, key)
        assert answer.status == 201, answer
        return Box(self, answer.json)


class Box:
    """A sandbox as its client sees it."""

    def __init__(self, server: StandIn, made: dict[str, Any]) -> None:
        self.server = server
        self.id: str = made["sandboxID"]
        self.token: str | None = made["envdAccessToken"]
        self.made = made

    def headers(self, **more: str) -> dict[str, str]:
        token = {"X-Access-Token": self.token} if self.token else {}
        return {"E2b-Sandbox-Id": self.id, "E2b-Sandbox-Port": "49983", **token, **more}

    def call(self, path: str, fields: object, **headers: str) -> Answer:
        """Make a unary call of Connect."""
        kind = {"Content-Type": "application/json"}
        body = json.dumps(fields).encode()
        return self.server.request("POST", path, body, self.headers(**kind, **headers))

    def stream(self, path: str, fields: object, **headers: str) -> list[dict[str, Any]]:
        """Make a call whose answer is a stream; return its messages, the last being its end."""
        data = json.dumps(fields).encode()
        kind = {"Content-Type": "application/connect+json"}
        body = ENVELOPE.pack(0, len(data)) + data
        answer = self.server.request("POST", path, body, self.headers(**kind, **headers))
        assert answer.status == 200, answer
        return list(messages(answer.body))

    def run(self, *argv: str, **fields: object) -> tuple[bytes, dict[str, Any]]:
        """Run a command; return its output, and its end."""
        process = {"cmd": argv[0], "args": argv[1:]}
        found = self.stream("/process.Process/Start", {"process": process, **fields})
        events = [message["event"] for message in found[:-1]]
        assert "start" in events[0] and "end" in events[-1], found
        return output_of(events), events[-1]["end"]

    def kill(self) -> None:
        with suppress(OSError):
            self.server.api("DELETE", f"/sandboxes/{self.id}")


def messages(body: bytes) -> Iterator[dict[str, Any]]:
    """Yield the messages of a stream."""
    while body:
        _, length = ENVELOPE.unpack_from(body)
        yield json.loads(body[ENVELOPE.size : ENVELOPE.size + length])
        body = body[ENVELOPE.size + length :]


def output_of(events: list[dict[str, Any]]) -> bytes:
    return b"".join(
        base64.b64decode(text) for event in events for text in event.get("data", {}).values()
    )


def wait_until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def start_thread(target: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    with tempfile.TemporaryDirectory(prefix="vbx") as folder:  # short: there are sockets in it
        server = StandIn(Path(folder), {"sandboxes_max": 12})
        try:
            yield server
        finally:
            server.close()


@pytest.fixture(scope="module")
def box(server: StandIn) -> Box:
    """A sandbox for all tests of a module that do it no harm."""
    return server.create(timeout=600, metadata={"of": "all tests"})
