"""Sandboxes with fake machines (see fake_owner) for tests."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from voidbox.agent import connect
from voidbox.agent.client import AgentClient
from voidbox.sandbox.control import ControlClient
from voidbox.sandbox.endpoint import StoredEndpoint
from voidbox.sandbox.launch import launch, wait_ended
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

FAKE_OWNER = "tests.unit.sandbox.fake_owner"
DEADLINE_S = 60.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Sandboxes:
    """Makes them, and leaves none behind."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(str(folder / "state"))
        self._folder = folder
        self._ids: list[str] = []

    def create(self, mode: str = "", **values: object) -> SandboxRecord:
        image = self._folder / f"image-{mode}"
        if not image.exists():  # what a template rests on must not change
            image.write_text(json.dumps({"mode": mode}))
        record = SandboxRecord(
            name="", kernel="kernel", image=str(image), memory_bytes=64 << 20, cpus=1, envs={},
            metadata={}, jail="off",  # the fake machine is other processes
        )._replace(**values)  # type: ignore[arg-type]  # fmt: skip
        record = self.store.create(record)
        self._ids.append(record.id)
        return record

    def launch(
        self, mode: str = "", parent_fd: int | None = None, **values: object
    ) -> SandboxRecord:
        record = self.create(mode, **values)
        launch(self.store, record, parent_fd, owner=FAKE_OWNER)
        return self.store.read(record.id)

    def control(self, record: SandboxRecord) -> ControlClient:
        return ControlClient(self.store.path(record.id, "control.sock"), DEADLINE_S)

    def connect(self, record: SandboxRecord) -> AgentClient:
        endpoint = StoredEndpoint(self.store, record)
        return connect.connect(endpoint, self.store.secret(record.id), DEADLINE_S)

    def wait_ended(self, record: SandboxRecord) -> SandboxRecord:
        assert wait_ended(self.store, record.id, DEADLINE_S)
        return self.store.read(record.id)

    def file(self, record: SandboxRecord, name: str) -> str:
        return Path(self.store.path(record.id, name)).read_text()

    def agent_pid(self, record: SandboxRecord) -> int:
        return int(self.file(record, "agent.pid"))

    def close(self) -> None:
        for id in self._ids:
            fd = self.store.open_owner(id)
            if fd is not None:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                os.close(fd)
            with suppress(OSError, ValueError):
                pid = int(Path(self.store.path(id, "agent.pid")).read_text())
                if b"guest_agent" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
            wait_ended(self.store, id, DEADLINE_S)
        self.store.close()
