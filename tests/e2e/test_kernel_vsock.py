"""The Linux kernel's own vsock tests (tools/testing/vsock) between the host and a guest."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from pathlib import Path

import pytest

from tests.e2e.conftest import script
from voidbox.agent import protocol
from voidbox.agent.client import AgentClient, RemoteProcess
from voidbox.sandbox.guest import Guest
from voidbox.vmm.config import MachineConfig, VsockConfig

pytestmark = pytest.mark.boot

CID = 3
HOST_CID = 2
# A Unix socket carries a stream of bytes: messages with bounds have no way through it. And poll()
# on the host's own end of one pays no heed to SO_RCVLOWAT; the guest's end is tested.
UNIX_CANNOT = {
    "client": ("SOCK_SEQPACKET",),
    "server": ("SOCK_SEQPACKET", "SOCK_STREAM poll() + SO_RCVLOWAT"),
}


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder with the built programs."""
    return Path(script("tests/e2e/vsock_test/build.sh"))


def options_of(mode: str, peer_cid: int, skipped: list[str]) -> list[str]:
    options = [f"--mode={mode}", f"--peer-cid={peer_cid}"]
    options += ["--control-host=stdin", "--control-port=0"]
    return options + [f"--skip={number}" for number in skipped]


def numbers_of(program: Path, names: tuple[str, ...]) -> list[str]:
    """Return the numbers of the tests whose names begin with one of `names`."""
    # --list ends with status 1.
    listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=False)
    rows = [line.split("\t") for line in (listed.stdout + listed.stderr).splitlines()]
    return [row[0].strip() for row in rows if len(row) > 1 and row[1].startswith(names)]


class Relay:
    """Joins the control channels of a program here and one in the guest."""

    def __init__(self, host: subprocess.Popen[bytes], guest: RemoteProcess) -> None:
        self._host = host
        self._guest = guest
        self.guest_report = b""
        self._threads = [
            threading.Thread(target=self._to_guest),
            threading.Thread(target=self._to_host),
        ]
        for thread in self._threads:
            thread.start()

    def _to_guest(self) -> None:
        assert self._host.stdout is not None
        while data := os.read(self._host.stdout.fileno(), 4096):
            self._guest.write(data)
        self._guest.end_input()

    def _to_host(self) -> None:
        assert self._host.stdin is not None
        for stream, data in self._guest.output():
            if stream == protocol.STDERR:
                self.guest_report += data
            elif self._host.poll() is None:
                os.write(self._host.stdin.fileno(), data)
        self._host.stdin.close()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def run_both(
    client: AgentClient, guest_program: str, host_program: Path, mode: str, path: str | None
) -> str:
    """Run the tests with the guest in `mode`; return what both said. Fails if either failed."""
    skipped = numbers_of(host_program, UNIX_CANNOT[mode]) if path else []
    other = "server" if mode == "client" else "client"
    guest = client.exec(
        [guest_program, *options_of(mode, HOST_CID, skipped)], stdin=True, user="root"
    )
    host = subprocess.Popen(
        [host_program, *options_of(other, CID, skipped)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "VSOCK_PATH": path or ""},
    )
    assert host.stdout is not None and host.stderr is not None
    with host.stdout, host.stderr:
        relay = Relay(host, guest)
        host_report = host.stderr.read().decode()
        host_status = host.wait(120)
        relay.join()
    guest_status = guest.wait().status
    report = f"host:\n{host_report}\nguest:\n{relay.guest_report.decode()}"
    assert (host_status, guest_status) == (0, 0), report
    return host_report


@pytest.mark.parametrize("backend", ["vhost", "unix"])
@pytest.mark.parametrize("name", ["minimal", "cloud"])
def test_the_kernels_own_tests_pass_both_ways(
    kernels: dict[str, str],
    guest_images: dict[str, str],
    programs: Path,
    tmp_path: Path,
    name: str,
    backend: str,
) -> None:
    path = str(tmp_path / "v") if backend == "unix" else None
    config = MachineConfig(
        kernels[name], guest_images[name], vsock=VsockConfig(CID, path, is_vhost=path is None)
    )
    host_program = programs / ("vsock_test_unix" if path else "vsock_test")
    with Guest(config) as guest:
        guest.machine.start()
        with guest.connect() as client:
            with (programs / "vsock_test").open("rb") as source:
                client.write_file("/tmp/vsock_test", source, mode=0o755)
            for mode in ("client", "server"):
                report = run_both(client, "/tmp/vsock_test", host_program, mode, path)
                skipped = len(numbers_of(host_program, UNIX_CANNOT[mode])) if path else 0
                expected = len(numbers_of(host_program, ("SOCK_",))) - skipped
                passed = re.findall(r"^[0-9]+ - .*\.\.\.ok$", report, re.MULTILINE)
                assert expected >= 6 and len(passed) == expected, report
