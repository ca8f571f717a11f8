"""QUIESCE, RELEASE and ADOPT: what a copy of a guest is told, and by whom."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.agent.conftest import ROOT, SECRET, USER, dial
from voidbox.agent import protocol
from voidbox.agent.call import RequestFailed
from voidbox.agent.client import AgentClient
from voidbox.agent.link import Link
from voidbox.errors import AgentError

NEW_SECRET = bytes(range(1, 33))
# An agent whose guest is a recorder: each call is a line of a file, and any can be told to fail.
AGENT = """
import os, sys
from guest_agent.loop import Loop
from guest_agent.server import Agent
import socket

class Identity:
    def _tell(self, line):
        if line.split()[0] == os.environ.get("FAIL"):
            raise OSError(5, "it fails")
        with open(sys.argv[2], "a") as file:
            file.write(line + "\\n")
    def reseed(self, entropy): self._tell("reseed " + entropy.hex())
    def set_clock(self, clock_ns): self._tell(f"clock {clock_ns}")
    def rename(self, hostname, machine_id, generation):
        self._tell(f"rename {hostname} {machine_id} {generation}")
        return ["a note"]
    def freeze(self):
        self._tell("freeze")
        return True
    def thaw(self): self._tell("thaw")

loop = Loop()
loop.catch((15,))
loop.on_signal = lambda number: loop.stop()
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
Agent(loop, bytes(range(32)), lambda is_reboot: None, Identity).serve_socket(listener)
loop.run()
"""


class RecordingAgent:
    """An agent of this machine whose guest only notes what would be done to it."""

    def __init__(self, folder: Path, fail: str = "") -> None:
        self._path, self._told = folder / "socket", folder / "told"
        self._told.touch()
        command = [sys.executable, "-c", AGENT, str(self._path), str(self._told)]
        environment = {**os.environ, "FAIL": fail, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(command, env=environment)
        self._clients: list[AgentClient] = []

    def connect(self, secret: bytes = SECRET) -> AgentClient:
        link = Link(dial(self._path))
        try:
            link.handshake(secret, 20)
        except BaseException:
            link.close()
            raise
        self._clients.append(AgentClient(link))
        return self._clients[-1]

    def told(self) -> list[str]:
        return [line.split()[0] for line in self._told.read_text().splitlines()]

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._process.terminate()
        assert self._process.wait(60) == 0


@pytest.fixture
def make_agent(tmp_path: Path) -> Iterator[Callable[..., RecordingAgent]]:
    agents = []

    def make(fail: str = "") -> RecordingAgent:
        agents.append(RecordingAgent(tmp_path, fail))
        return agents[-1]

    yield make
    for agent in agents:
        agent.close()


def adoption(**changes: Any) -> dict[str, Any]:
    values = {"entropy": bytes(32), "secret": NEW_SECRET, "clock_ns": 5, "hostname": "copy"}
    return {**values, **changes}


def adopt(client: AgentClient, **changes: Any) -> dict[str, Any]:
    return client.request(protocol.ADOPT, adoption(**changes), "adopt")


def quiesce(client: AgentClient, **changes: Any) -> dict[str, Any]:
    return client.request(protocol.QUIESCE, {"timeout": 60, **changes}, "quiesce")


def wait_for(client: AgentClient, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_adopt_does_all_in_its_order(make_agent: Callable[..., RecordingAgent]) -> None:
    agent = make_agent()
    client = agent.connect()
    answer = adopt(client, generation="g" * 32, machine_id="a" * 32, env={"COLOUR": "blue"})
    assert answer == {"notes": ["a note"]}
    assert agent.told() == ["reseed", "clock", "rename", "thaw"]
    process = client.exec(shell="echo $COLOUR", user=USER)
    assert b"".join(data for _, data in process.output()) == b"blue\n"


def test_the_old_secret_opens_nothing_any_more(make_agent: Callable[..., RecordingAgent]) -> None:
    agent = make_agent()
    adopter, other = agent.connect(), agent.connect()
    adopt(adopter)
    with pytest.raises(AgentError):
        other.metrics()
    with pytest.raises(AgentError):
        agent.connect(SECRET)
    assert agent.connect(NEW_SECRET).metrics()["cpus"]
    assert adopter.metrics()["cpus"]


@pytest.mark.parametrize("step", ["reseed", "clock"])
def test_a_step_that_fails_is_no_adoption(
    make_agent: Callable[..., RecordingAgent], step: str
) -> None:
    agent = make_agent(step)
    client = agent.connect()
    with pytest.raises(RequestFailed, match="it fails"):
        adopt(client)
    assert "rename" not in agent.told()
    assert "thaw" not in agent.told()
    with pytest.raises(AgentError):
        agent.connect(NEW_SECRET)


@pytest.mark.parametrize(
    "changes",
    [
        {"entropy": b""},
        {"entropy": bytes(31)},
        {"entropy": "x" * 32},
        {"secret": bytes(33)},
        {"secret": None},
        {"clock_ns": -1},
        {"clock_ns": (1 << 64) - 1},
        {"clock_ns": "now"},
        {"hostname": 5},
        {"hostname": "a\0b"},
        {"machine_id": b"a"},
        {"env": ["A=b"]},
        {"env": {"A=b": "c"}},
        {"env": {"A": 5}},
    ],
)
def test_nonsense_changes_nothing(
    make_agent: Callable[..., RecordingAgent], changes: dict[str, Any]
) -> None:
    agent = make_agent()
    client = agent.connect()
    with pytest.raises(RequestFailed) as caught:
        adopt(client, **changes)
    assert caught.value.code == protocol.BAD_REQUEST
    assert agent.told() == []
    assert agent.connect(SECRET).metrics()["cpus"]


@pytest.mark.parametrize("timeout", [None, 0, -1, 3601, 1e300, "60", True])
def test_quiesce_is_never_for_ever(
    make_agent: Callable[..., RecordingAgent], timeout: object
) -> None:
    agent = make_agent()
    with pytest.raises(RequestFailed):
        quiesce(agent.connect(), timeout=timeout, freeze=True)
    assert "freeze" not in agent.told()


def test_what_nobody_releases_goes_on_by_itself(make_agent: Callable[..., RecordingAgent]) -> None:
    agent = make_agent()
    client = agent.connect()
    assert quiesce(client, timeout=0.3, freeze=True) == {"is_frozen": True}
    told = len(agent.told())
    wait_for(client, lambda: agent.told()[told:] == ["thaw"])


def test_release_thaws_at_once(make_agent: Callable[..., RecordingAgent]) -> None:
    agent = make_agent()
    client = agent.connect()
    quiesce(client, freeze=True)
    client.request(protocol.RELEASE, {}, "release")
    assert agent.told()[-1] == "thaw"


def test_commands_of_cut_connections_can_be_attached_to(
    make_agent: Callable[..., RecordingAgent],
) -> None:
    agent = make_agent()
    client, owner = agent.connect(), agent.connect()
    process = client.exec(shell="while read line; do echo got $line; done", stdin=True, user=USER)
    terminal = client.exec(argv=["/bin/cat"], stdin=True, window_size=(24, 80), user=USER)
    assert process.pid and terminal.pid
    quiesce(owner)
    client.close()  # as the reset of the vsock device does in the copy
    adopt(owner)
    attached = agent.connect(NEW_SECRET).attach(process.pid)
    attached.write(b"me\n")
    attached.end_input()
    assert b"".join(data for _, data in attached.output()) == b"got me\n"
    assert attached.wait().exit_code == 0
    screen = agent.connect(NEW_SECRET).attach(terminal.pid)
    screen.write(b"words\n")
    assert next(screen.output())[1]
    screen.kill()


def test_adopt_itself_cuts_connections_that_nothing_else_has(
    make_agent: Callable[..., RecordingAgent],
) -> None:
    agent = make_agent()
    client, owner = agent.connect(), agent.connect()
    pid = client.exec(shell="sleep 0.5; echo done", user=USER).pid
    adopt(owner)
    attached = agent.connect(NEW_SECRET).attach(pid)
    assert b"".join(data for _, data in attached.output()) == b"done\n"


def test_in_the_original_nothing_has_changed(make_agent: Callable[..., RecordingAgent]) -> None:
    agent = make_agent()
    client, owner = agent.connect(), agent.connect()
    process = client.exec(shell="sleep 100", user=USER)
    assert process.pid
    quiesce(owner)
    owner.request(protocol.RELEASE, {}, "release")
    with pytest.raises(RequestFailed) as caught:  # still its client's alone
        owner.attach(process.pid).wait()
    assert caught.value.code == "EBUSY"
    client.close()
    wait_for(owner, lambda: not owner.processes())


def test_a_mere_program_changes_no_machine(client: AgentClient) -> None:
    """The agent that tests and developers run must not touch the clock of their machine."""
    assert quiesce(client, freeze=True) == {"is_frozen": False}
    client.request(protocol.RELEASE, {}, "release")


def test_a_copy_whose_processes_ran_before_says_so(
    make_agent: Callable[..., RecordingAgent],
) -> None:
    """It was told what it is later than its freezer waits: on a host that is very busy, say."""
    agent = make_agent()
    client = agent.connect()
    quiesce(client, timeout=0.3, freeze=True)
    wait_for(client, lambda: agent.told()[-1] == "thaw")
    note = "its processes have run before it was told that it is another"
    assert adopt(client)["notes"] == ["a note", note]
    quiesce(client, freeze=True)
    assert adopt(client, secret=SECRET)["notes"] == ["a note"]
