"""The Linux kernel's own vsock tests (tools/testing/vsock) between the host and a guest.

One program runs here and one in the first guest, on its console; the second serial port joins their
control channels, so the guest has no vsock socket but those of the tests.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.conftest import ROOT, script
from tests.e2e.test_boot import PROMPT
from voidbox.boot import newc
from voidbox.vmm.config import MachineConfig, VsockConfig
from voidbox.vmm.console import CallbackOutput
from voidbox.vmm.machine import Machine

pytestmark = pytest.mark.boot

CID = 3
HOST_CID = 2
# Both programs give up by themselves when nothing happens for 10 s.
LIMIT_S = 120
# In the order that their dependencies want, for kernels that have them as modules.
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_mmio",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
    "vsock_diag",
)
NO_SKIPS: tuple[str, ...] = ()
# What the program cannot do on a Unix socket, by how the tests' names begin: a stream carries no
# messages with bounds, so the backend offers no VIRTIO_VSOCK_F_SEQPACKET.
UNIX_SKIPS = ("SOCK_SEQPACKET",)
# And poll() of its own socket pays no heed to SO_RCVLOWAT; as a server it tests the guest's.
UNIX_CLIENT_SKIPS = (*UNIX_SKIPS, "SOCK_STREAM poll() + SO_RCVLOWAT")


class ConsoleGuest:
    """A guest with the test programs, driven by its console. Use as a context manager."""

    def __init__(self, config: MachineConfig) -> None:
        self._output = ""
        self._seen = 0
        self._has_output = threading.Condition()
        self.machine = Machine(config)
        self.machine.console.attach(CallbackOutput(self._on_output))

    def _on_output(self, data: bytes) -> None:
        with self._has_output:
            self._output += data.decode("utf-8", "replace").replace("\r", "")
            self._has_output.notify()

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait until `pattern` appears on the console in what has come since the last match."""
        with self._has_output:
            match = self._has_output.wait_for(
                lambda: re.compile(pattern, re.MULTILINE).search(self._output, self._seen), LIMIT_S
            )
            assert match, f"no {pattern!r} in:\n{self._output}"
            self._seen = match.end()
            return match

    def type(self, line: str) -> None:
        """Type a line and Enter."""
        self.machine.console.send(f"{line}\n".encode())

    def __enter__(self) -> ConsoleGuest:
        self.machine.start()
        self.expect(PROMPT)
        self.type("cd /vsock; for m in $(cat modules); do insmod $m.ko; done; echo loaded")
        answer = self.expect(r"^(loaded|insmod: .*)$")
        assert answer[1] == "loaded", answer[1]
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.close()


class Booted(NamedTuple):
    """A guest, and the path of its Unix socket if that is its backend."""

    guest: ConsoleGuest
    path: str | None


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder with the built programs."""
    return Path(script("tests/e2e/vsock_test/build.sh"))


def files_for(kernel: str, programs: Path) -> Iterator[newc.Entry]:
    """Yield what the guest needs more than the first guest has, in /vsock."""
    yield newc.Entry("vsock", stat.S_IFDIR | 0o755)
    for path in (
        programs / "vsock_test",
        programs / "vsock_diag_test",
        ROOT / "tests/e2e/vsock_test/guest.sh",
    ):
        yield newc.Entry(f"vsock/{path.name}", stat.S_IFREG | 0o755, path.read_bytes())
    available = {path.stem: path for path in (Path(kernel).parent / "lib").rglob("*.ko")}
    wanted = [name for name in MODULES if name in available]
    for name in wanted:
        yield newc.Entry(f"vsock/{name}.ko", stat.S_IFREG | 0o644, available[name].read_bytes())
    yield newc.Entry("vsock/modules", stat.S_IFREG | 0o644, "\n".join(wanted).encode())


@pytest.fixture(
    scope="module",
    params=[(name, backend) for name in ("minimal", "cloud") for backend in ("vhost", "unix")],
    ids=lambda param: "-".join(param),
)
def booted(
    request: pytest.FixtureRequest,
    kernels: dict[str, str],
    initramfs: str,
    programs: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Booted]:
    name, backend = request.param
    if backend == "vhost" and not os.path.exists("/dev/vhost-vsock"):
        pytest.skip("needs /dev/vhost-vsock: sudo modprobe vhost_vsock, or the lab: make test-lab")
    path = str(tmp_path_factory.mktemp("vsock") / "v") if backend == "unix" else None
    config = MachineConfig(
        kernels[name],
        initramfs,
        vsock=VsockConfig(CID, path, is_vhost=path is None),
        serial_line=True,
        extra_files=tuple(files_for(kernels[name], programs)),
    )
    with ConsoleGuest(config) as guest:
        yield Booted(guest, path)


def options_of(mode: str, peer_cid: int, skipped: list[str]) -> list[str]:
    # The program insists on the address of its own control channel.
    options = [f"--mode={mode}", f"--peer-cid={peer_cid}", "--control-host=-", "--control-port=-"]
    return options + [f"--skip={number}" for number in skipped]


def names_of(program: Path) -> dict[str, str]:
    """Return the names of a program's tests, by number."""
    # --list ends with status 1.
    listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=False)
    rows = [line.split("\t") for line in listed.stdout.splitlines()]
    return {row[0]: row[1] for row in rows[1:]}


def passed_in(report: str) -> list[str]:
    """Return the numbers of the tests that a program says have passed."""
    return re.findall(r"^(\d+) - .*\.\.\.ok$", report, re.MULTILINE)


def run_both(
    booted: Booted, guest_program: str, host_program: Path, guest_mode: str, skips: tuple[str, ...]
) -> None:
    """Run the tests, and fail unless both sides passed every one that is not skipped."""
    tests = names_of(host_program)
    skipped = [number for number, name in tests.items() if name.startswith(skips)]
    host_mode = "server" if guest_mode == "client" else "client"
    guest_options = options_of(guest_mode, HOST_CID, skipped)
    control = booted.guest.machine.connect_serial()
    assert control is not None
    with control:
        booted.guest.type(f"./guest.sh ./{guest_program} {' '.join(guest_options)}")
        booted.guest.expect(r"^guest\.sh: ready$")
        host = subprocess.run(
            [host_program, *options_of(host_mode, CID, skipped)],
            stdin=control,
            stdout=control,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "VSOCK_PATH": booted.path or ""},
            timeout=LIMIT_S,
            check=False,
        )
        guest = booted.guest.expect(r"(?s)(.*)^guest\.sh: status (\d+)$")
    report = f"host, status {host.returncode}:\n{host.stderr}\nguest:\n{guest[0]}"
    assert (host.returncode, guest[2]) == (0, "0"), report
    expected = [number for number in tests if number not in skipped]
    assert expected and passed_in(host.stderr) == passed_in(guest[1]) == expected, report


@pytest.mark.parametrize("guest_mode", ["client", "server"])
def test_the_kernels_own_tests_pass(booted: Booted, programs: Path, guest_mode: str) -> None:
    program, skips = "vsock_test", NO_SKIPS
    if booted.path:
        program = "vsock_test_unix"
        skips = UNIX_SKIPS if guest_mode == "client" else UNIX_CLIENT_SKIPS
    run_both(booted, "vsock_test", programs / program, guest_mode, skips)


@pytest.mark.skipif(
    "VOIDBOX_LAB" not in os.environ,
    reason="counts the host's vsock sockets, so no other program may have one: make test-lab",
)
@pytest.mark.parametrize("guest_mode", ["client", "server"])
def test_both_kernels_list_the_tests_sockets_and_no_other(
    booted: Booted, programs: Path, guest_mode: str
) -> None:
    if booted.path:
        pytest.skip("the host's end is no AF_VSOCK socket: its kernel has none to list")
    run_both(booted, "vsock_diag_test", programs / "vsock_diag_test", guest_mode, NO_SKIPS)
