"""Snapshots of real guests by the SDK: what goes on, what is another in each copy."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from voidbox import Sandbox
from voidbox.sandbox.snapshots.templates import Templates

pytestmark = [pytest.mark.boot, pytest.mark.slow]

# What must be another in each copy, asked for in its very first request.
RANDOM = (
    "cat /proc/sys/kernel/random/uuid; od -An -N8 -tx8 /dev/urandom; cat /run/voidbox/generation"
)
SERVER = """
import socket
with socket.create_server(("", 8000)) as server:
    while True:
        client = server.accept()[0]
        client.sendall(b"hello")
        client.close()
"""


@pytest.fixture(scope="module")
def machine(kernels: dict[str, str], guest_images: dict[str, str]) -> Iterator[dict[str, object]]:
    """What create() is given; the state folder is in memory, as all is that the lab writes."""
    with tempfile.TemporaryDirectory(prefix="vb-", dir="/dev/shm") as folder:
        os.environ["VOIDBOX_STATE"] = folder
        del os.environ["VOIDBOX_TEMPLATES"]
        yield {
            "kernel": kernels["minimal"],
            "image": guest_images["minimal"],
            "memory": "192M",
            "cpus": 2,
            "timeout": 3000,
            "request_timeout": 300,
        }
        del os.environ["VOIDBOX_STATE"]
        os.environ["VOIDBOX_TEMPLATES"] = "off"


@pytest.fixture(scope="module")
def box(machine: dict[str, object]) -> Iterator[Sandbox]:
    """One sandbox for all tests, with a counter on each CPU and a TCP server."""
    with Sandbox.create(**machine, publish=["0:8000"]) as sandbox:  # type: ignore[arg-type]
        for cpu in (0, 1):
            loop = f"i=0; while :; do i=$((i+1)); echo $i > /tmp/count{cpu}; sleep 0.1; done"
            sandbox.commands.run(f"taskset {1 << cpu} sh -c '{loop}'", background=True)
        sandbox.files.write("/tmp/server.py", SERVER)
        sandbox.commands.run("python3 /tmp/server.py", background=True)
        yield sandbox


def log_of(sandbox: Sandbox) -> str:
    return "\n".join(sandbox.logs(source="voidbox"))


def counts(sandbox: Sandbox) -> list[int]:
    return [int(n) for n in sandbox.commands.run("cat /tmp/count0 /tmp/count1").stdout.split()]


def assert_counting(sandbox: Sandbox) -> None:
    before, deadline = counts(sandbox), time.monotonic() + 60
    while not all(now > then for now, then in zip(counts(sandbox), before, strict=True)):
        assert time.monotonic() < deadline, "a CPU's timer stands still"
        time.sleep(0.2)


def assert_right_clock(sandbox: Sandbox) -> None:
    before = time.time()
    told = float(sandbox.commands.run("python3 -c 'import time; print(time.time())'").stdout)
    assert before - 1 < told < time.time() + 1


def greeting(sandbox: Sandbox) -> bytes:
    (port,) = sandbox.ports.list()
    with socket.create_connection((port.host_ip, port.host_port), 60) as client:
        client.settimeout(60)
        return client.recv(100)


def test_create_restores_what_an_earlier_one_left(box: Sandbox, machine: dict[str, object]) -> None:
    templates = Path(Templates(os.environ["VOIDBOX_STATE"]).path)
    deadline = time.monotonic() + 120
    while not any(not entry.name.endswith(".part") for entry in templates.iterdir()):
        assert time.monotonic() < deadline, log_of(box)
        time.sleep(0.1)
    found = []
    for _ in range(2):
        with Sandbox.create(**machine, envs={"A": "mine"}) as sandbox:  # type: ignore[arg-type]
            found.append(sandbox.commands.run(f"{RANDOM}; echo $A").stdout)
            assert "restored from" in log_of(sandbox)
            assert_right_clock(sandbox)
            assert sandbox.commands.list() == []
    first, second = (text.split() for text in found)
    assert first[-1] == second[-1] == "mine"
    assert not set(first[:-1]) & set(second[:-1])


def test_a_snapshot_goes_on_in_a_sandbox_of_its_own(box: Sandbox) -> None:
    terminal = box.pty.create(cmd=["/bin/sh"])
    terminal.send_input("A=kept\n")
    following = box.commands.start("read line; echo got $line", stdin=True)
    made = box.snapshot("ready")
    assert_counting(box)
    with Sandbox.create(snapshot="ready", request_timeout=300) as copy:
        assert_counting(copy)
        assert_right_clock(copy)
        assert "could not be frozen" not in log_of(box)
        with copy.commands.connect(following.pid) as handle:
            handle.send_stdin("me\n")
            assert handle.wait(60).stdout == "got me\n"
        with copy.commands.connect(terminal.pid) as handle:
            handle.send_stdin("echo $A; exit\n")
            assert "kept" in handle.wait(60).stdout
        assert greeting(copy) == b"hello"
        assert copy.ports.list()[0].host_port != box.ports.list()[0].host_port
    with following:
        following.send_stdin("you\n")
        assert following.wait(60).stdout == "got you\n"  # in the original nothing has changed
    terminal.kill()
    Sandbox.remove_snapshot(made)


def test_commands_of_a_paused_sandbox_live_on_in_its_copy(box: Sandbox) -> None:
    following = box.commands.start("read line; echo got $line", stdin=True)
    box.pause()
    made = box.snapshot()
    assert box.get_info().state == "paused"
    with Sandbox.create(snapshot=made, request_timeout=300) as copy:
        name = "import socket; n = socket.gethostname(); print(n, socket.gethostbyname(n))"
        found = copy.commands.run(f"python3 -c '{name}'").stdout.split()
        assert found == [copy.get_info().name, "127.0.0.1"]
        with copy.commands.connect(following.pid) as handle:
            handle.send_stdin("me\n")
            assert handle.wait(60).stdout == "got me\n"
    box.resume()
    with following:
        following.send_stdin("you\n")
        assert following.wait(60).stdout == "got you\n"
    Sandbox.remove_snapshot(made)


def test_forks_differ_from_their_first_request_on(box: Sandbox) -> None:
    children = box.fork(3)
    try:
        found = []
        for child in children:
            assert isinstance(child, Sandbox), child
            found.append(child.commands.run(RANDOM).stdout.split())
            assert_counting(child)
        assert len({word for words in found for word in words}) == 9
        assert_counting(box)
    finally:
        for child in children:
            if isinstance(child, Sandbox):
                child.kill()


def test_suspended_and_woken_it_is_the_same(box: Sandbox) -> None:
    before, ports = counts(box), box.ports.list()
    box.suspend()
    assert box.get_info().state == "suspended"
    time.sleep(3)
    box.resume()
    after = counts(box)
    assert all(then <= now < then + 600 for then, now in zip(before, after, strict=True))
    assert_counting(box)
    assert_right_clock(box)
    assert box.ports.list() == ports
    assert greeting(box) == b"hello"
    log = box.commands.run("dmesg", user="root").stdout
    assert "stall" not in log and "lockup" not in log
    if "CONFIG_VMGENID=y" in _config(box):
        assert "crng reseeded due to virtual machine fork" in log


def _config(box: Sandbox) -> str:
    config = Path(box.get_info().kernel).parent / "config"
    return config.read_text() if config.exists() else ""


def test_over_the_serial_line(machine: dict[str, object]) -> None:
    with Sandbox.create(**machine, vsock="none") as sandbox:  # type: ignore[arg-type]
        sandbox.commands.run("echo kept > /tmp/file")
        made = sandbox.snapshot()
        with Sandbox.create(snapshot=made, request_timeout=300) as copy:
            assert copy.commands.run("cat /tmp/file").stdout == "kept\n"
            assert_right_clock(copy)
        sandbox.suspend()
        sandbox.resume()
        assert sandbox.commands.run("cat /tmp/file").stdout == "kept\n"
    Sandbox.remove_snapshot(made)
