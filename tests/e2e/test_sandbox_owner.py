"""Sandboxes as processes, with real guests: their ends, their pause, their ports, their metrics."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from voidbox.agent import connect
from voidbox.agent.client import AgentClient
from voidbox.errors import AgentError
from voidbox.sandbox.control import ControlClient
from voidbox.sandbox.endpoint import StoredEndpoint
from voidbox.sandbox.guest import Guest
from voidbox.sandbox.launch import launch, wait_ended
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.vmm.config import MachineConfig

pytestmark = pytest.mark.boot

DEADLINE_S = 300.0


class Sandboxes:
    """Makes them, and leaves none behind."""

    def __init__(self, folder: str, kernels: dict[str, str], images: dict[str, str]) -> None:
        self.store = Store(f"{folder}/state")
        self._kernels = kernels
        self._images = images
        self._ids: list[str] = []

    def launch(self, name: str = "minimal", **values: object) -> SandboxRecord:
        record = SandboxRecord(
            "", self._kernels[name], self._images[name], 256 << 20, 1, {}, {}, start_s=DEADLINE_S
        )._replace(**values)  # type: ignore[arg-type]
        record = self.store.create(record)
        self._ids.append(record.id)
        launch(self.store, record)
        return self.store.read(record.id)

    def connect(self, record: SandboxRecord) -> AgentClient:
        endpoint = StoredEndpoint(self.store, record)
        return connect.connect(endpoint, self.store.secret(record.id), DEADLINE_S)

    def ask(self, record: SandboxRecord, op: str, **values: object) -> dict[str, object]:
        path = self.store.path(record.id, "control.sock")
        return ControlClient(path, DEADLINE_S).request(op, **values)

    def wait_ended(self, record: SandboxRecord) -> SandboxRecord:
        assert wait_ended(self.store, record.id, DEADLINE_S)
        return self.store.read(record.id)

    def log(self, record: SandboxRecord, name: str = "owner.log") -> str:
        return Path(self.store.path(record.id, name)).read_text(errors="replace")

    def close(self) -> None:
        for id in self._ids:
            fd = self.store.open_owner(id)
            if fd is not None:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                os.close(fd)
            wait_ended(self.store, id, DEADLINE_S)
        self.store.close()


@pytest.fixture(scope="module")
def sandboxes(kernels: dict[str, str], guest_images: dict[str, str]) -> Iterator[Sandboxes]:
    with tempfile.TemporaryDirectory() as folder:
        made = Sandboxes(folder, kernels, guest_images)
        yield made
        made.close()


def run(client: AgentClient, line: str, **options: object) -> str:
    process = client.exec(shell=line, **options)  # type: ignore[arg-type]
    return b"".join(part.data for part in process.output()).decode()


def test_a_sandbox_runs_is_paused_and_stopped(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch()
    assert record.state is State.RUNNING
    log = sandboxes.log(record)
    assert "via vsock" in log
    with sandboxes.connect(record) as client:
        assert run(client, "echo hello; id -u") == "hello\n1000\n"
        ticks = client.exec(shell="while :; do echo; sleep 0.05; done").output()
        next(ticks)
        sandboxes.ask(record, "pause")
        came = threading.Event()
        time.sleep(0.5)  # what was under way arrives

        def count() -> None:
            for _ in range(200):
                next(ticks)
            came.set()

        counter = threading.Thread(target=count)
        counter.start()
        assert not came.wait(1)
        sandboxes.ask(record, "resume")
        counter.join(DEADLINE_S)
        assert came.is_set()
    metrics = sandboxes.ask(record, "metrics")
    assert isinstance(metrics["vcpu_ns"], int)
    assert metrics["vcpu_ns"] > 0
    assert metrics["network"] is None
    sandboxes.ask(record, "pause")
    sandboxes.ask(record, "stop", timeout=30)
    ended = sandboxes.wait_ended(record)
    assert (ended.state, ended.reason) == (State.STOPPED, "it was stopped")
    assert "pressing the power button" not in sandboxes.log(record)
    assert not [f for f in os.listdir(sandboxes.store.path(record.id)) if ".sock" in f]


@pytest.mark.parametrize("name", ["minimal", "cloud"])
def test_the_power_button_reaches_the_kernel(
    name: str, kernels: dict[str, str], guest_images: dict[str, str]
) -> None:
    with Guest(MachineConfig(kernels[name], guest_images[name])) as guest:
        guest.machine.start()
        with guest.connect(300) as client:

            def presses() -> int:
                # Two devices have one: the button, and VMGenID, whose never comes here.
                program = "/ACPI:Ged/ {n += $2} END {print n}"
                return int(run(client, f"awk '{program}' /proc/interrupts"))

            for count in range(3):
                assert presses() == count
                guest.machine.press_power_button()


def test_ports_can_be_published_while_it_runs(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch(net={"publish": ["0:7000"]})
    (first,) = sandboxes.ask(record, "port_list")["forwards"]  # type: ignore[misc]
    second = sandboxes.ask(record, "port_add", publish="0:7001")["forward"]
    with sandboxes.connect(record) as client:
        server = (
            "import socket\n"
            "l = socket.create_server(('', 7001)); print(flush=True); l.accept()[0].sendall(b'hi')"
        )
        process = client.exec(["python3", "-c", server])
        next(process.output())
        port = int(str(second).split(":")[1])
        with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as sock:
            assert sock.recv(10) == b"hi"
    sandboxes.ask(record, "port_remove", publish=second)
    assert sandboxes.ask(record, "port_list")["forwards"] == [first]
    assert sandboxes.ask(record, "metrics")["network"] is not None
    sandboxes.ask(record, "kill")
    assert sandboxes.wait_ended(record).reason == "it was killed"


def test_a_panic_is_told_with_the_console(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch()
    with sandboxes.connect(record) as client:
        process = client.exec(shell="sleep 1; echo c > /proc/sysrq-trigger", user="root")
        with pytest.raises(AgentError, match=r"(?s)panicked.*last lines"):
            process.wait()
    ended = sandboxes.wait_ended(record)
    assert ended.state is State.CRASHED
    assert "panic" in ended.crash
    assert "Kernel panic" in sandboxes.log(record, "console.log")


def test_a_killed_owner_takes_the_guest_with_it(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch()
    with sandboxes.connect(record) as client:
        process = client.exec(["sleep", "100"])
        assert process.pid
        os.kill(record.pid, signal.SIGKILL)
        with pytest.raises(AgentError, match="its process was killed"):
            process.wait()
    sandboxes.wait_ended(record)
    assert record.id in [crashed.id for crashed in sandboxes.store.clean()]
    assert sandboxes.store.read(record.id).state is State.CRASHED


def test_without_vsock_all_goes_over_the_serial_line(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch(vsock="none")
    assert "via serial" in sandboxes.log(record)
    with sandboxes.connect(record) as client:
        assert client.is_serial
        assert run(client, "echo slow") == "slow\n"
    sandboxes.ask(record, "stop", timeout=30)
    assert sandboxes.wait_ended(record).reason == "it was stopped"
