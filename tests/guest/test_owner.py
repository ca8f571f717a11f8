"""A sandbox's process with a real machine, whose guest of a few bytes never gets an agent."""

from __future__ import annotations

import os
import select
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest import tiny
from tests.host_jail import WHY_NOT_STRICT, lacks_a_layer
from voidbox.errors import AgentError, VoidboxError
from voidbox.sandbox.control import ControlClient
from voidbox.sandbox.launch import launch, wait_ended
from voidbox.sandbox.root import DISK_BYTES_DEFAULT, UPPER_FILE, Root
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

DEADLINE_S = 60


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


def test_a_sandbox_may_make_the_disk_that_its_record_promises(folder: Path) -> None:
    store = Store(str(folder / "state"))
    code = tiny.say("oops\n") + tiny.out8(0x505, 1)
    root = Root(str(folder / "image"), str(folder / "image"), disk_bytes=DISK_BYTES_DEFAULT)
    record = create(store, folder, code, root=root._asdict())
    with pytest.raises(AgentError, match="panicked"):
        launch(store, record)
    assert os.path.getsize(store.path(record.id, UPPER_FILE)) == DISK_BYTES_DEFAULT


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


def test_all_that_can_be_asked_works_in_the_strict_jail(folder: Path) -> None:
    """What nobody expects would end it; and it has a network, a disk, an overlay, a live folder."""
    if lacks_a_layer():
        pytest.skip(WHY_NOT_STRICT)
    for name in ("base", "disk"):
        with open(folder / name, "wb") as file:
            file.truncate(1 << 20)
    (folder / "work").mkdir()
    store = Store(str(folder / "state"))
    record = create(
        store, folder, tiny.say("x") + tiny.SPIN, jail="strict", net={"allow_host_ports": [7]},
        disks=(f"{folder}/base,overlay={folder}/over", f"{folder}/disk"), team="red",
        workspace=str(folder / "work"), workspace_mode="rw", limits={"cpu": 0.5},
    )  # fmt: skip
    launcher = threading.Thread(target=_launch_in_vain, args=(store, record))
    launcher.start()
    control = ControlClient(store.path(record.id, "control.sock"), DEADLINE_S)
    log = Path(store.path(record.id, "owner.log"))
    log.touch()
    try:
        for _ in range(600):
            if "the jail is shut" in log.read_text() and "x" in _console(store, record):
                break
            threading.Event().wait(0.05)
        else:
            pytest.fail(log.read_text())
        for _ in range(5):
            assert control.request("metrics")["disks"]
        for kind in ("tcp", "udp"):
            forward = str(control.request("port_add", publish=f"0:80/{kind}")["forward"])
            assert [forward] == control.request("port_list")["forwards"]
            is_udp = kind == "udp"
            with socket.socket(type=socket.SOCK_DGRAM if is_udp else socket.SOCK_STREAM) as sock:
                sock.connect(("127.0.0.1", int(forward.split(":")[1])))
                sock.sendall(b"hello")
            control.request("port_remove", publish=forward)
        limits = control.request("limit", cpu=None, disk_bytes_s=1 << 20, net_bytes_s=5000)
        assert limits["limits"] == {"disk_bytes_s": 1 << 20, "net_bytes_s": 5000}
        for _ in range(2):  # each ends the one before
            with control.request_socket("connect_serial") as line:
                line.sendall(b"hello")
        assert control.request("deliver", **{"from": "me", "text": "hello"})["outcome"]
        control.request("set_timeout", timeout=1000)
        assert store.is_alive(record.id)
    finally:
        control.request("kill")
        launcher.join(DEADLINE_S)
    assert wait_ended(store, record.id, DEADLINE_S)
    ended = store.read(record.id)
    assert (ended.state, ended.reason) == (State.STOPPED, "it was killed")
    assert not [line for line in log.read_text().splitlines() if "refused" in line]


def _launch_in_vain(store: Store, record: SandboxRecord) -> None:
    with pytest.raises(VoidboxError):
        launch(store, record)


def _console(store: Store, record: SandboxRecord) -> str:
    try:
        return Path(store.path(record.id, "console.log")).read_text()
    except FileNotFoundError:
        return ""


def _start_and_find_worker(store: Store, record: SandboxRecord) -> tuple[threading.Thread, int]:
    """Return the thread that waits for its agent, and a descriptor of its worker, which runs."""
    launcher = threading.Thread(target=_launch_in_vain, args=(store, record))
    launcher.start()
    deadline = time.monotonic() + DEADLINE_S
    while "x" not in _console(store, record):
        assert time.monotonic() < deadline, Path(store.path(record.id, "owner.log")).read_text()
        threading.Event().wait(0.05)
    pid = store.read(record.id).pid
    (worker,) = _children(pid)
    for inner in _children(worker):  # the other is its warden
        worker = inner
    return launcher, os.pidfd_open(worker)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _stack_room(pid: int) -> list[int]:
    """Return how many bytes the stack of each thread but the first may still grow by.

    Down to its guard page, that is; above it, the kernel may have joined it with something else.
    """
    bounds = [
        [int(number, 16) for number in line.split()[0].split("-")]
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
    ]
    rooms = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        words = (task / "syscall").read_text().split()  # the last two: stack pointer, RIP
        if task.name != str(pid) and len(words) > 2:  # else it runs just now
            pointer = int(words[-2], 16)
            rooms += [pointer - start for start, end in bounds if start <= pointer < end]
    return rooms


def test_stacks_are_too_small_for_huge_pages(folder: Path) -> None:
    store = Store(str(folder / "state"))
    record = create(store, folder, tiny.say("x") + tiny.HLT_FOREVER)
    launcher, worker_fd = _start_and_find_worker(store, record)
    keeper = store.read(record.id).pid
    (warden,) = _children(keeper)
    for pid in (keeper, *(_children(warden) or [warden])):
        rooms = _stack_room(pid)
        assert rooms and max(rooms) < 2 << 20
    os.close(worker_fd)
    os.kill(keeper, signal.SIGKILL)
    launcher.join(DEADLINE_S)


def test_a_sandbox_whose_worker_is_lost_ends(folder: Path) -> None:
    store = Store(str(folder / "state"))
    record = create(store, folder, tiny.say("x") + tiny.SPIN)
    launcher, worker_fd = _start_and_find_worker(store, record)
    status = Path(f"/proc/{store.read(record.id).pid}/status").read_text()
    assert {"NoNewPrivs:\t1", "Seccomp:\t2"} <= set(status.splitlines())  # the keeper's own
    signal.pidfd_send_signal(worker_fd, signal.SIGKILL)
    os.close(worker_fd)
    launcher.join(DEADLINE_S)
    assert wait_ended(store, record.id, DEADLINE_S)
    ended = store.read(record.id)
    assert ended.state is State.CRASHED
    assert "the machine's process was killed by SIGKILL" in ended.crash


@pytest.mark.parametrize("is_stopped", [False, True], ids=["alive", "deaf"])
def test_no_worker_outlives_its_keeper(folder: Path, is_stopped: bool) -> None:
    """One that is taken over may not care that nobody is there any more."""
    store = Store(str(folder / "state"))
    record = create(store, folder, tiny.say("x") + tiny.SPIN)
    launcher, worker_fd = _start_and_find_worker(store, record)
    if is_stopped:
        signal.pidfd_send_signal(worker_fd, signal.SIGSTOP)
    os.kill(store.read(record.id).pid, signal.SIGKILL)
    launcher.join(DEADLINE_S)
    poll = select.poll()
    poll.register(worker_fd, select.POLLIN)
    assert poll.poll(DEADLINE_S * 1000)
    os.close(worker_fd)


@pytest.mark.parametrize("missing", ["namespaces", "landlock", "pids"])
@pytest.mark.parametrize("level", ["default", "strict"])
def test_a_host_that_lacks_a_layer(folder: Path, missing: str, level: str) -> None:
    """As in a container, whose own filter refuses it."""
    store = Store(str(folder / "state"))
    record = create(store, folder, tiny.say("oops") + tiny.out8(0x505, 1), jail=level)
    owner = f"tests.guest.poor_host_{missing}"
    with pytest.raises(VoidboxError) as caught:
        launch(store, record, owner=owner)
    if level == "strict":
        assert "the jail is strict, and this host has no" in str(caught.value)
        assert store.list() == []
        return
    assert "panicked" in str(caught.value)  # it ran
    log = Path(store.path(record.id, "owner.log")).read_text()
    assert ("see the names and sizes of your files" in log) == (missing == "namespaces")
    (shut,) = [line for line in log.splitlines() if "the jail is shut" in line]
    assert ("landlock" in shut) == (missing != "landlock")
    assert ("mount" in shut) == (missing != "namespaces")
    assert ("pid" in shut) == (missing not in ("namespaces", "pids"))
    assert ("see the numbers of other processes" in log) == (missing == "pids")
    assert "seccomp" in shut


def test_a_kernel_that_is_none_leaves_nothing(folder: Path) -> None:
    store = Store(str(folder / "state"))
    record = create(store, folder, tiny.SPIN)
    Path(record.kernel).write_text("no kernel")
    with pytest.raises(VoidboxError, match=r"tiny\.elf"):
        launch(store, record)
    assert store.list() == []
