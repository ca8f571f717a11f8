"""`voidbox serve --pool`: sandboxes that wait for clients; with stand-ins for the machines."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.serve.conftest import ROOT, Box, StandIn, wait_until
from tests.unit.serve.test_dashboard import Visitor

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    with tempfile.TemporaryDirectory(prefix="vbx") as folder:
        server = StandIn(Path(folder), {"waiting": 2})
        try:
            yield server
        finally:
            server.close()


def metrics(server: StandIn) -> str:
    if not hasattr(server, "boss"):
        server.boss = server.add_key("boss", "admin")  # type: ignore[attr-defined]
    return server.api("GET", "/metrics", key=server.boss).body.decode()  # type: ignore[attr-defined]


def wait_warm(server: StandIn, count: int = 2) -> None:
    line = f'voidbox_pool_sandboxes{{state="warm"}} {count}\n'
    wait_until(lambda: line in metrics(server), f"{count} never waited")


def taken(server: StandIn) -> int:
    line = next(one for one in metrics(server).splitlines() if 'operation="taken"' in one)
    return int(line.rpartition(" ")[2])


def test_one_that_waits_is_given_with_all_that_was_asked_for(server: StandIn) -> None:
    wait_warm(server)
    waiting, before = set(server.records()), taken(server)
    asked_at = time.time()
    box = server.create(envVars={"A": "1"}, metadata={"of": "me"}, timeout=600)
    assert box.id in waiting and taken(server) == before + 1
    assert box.run("/bin/sh", "-c", "echo $A $E2B_SANDBOX_ID")[0] == f"1 {box.id}\n".encode()
    info = server.api("GET", f"/sandboxes/{box.id}").json
    assert info["metadata"] == {"of": "me"} and info["state"] == "running"
    ends = server.api("GET", "/v2/sandboxes").json[0]
    assert ends["sandboxID"] == box.id  # the newest is the one that was given last
    from datetime import datetime

    started, end = (
        datetime.fromisoformat(info[name]).timestamp() for name in ("startedAt", "endAt")
    )
    assert asked_at - 1 < started < time.time() + 1
    assert 500 < end - started < 700
    wait_warm(server)  # another one takes its place
    box.kill()
    wait_until(lambda: box.id not in server.records(), "it was not removed")


def test_other_keys_and_lists_never_see_those_that_wait(server: StandIn) -> None:
    wait_warm(server)
    boss = server.boss  # type: ignore[attr-defined]
    assert server.api("GET", "/v2/sandboxes", key=boss).json == []
    for sandbox_id in server.records():
        assert server.api("GET", f"/sandboxes/{sandbox_id}", key=boss).status == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"allow_internet_access": False},
        {"network": {"denyOut": ["10.0.0.0/8"]}},
    ],
)
def test_what_is_of_another_kind_is_started(server: StandIn, fields: dict[str, object]) -> None:
    wait_warm(server)
    before = taken(server)
    box = server.create(timeout=600, **fields)
    assert taken(server) == before
    box.kill()


def test_more_variables_than_can_be_handed_over(server: StandIn) -> None:
    wait_warm(server)
    envs = {f"NAME{number}": "x" * 1000 for number in range(100)}
    box = server.create(envVars=envs, timeout=600)
    assert box.run("/bin/sh", "-c", "echo ${#NAME99}")[0] == b"1000\n"
    box.kill()


def test_what_cannot_wait_is_said_in_a_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "voidbox", "serve", "--listen", "127.0.0.1:0"]
    done = subprocess.run(
        [*command, "--pool", "1", "--jail", "nonsense"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env={"PATH": os.environ["PATH"], "VOIDBOX_STATE": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "choose default, strict, off" in done.stderr or "kernel" in done.stderr


def test_the_dashboard_tells(server: StandIn) -> None:
    wait_warm(server)
    assert "2 of 2 wait for a client" in Visitor(server, "read").get().body.decode()


def test_a_killed_server_leaves_those_that_were_given_alone(server: StandIn) -> None:
    wait_warm(server)
    box = server.create(timeout=600)
    wait_warm(server)
    waiting = set(server.records()) - {box.id}
    server.kill()
    wait_until(lambda: not waiting & set(server.records()), "those that waited did not end")
    server.start()
    assert Box(server, box.made).run("/bin/echo", "still here")[0] == b"still here\n"
    wait_warm(server)
    box.kill()
    server.stop()
    assert server.records() == []
    assert "Traceback" not in server.log.read_text()
