"""Limits by a control group, with a real machine, where the kernel has cgroup v2 with controllers.

Needs root, who may make groups anywhere: the lab has it.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest import tiny
from tests.guest.test_owner import create
from voidbox.errors import AgentError, VoidboxError
from voidbox.jail import cgroups
from voidbox.sandbox.control import ControlClient
from voidbox.sandbox.launch import launch, wait_ended
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

DEADLINE_S = 60.0
SPAN_S = 4.0


def _mount_in_lab() -> None:
    """The lab has none mounted, and is thrown away."""
    if os.environ.get("VOIDBOX_LAB") and not os.path.exists("/sys/fs/cgroup/cgroup.procs"):
        os.makedirs("/sys/fs/cgroup", exist_ok=True)
        subprocess.run(["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"], check=False)


def _has_all() -> bool:
    _mount_in_lab()
    try:
        folder = cgroups.find()
        if folder is None:
            return False
        group = cgroups.make(folder, "test")
    except OSError:
        return False
    try:
        return group.controllers == {*cgroups.CONTROLLERS}
    finally:
        group.close()


pytestmark = [
    pytest.mark.kvm,
    pytest.mark.slow,
    pytest.mark.skipif(
        "not __import__('tests.guest.test_control_group', fromlist='_')._has_all()",
        reason="no cgroup v2 with processor, memory and pids for this user: run it in the lab",
    ),
]


def touch(first: int, end: int) -> bytes:
    """Write to each page: mov edi, first; L: mov [rdi], eax; add edi, 4096; cmp edi, end; jb L."""
    loop = b"\x89\x07\x81\xc7" + struct.pack("<I", 4096) + b"\x81\xff" + struct.pack("<I", end)
    return b"\xbf" + struct.pack("<I", first) + loop + b"\x72" + struct.pack("b", -len(loop) - 2)


@pytest.fixture
def store() -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as name:  # pytest's are too long for sockets
        yield Store(name)


class Started:
    """A sandbox whose guest has no agent, while it is being waited for."""

    def __init__(self, store: Store, code: bytes, **values: object) -> None:
        self.store = store
        self.record: SandboxRecord = create(store, Path(store.folder), code, **values)
        self.errors: list[VoidboxError] = []
        self.control = ControlClient(store.path(self.record.id, "control.sock"), DEADLINE_S)
        self._thread = threading.Thread(target=self._launch)
        self._thread.start()

    def _launch(self) -> None:
        try:
            launch(self.store, self.record)
        except VoidboxError as error:
            self.errors.append(error)

    def wait_for(self, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Return its metrics, once they are so."""
        until = time.monotonic() + DEADLINE_S
        found: object = None
        while time.monotonic() < until:
            try:
                found = self.control.request("metrics")
                if holds(found):
                    return found
            except AgentError:
                assert not self.errors, self.errors
            threading.Event().wait(0.05)
        raise AssertionError(found)

    @property
    def folder(self) -> str:
        """Of its group."""
        log = Path(self.store.path(self.record.id, "owner.log")).read_text()
        return log.partition("control group ")[2].partition(": ")[0]

    def end(self) -> SandboxRecord:
        """Wait for its end; returns what is left of it."""
        self._thread.join(DEADLINE_S)
        assert wait_ended(self.store, self.record.id, DEADLINE_S)
        return self.store.read(self.record.id)


def _used_us(folder: str) -> int:
    lines = Path(folder, "cpu.stat").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("usage_usec")))


def test_half_a_processor_is_what_it_gets_and_it_can_be_changed(store: Store) -> None:
    guest = Started(store, tiny.say("x") + tiny.SPIN, limits={"cpu": 0.5, "pids": 100})
    try:
        found = guest.wait_for(lambda found: found["vcpu_ns"])
        assert found["limits"] == {"cpu": 0.5, "pids": 100}
        assert 0 < found["group"]["pids"] <= 100
        for cpus in (0.5, 0.2):
            guest.control.request("limit", cpu=cpus)
            # In this order: whatever lies between two looks only makes the share smaller.
            began_s, began_us = time.monotonic(), _used_us(guest.folder)
            time.sleep(SPAN_S)
            used_us, span_s = _used_us(guest.folder) - began_us, time.monotonic() - began_s
            # Less where the host is busy: it is a limit, no promise.
            assert 0 < used_us / 1e6 / span_s < cpus * 1.1, cpus
            print(f"{cpus}: {used_us / 1e6 / span_s:.3f}")
        assert guest.wait_for(lambda found: found["cpu_held_ns"])["group"]["cpu_held_ns"] > 0
        guest.control.request("limit", cpu=None, pids=None)
        assert Path(guest.folder, "cpu.max").read_text().startswith("max ")
        assert Path(guest.folder, "pids.max").read_text() == "max\n"
        folder = guest.folder
    finally:
        guest.control.request("kill")
    assert guest.end().state is State.STOPPED
    assert not os.path.exists(folder)


def test_a_guest_that_fills_its_memory_ends_at_the_limit_and_says_so(store: Store) -> None:
    code = tiny.say("x") + touch(4 << 20, 250 << 20) + tiny.say("y") + tiny.SPIN
    limits = {"host_memory_bytes": 128 << 20}
    guest = Started(store, code, memory_bytes=256 << 20, limits=limits)
    ended = guest.end()
    assert ended.state is State.CRASHED
    assert "it reached its limit of the host's memory" in ended.crash
    assert Path(store.path(ended.id, "console.log")).read_bytes() in (b"x", b"")
    assert not os.path.exists(guest.folder)


def test_what_a_killed_keeper_leaves_is_removed_by_the_next(store: Store) -> None:
    guest = Started(store, tiny.say("x") + tiny.SPIN, limits={"cpu": 0.5})
    guest.wait_for(lambda found: found["vcpu_ns"])
    folder = guest.folder
    os.kill(store.read(guest.record.id).pid, signal.SIGKILL)
    guest._thread.join(DEADLINE_S)
    assert os.path.isdir(folder)
    until = time.monotonic() + DEADLINE_S
    while os.path.isdir(folder):  # busy for a moment after its last process
        assert time.monotonic() < until
        assert cgroups.find() is not None
        time.sleep(0.05)
