"""Fifty sandboxes and two hundred clients at once, some of whom vanish or read nothing."""

from __future__ import annotations

import http.client
import json
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.serve.conftest import DEADLINE_S, ENVELOPE, Box, StandIn, wait_until

pytestmark = pytest.mark.slow

_BOXES, _CLIENTS, _VANISHING = 50, 200, 20
_STARTS = 8
# Of the server alone: what 220 streams with full buffers may take, and a good deal more.
_MEMORY_BYTES_MAX = 400 << 20


def resident_bytes(server: StandIn) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def begin(box: Box, line: str) -> http.client.HTTPConnection:
    """Start a command, and read nothing of it."""
    connection = http.client.HTTPConnection("127.0.0.1", box.server.port, timeout=DEADLINE_S)
    fields = {"process": {"cmd": "/bin/sh", "args": ["-c", line]}, "stdin": False}
    data = json.dumps(fields).encode()
    headers = box.headers(**{"Content-Type": "application/connect+json"})
    connection.request(
        "POST", "/process.Process/Start", ENVELOPE.pack(0, len(data)) + data, headers
    )
    return connection


def test_fifty_sandboxes_and_two_hundred_clients(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="vbx") as folder:
        server = StandIn(Path(folder), {"sandboxes_max": _BOXES})
        try:
            _use(server, tmp_path)
        finally:
            server.close()


def _use(server: StandIn, tmp_path: Path) -> None:
    with ThreadPoolExecutor(_STARTS) as starts:
        boxes = list(starts.map(lambda _: server.create(timeout=3600), range(_BOXES)))
    assert len({box.id for box in boxes}) == _BOXES
    refused = server.api("POST", "/v2/sandboxes", {"templateID": "base"})
    assert refused.status == 503 and refused.headers["should-retry"] == "false"

    # Some want more than they read, and some are gone before there is any output.
    slow = [begin(boxes[number], "head -c 20000000 /dev/zero") for number in range(5)]
    vanished = [
        begin(boxes[number], f"sleep 1; echo {number} > {tmp_path}/{number}")
        for number in range(_VANISHING)
    ]
    for connection in vanished:
        answer = connection.getresponse()  # the command has begun
        assert answer.status == 200
        answer.close()
        connection.close()

    problems: list[object] = []

    def client(number: int) -> None:
        try:
            line = f"echo {number}; echo $E2B_SANDBOX_ID"
            output, end = boxes[number % _BOXES].run("/bin/sh", "-c", line)
            assert output == f"{number}\n{boxes[number % _BOXES].id}\n".encode(), output
            assert end["exitCode"] == 0
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5 * DEADLINE_S)
    assert not problems, problems[:3]
    # A command goes on without the client that began it.
    wait_until(lambda: len(list(tmp_path.iterdir())) == _VANISHING, "the vanished ones' commands")
    for connection in slow:
        size = len(connection.getresponse().read())
        assert size > 20_000_000 * 4 / 3  # all of it, as base64
        connection.close()
    assert resident_bytes(server) < _MEMORY_BYTES_MAX

    server.kill()
    server.start()
    found = server.api("GET", "/v2/sandboxes?limit=100").json
    assert {one["sandboxID"] for one in found} == {box.id for box in boxes}
    with ThreadPoolExecutor(_STARTS) as ends:
        statuses = list(
            ends.map(lambda box: server.api("DELETE", f"/sandboxes/{box.id}").status, boxes)
        )
    assert statuses == [204] * _BOXES and server.records() == []
    assert "Traceback" not in server.log.read_text()
