"""A guest that takes all it can get harms neither its host nor the guest beside it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from voidbox import Sandbox

pytestmark = [
    pytest.mark.boot,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="it mounts a small tmpfs: run it as root"),
]

DEADLINE_S = 300.0
HOST_BYTES, DISK_BYTES, MEMORY_MB = 256 << 20, 1 << 30, 192
# Beside the guest's memory: Python, buffers, what is under way.
OWN_BYTES_MAX = 300 << 20
FILES_MAX = 200  # of the keeper: the worker has the connections
OPENER = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
kept, refused = [], 0
for number in range(3000):
    kind = socket.SOCK_DGRAM if number % 3 == 2 else socket.SOCK_STREAM
    sock = socket.socket(socket.AF_INET, kind)
    sock.setblocking(False)
    try:
        sock.connect(("10.0.2.2", int(sys.argv[1])))
        if kind == socket.SOCK_DGRAM:
            sock.send(b"x")
    except BlockingIOError:
        pass
    except OSError:
        refused += 1
    kept.append(sock)
print(len(kept), refused)
"""


@pytest.fixture(scope="module")
def small_disk() -> Iterator[Path]:
    """A file system that is soon full, with a disk of the guest's that is larger."""
    with tempfile.TemporaryDirectory(prefix="vb-") as folder:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={HOST_BYTES}", "none", folder]
        subprocess.run(mount, check=True)
        try:
            disk = Path(folder, "disk")
            with disk.open("wb") as file:
                file.truncate(DISK_BYTES)
            yield disk
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """A port that takes whoever comes, and keeps them."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server:
        kept = []

        def serve() -> None:
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    for sock in kept:
        sock.close()


@pytest.fixture(scope="module")
def guests(
    small_disk: Path, server: int, kernels: dict[str, str], guest_images: dict[str, str]
) -> Iterator[tuple[Sandbox, Sandbox]]:
    """One that is hostile, and its neighbour; all that is of them lies on the small file system."""
    state = str(small_disk.parent / "state")
    given = {
        "kernel": kernels["minimal"], "image": guest_images["minimal"], "memory": f"{MEMORY_MB}M",
        "timeout": 3000, "request_timeout": DEADLINE_S, "state_folder": state,
    }  # fmt: skip
    with (
        Sandbox.create(**given, disks=[str(small_disk)], allow_host_ports=[server]) as hostile,
        Sandbox.create(**given) as neighbour,
    ):
        yield hostile, neighbour


@pytest.fixture(autouse=True)
def both_live_on(guests: tuple[Sandbox, Sandbox]) -> Iterator[None]:
    """After each test both answer, the host has room, and the one is as large as it may be."""
    yield
    for guest in guests:
        assert guest.commands.run("echo here", timeout=DEADLINE_S).stdout == "here\n"
        guest.set_timeout(3000)  # its record can be written
    metrics = guests[0].get_metrics()
    assert metrics.host_memory_bytes < (MEMORY_MB << 20) + OWN_BYTES_MAX


def test_a_disk_that_is_larger_than_the_hosts(
    guests: tuple[Sandbox, Sandbox], small_disk: Path
) -> None:
    hostile, _ = guests
    write = "tr '\\0' x </dev/zero | dd of=/dev/vda bs=1M iflag=fullblock conv=fsync"
    done = hostile.commands.run(write, user="root", timeout=DEADLINE_S)
    assert done.exit_code != 0 and ("rror" in done.stderr or "space" in done.stderr)
    found = os.statvfs(small_disk.parent)
    free = found.f_bavail * found.f_frsize
    assert free >= HOST_BYTES // 20 // 2  # others write there, too
    os.truncate(small_disk, 0)  # room again, of the host's own making
    os.truncate(small_disk, DISK_BYTES)


def test_all_of_its_memory(guests: tuple[Sandbox, Sandbox]) -> None:
    hostile, _ = guests
    eat = "x = []\nwhile True: x.append(bytearray(b'x') * (4 << 20))"
    done = hostile.commands.run(["python3", "-c", eat], timeout=DEADLINE_S)
    assert done.exit_code != 0


def test_a_console_that_never_rests(guests: tuple[Sandbox, Sandbox], small_disk: Path) -> None:
    hostile, neighbour = guests
    flood = hostile.commands.run("yes >/dev/console", user="root", background=True)
    log = small_disk.parent / "state" / "sandboxes" / hostile.sandbox_id / "console.log"
    for _ in range(20):
        assert neighbour.commands.run("true", timeout=DEADLINE_S).exit_code == 0
    flood.kill()
    assert log.stat().st_size > 0


def test_more_connections_than_there_may_be(
    guests: tuple[Sandbox, Sandbox], server: int, small_disk: Path
) -> None:
    hostile, neighbour = guests
    done = hostile.commands.run(
        ["python3", "-c", OPENER, str(server)], user="root", timeout=DEADLINE_S
    )
    assert done.exit_code == 0, done.stderr
    assert neighbour.commands.run("true", timeout=DEADLINE_S).exit_code == 0
    record = small_disk.parent / "state" / "sandboxes" / hostile.sandbox_id / "state.json"
    keeper = json.loads(record.read_text())["pid"]
    assert len(os.listdir(f"/proc/{keeper}/fd")) < FILES_MAX
