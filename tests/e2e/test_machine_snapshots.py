"""Linux guests that go on from a snapshot: clocks, timers, connections, disks, and many at once.

One guest is booted a kernel, put to work and saved; every test restores it, and what it finds there
is what was going on at that moment.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.guest_at_work import MARK, MARK_AT, NOTE
from tests.in_process import InProcessGuest as Guest
from voidbox.agent import connect
from voidbox.agent.call import RequestFailed
from voidbox.agent.client import AgentClient
from voidbox.nat.config import NatConfig
from voidbox.nat.forwards import parse_forward
from voidbox.sandbox.guest import MachineEndpoint
from voidbox.sandbox.root import Root, make_upper
from voidbox.snapshot import folder as snapshot_folder
from voidbox.vmm.config import DiskConfig, MachineConfig, VsockConfig, host_memory_bytes
from voidbox.vmm.console import CallbackOutput
from voidbox.vmm.machine import Machine

pytestmark = [pytest.mark.boot, pytest.mark.slow]

MEMORY_BYTES = 256 << 20
DISK_BYTES = 64 << 20
RESTORES = int(os.environ.get("VOIDBOX_RESTORES", "5"))
AT_ONCE = int(os.environ.get("VOIDBOX_RESTORES_AT_ONCE", "12"))
# The lab's guests are slow, and slower the more of them run.
PATIENCE_S = 180.0
AWAY_S = 30.0
GUEST_PORT = 8000

WORK = Path(__file__).with_name("guest_at_work.py")


class Kind(NamedTuple):
    """A guest to save."""

    kernel: str
    cpus: int
    clocksource: str
    on_disks: bool


KINDS = (
    Kind("minimal", 2, "kvm-clock", on_disks=False),
    Kind("cloud", 1, "tsc", on_disks=True),
)


class Saved(NamedTuple):
    """A guest that was saved at work, and is paused: it goes on at the end."""

    kind: Kind
    folder: Path
    guest: Guest
    client: AgentClient
    notes_gpa: int
    watched: list[Watched]
    watched_at: float
    at: float
    sleeper: int


def run(client: AgentClient, line: str, timeout_s: float = PATIENCE_S) -> str:
    process = client.exec(shell=line, user="root")
    output = b"".join(data for _, data in process.output())
    status = process.wait().status
    assert status == 0, f"{line!r}: {status}, {output.decode(errors='replace')}"
    return output.decode(errors="replace")


def read(client: AgentClient, path: str) -> bytes:
    content = io.BytesIO()
    client.read_file(path, content, user="root")
    return content.getvalue()


class Watched(NamedTuple):
    """What a guest's watcher of one CPU noted."""

    count: float
    falls: float
    clock_s: float


def find_notes(machine: Machine) -> int:
    """Return where in the guest's memory its watchers' page is."""
    for region in machine.memory:
        at = -1
        while (at := region.map.find(MARK, at + 1)) >= 0:
            if at % 4096 == MARK_AT:
                return region.gpa + at - MARK_AT
    raise AssertionError("the watchers' page is not in memory")


def watched(machine: Machine, notes_gpa: int) -> list[Watched]:
    notes = machine.memory.read(notes_gpa, 4096)
    cpus = range(machine.config.cpus)
    return [Watched(*NOTE.unpack_from(notes, NOTE.size * index)) for index in cpus]


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def exists(client: AgentClient, path: str) -> bool:
    try:
        client.stat(path, user="root")
    except RequestFailed:
        return False
    return True


def config_of(
    kind: Kind, kernel: str, image: str, place: Path, port: int, memory_bytes: int = MEMORY_BYTES
) -> MachineConfig:
    scratch = place / "scratch"
    with open(scratch, "wb") as file:
        file.truncate(DISK_BYTES)
    config = MachineConfig(
        kernel,
        f"{image}/initramfs.cpio",
        cpus=kind.cpus,
        memory_bytes=memory_bytes,
        vsock=VsockConfig(path=str(place / "vsock")),
        net=NatConfig(
            resolvers=(("127.0.0.1", 53),),
            allow_host_ports=(port,),
            publish=(parse_forward(f"127.0.0.1:0:{GUEST_PORT}"),),
        ),
        disks=(DiskConfig(str(scratch), overlay=str(place / "overlay"), serial="scratch"),),
    )
    if kind.clocksource == "tsc":
        config = config._replace(cmdline=f"{config.cmdline} clocksource=tsc")
    if kind.on_disks:
        make_upper(str(place / "upper"), 256 << 20)
        root = Root(f"{image}/boot.cpio", f"{image}/runtime.erofs", disk_bytes=256 << 20)
        config = root.applied_to(config, str(place / "upper"))
    return config


@contextlib.contextmanager
def far_server() -> Iterator[int]:
    """A TCP server that takes connections and says nothing; its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield server.getsockname()[1]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind.kernel}-{kind.cpus}")
def saved(
    request: pytest.FixtureRequest, kernels: dict[str, str], guest_images: dict[str, str]
) -> Iterator[Saved]:
    kind: Kind = request.param
    with contextlib.ExitStack() as own:
        place = Path(own.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        port = own.enter_context(far_server())
        silent = own.enter_context(socket.socket(socket.AF_UNIX))
        silent.bind(str(place / "vsock_5000"))
        silent.listen()
        image = os.path.dirname(guest_images[kind.kernel])
        config = config_of(kind, kernels[kind.kernel], image, place, port)
        guest = own.enter_context(Guest(config))
        guest.machine.start()
        client = own.enter_context(guest.connect(timeout_s=PATIENCE_S))
        clock = read(client, "/sys/devices/system/clocksource/clocksource0/current_clocksource")
        assert clock.decode().strip() == kind.clocksource
        disk = run(client, "grep -l scratch /sys/block/vd*/serial").split("/")[3]
        client.write_file("/tmp/work.py", io.BytesIO(WORK.read_bytes()), user="root")
        log = "</dev/null >/tmp/work.log 2>&1"
        run(client, f"python3 /tmp/work.py {port} /dev/{disk} {log} &")
        for name in ("waits-tcp", "waits-vsock"):
            wait_for(lambda name=name: exists(client, f"/tmp/{name}"), name)  # type: ignore[misc]
        notes_gpa = find_notes(guest.machine)
        wait_for(
            lambda: all(each.count >= 2 for each in watched(guest.machine, notes_gpa)), "watchers"
        )
        before, watched_at = watched(guest.machine, notes_gpa), time.monotonic()
        guest.machine.snapshot(str(place / "quiet"))
        at = time.monotonic()
        # A command whose connection will be gone; output and a disk that are written without end.
        sleeper = client.exec(argv=["sleep", "98765"], user="root")
        run(client, "echo >/tmp/go")
        wait_for(lambda: exists(client, "/tmp/writes"), "the writer")
        report = guest.machine.snapshot(str(place / "snap"))
        print(f"\n{kind}: {report}")
        assert run(client, "echo fine") == "fine\n"
        guest.machine.pause()  # the processor is the restored ones'
        yield Saved(kind, place, guest, client, notes_gpa, before, watched_at, at, sleeper.pid)
        guest.machine.resume()
        assert run(client, "echo fine") == "fine\n", "the original does not go on"


@contextlib.contextmanager
def restored(
    saved: Saved, memory: str = "lazy", snap: str = "snap", **changes: object
) -> Iterator[Machine]:
    """A machine that goes on from the snapshot, with files of its own; not started."""
    config = saved.guest.machine.config._replace(**changes)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as own:
        disks = tuple(
            disk._replace(overlay=f"{own}/{index}")
            if disk.overlay
            else disk._replace(path=f"{own}/{index}")
            if disk.is_own
            else disk
            for index, disk in enumerate(config.disks)
        )
        config = config._replace(vsock=VsockConfig(path=f"{own}/vsock"), disks=disks)
        path = str(saved.folder / snap)
        with Machine.from_snapshot(path, config, memory=memory) as machine:  # type: ignore[arg-type]
            yield machine


def agent_of(saved: Saved, machine: Machine) -> AgentClient:
    return connect.connect(MachineEndpoint(machine), saved.guest.secret, PATIENCE_S)


@pytest.mark.parametrize("memory", ["lazy", "eager"])
def test_the_agent_answers_and_everything_is_as_it_was(saved: Saved, memory: str) -> None:
    with restored(saved, memory) as machine:
        machine.start()
        with agent_of(saved, machine) as client:
            assert not client.is_serial
            assert exists(client, "/tmp/writes")
            log = run(client, "dmesg")
            assert "lockup" not in log
            assert "rcu: INFO" not in log


def test_clocks_and_timers_go_on_from_where_they_were(saved: Saved) -> None:
    """Nobody talks to the guest: any I/O would wake what sleeps."""
    time.sleep(max(0.0, saved.at + AWAY_S - time.monotonic()))
    for _ in range(RESTORES):
        with restored(saved, snap="quiet") as machine:
            started = time.monotonic()
            machine.start()

            def has_woken(machine: Machine = machine) -> bool:
                now = watched(machine, saved.notes_gpa)
                pairs = zip(saved.watched, now, strict=True)
                # What was noted between our look and the snapshot counts for one.
                return all(after.count >= before.count + 3 for before, after in pairs)

            wait_for(has_woken, "a CPU's timer stands still")
            most_s = time.monotonic() - started + saved.at - saved.watched_at
            for before, after in zip(saved.watched, watched(machine, saved.notes_gpa), strict=True):
                assert after.falls == 0, "CLOCK_MONOTONIC fell"
                assert 0 < after.clock_s - before.clock_s < most_s + 5, "CLOCK_MONOTONIC jumped"


def test_connections_of_before_are_over_and_listeners_are_not(saved: Saved) -> None:
    with restored(saved) as machine:
        machine.start()
        with agent_of(saved, machine) as client:
            for name in ("tcp", "vsock"):
                wait_for(lambda name=name: exists(client, f"/tmp/{name}"), name)  # type: ignore[misc]
            assert read(client, "/tmp/tcp") == b"ConnectionResetError"
            assert read(client, "/tmp/vsock") in (b"ConnectionResetError", b"end")
            sleeper = f"/proc/{saved.sleeper}"
            wait_for(lambda: not exists(client, sleeper), "a command of before goes on")
            assert machine.network is not None
            (port,) = [each.host_port for each in machine.network.forwards.list()]
            with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
                assert sock.recv(10) == b"hello"
    saved.guest.machine.resume()
    assert not exists(saved.client, "/tmp/tcp"), "the original lost its connection"
    saved.guest.machine.pause()


def test_disk_and_memory_are_of_the_same_moment(saved: Saved) -> None:
    with restored(saved) as machine:
        machine.start()
        with agent_of(saved, machine) as client:
            client.write_file("/tmp/stop", io.BytesIO(b""), user="root")
            wait_for(lambda: exists(client, "/tmp/disk"), "the writer does not end")
            verdict = read(client, "/tmp/disk").decode()
            assert verdict.startswith("0 wrong of "), verdict
            assert int(verdict.split()[-1]) >= 20
            assert "I/O error" not in run(client, "dmesg")


def test_output_that_never_ended_goes_on(saved: Saved) -> None:
    output = bytearray()
    with restored(saved) as machine:
        machine.console.attach(CallbackOutput(output.extend))
        machine.start()
        wait_for(lambda: output.count(b"flood\r\n") > 100, "the UART says nothing")


def test_a_snapshot_of_a_restored_guest(saved: Saved) -> None:
    with restored(saved) as machine:
        machine.start()
        with agent_of(saved, machine) as client:
            run(client, "echo second > /tmp/second")
            machine.snapshot(str(saved.folder / "again"))
            assert run(client, "cat /tmp/second") == "second\n"
    with restored(saved, snap="again") as machine:
        machine.start()
        with agent_of(saved, machine) as client:
            assert run(client, "cat /tmp/second") == "second\n"
    assert not snapshot_folder.is_in_use(str(saved.folder / "again"))


def test_many_at_once_share_their_memory(saved: Saved) -> None:
    if saved.kind is not KINDS[0]:
        pytest.skip("once is enough: all that differs is in the guest")
    fds, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    with contextlib.ExitStack() as own:
        for _ in range(AT_ONCE):
            machine = own.enter_context(restored(saved))
            machine.start()
            with agent_of(saved, machine) as client:
                assert run(client, "echo fine") == "fine\n"
            machine.pause()  # its turn is over, but its memory is there
        pss = _memory_of(str(saved.folder / "snap" / "memory"))
        print(f"\n{AT_ONCE} guests, each {pss / AT_ONCE / 2**20:.1f} MiB PSS of them")
        assert pss / AT_ONCE < MEMORY_BYTES / 4
        assert snapshot_folder.is_in_use(str(saved.folder / "snap"))
    wait_for(lambda: threading.active_count() <= threads, "threads are left")
    assert len(os.listdir("/proc/self/fd")) <= fds


def _memory_of(path: str) -> int:
    """Return the PSS of this process's maps of a file."""
    pss = 0
    is_it = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if "-" in line.split(" ", 1)[0]:
            is_it = line.endswith(path)
        elif is_it and name == "Pss":
            pss += int(value.split()[0]) << 10
    return pss


def test_a_large_guest(kernels: dict[str, str], guest_images: dict[str, str]) -> None:
    """4 GiB: RAM on both sides of the hole; Linux takes what is above first."""
    size = 4 << 30
    if host_memory_bytes() < size + (1 << 30):
        pytest.skip("needs a host with more than 5 GiB: scripts/kvm-lab --mem 6144")
    with contextlib.ExitStack() as own:
        place = Path(own.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        image = os.path.dirname(guest_images["minimal"])
        kind = KINDS[0]._replace(cpus=2)
        port = own.enter_context(far_server())
        config = config_of(kind, kernels["minimal"], image, place, port, size)
        guest = own.enter_context(Guest(config))
        guest.machine.start()
        with guest.connect(timeout_s=PATIENCE_S) as client:
            run(client, "dd if=/dev/urandom of=/tmp/high bs=1M count=64 2>/dev/null")
            digest = run(client, "sha256sum /tmp/high")
            guest.machine.snapshot(str(place / "snap"))
            saved = Saved(kind, place, guest, client, 0, [], 0, 0, 0)
            with restored(saved) as machine:
                machine.start()
                run(client, "rm /tmp/high")  # the original's
                with agent_of(saved, machine) as other:
                    assert run(other, "sha256sum /tmp/high") == digest
                    assert int(run(other, "nproc")) == 2


def test_the_kernels_vsock_gets_another_address(
    kernels: dict[str, str], guest_images: dict[str, str], tmp_path: Path
) -> None:
    """Addresses are the whole host's there: the original keeps its own."""
    if not os.path.exists("/dev/vhost-vsock"):
        pytest.skip("needs /dev/vhost-vsock: sudo modprobe vhost_vsock, or the lab: make test-lab")
    config = MachineConfig(
        kernels["minimal"],
        guest_images["minimal"],
        memory_bytes=MEMORY_BYTES,
        vsock=VsockConfig(cid=77, is_vhost=True),
    )
    with Guest(config) as guest:
        guest.machine.start()
        with guest.connect(timeout_s=PATIENCE_S) as client:
            assert not client.is_serial
            guest.machine.snapshot(str(tmp_path / "snap"))
            assert run(client, "echo fine") == "fine\n"
            restored_config = guest.machine.config._replace(
                vsock=VsockConfig(cid=78, is_vhost=True)
            )
            with Machine.from_snapshot(str(tmp_path / "snap"), restored_config) as machine:
                machine.start()
                endpoint = MachineEndpoint(machine)
                with connect.connect(endpoint, guest.secret, PATIENCE_S) as other:
                    assert not other.is_serial
                    assert run(other, "echo fine") == "fine\n"
                    machine.pause()
                    machine.resume()
                    assert run(other, "echo again") == "again\n"
            assert run(client, "echo fine") == "fine\n"
