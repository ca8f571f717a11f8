"""A sandbox's process with a real machine, whose guest of a few bytes never gets an agent."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest import tiny
from voidbox.errors import AgentError, VoidboxError
from voidbox.sandbox.control import ControlClient
from voidbox.sandbox.launch import launch, wait_ended
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

pytestmark = pytest.mark.kvm

DEADLINE_S = 30


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:  # pytest's are too long for sockets
        yield Path(name)


def create(store: Store, folder: Path, code: bytes, **values: object) -> SandboxRecord:
    kernel = tiny.write_elf(folder / "tiny.elf", code)
    image = folder / "image"
    image.write_bytes(bytes(512))
    record = SandboxRecord("", kernel, str(image), 64 << 20, 1, {}, {})
    return store.create(record._replace(**values))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("net", [None, {"allow": ["example.org:443"]}], ids=["no net", "net"])
def test_a_guest_that_ends_before_its_agent_answers(
    folder: Path, net: dict[str, object] | None
) -> None:
    store = Store(str(folder / "state"))
    record = create(store, folder, tiny.say("oops\n") + tiny.out8(0x505, 1), net=net)
    with pytest.raises(AgentError, match=r"(?s)ended before.*panicked.*oops"):
        launch(store, record)
    ended = store.read(record.id)
    assert ended.state is State.CRASHED
    assert "oops" in ended.crash
    assert Path(store.path(record.id, "console.log")).read_bytes() == b"oops\n"
    assert not [name for name in os.listdir(store.path(record.id)) if ".sock" in name]
    assert not store.is_alive(record.id)
    store.remove(record.id)


def test_a_guest_that_never_answers_is_ended_by_its_time_limit(folder: Path) -> None:
    store = Store(str(folder / "state"))
    record = create(store, folder, tiny.SPIN, timeout_s=0.5)
    with pytest.raises(AgentError, match="^its time limit ran out$"):
        launch(store, record)
    assert store.read(record.id).state is State.STOPPED


def test_a_guest_that_never_answers_can_be_measured_and_killed(folder: Path) -> None:
    store = Store(str(folder / "state"))
    record = create(store, folder, tiny.say("x") + tiny.SPIN)
    errors: list[VoidboxError] = []

    def start() -> None:
        try:
            launch(store, record)
        except VoidboxError as error:
            errors.append(error)

    launcher = threading.Thread(target=start)
    launcher.start()
    control = ControlClient(store.path(record.id, "control.sock"), DEADLINE_S)
    for _ in range(600):
        try:
            metrics = control.request("metrics")
            if metrics["vcpu_ns"]:
                break
        except AgentError:
            pass
        threading.Event().wait(0.05)
    else:
        pytest.fail("no metrics")
    assert isinstance(metrics["exits"], dict)
    with control.request_socket("connect_serial") as line:
        line.sendall(b"hello")
    control.request("kill")
    launcher.join(DEADLINE_S)
    assert [str(error) for error in errors] == ["it was killed"]
    assert wait_ended(store, record.id, DEADLINE_S)
    assert store.read(record.id).reason == "it was killed"


def test_a_kernel_that_is_none_leaves_nothing(folder: Path) -> None:
    store = Store(str(folder / "state"))
    record = create(store, folder, tiny.SPIN)
    Path(record.kernel).write_text("no kernel")
    with pytest.raises(VoidboxError, match=r"tiny\.elf"):
        launch(store, record)
    assert store.list() == []
