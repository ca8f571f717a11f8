"""Linux's own drivers on our virtio devices."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.e2e.test_boot import PROMPT, boot
from voidbox.cli import exit_status

pytestmark = pytest.mark.boot


def test_linux_draws_entropy(kernels: dict[str, str], initramfs: str) -> None:
    with boot(kernels["minimal"], initramfs) as session:
        session.expect(PROMPT)
        session.type("cat /sys/class/misc/hw_random/rng_current; echo\r")
        session.expect(r"virtio_rng")
        session.type("for i in 1 2; do head -c 20000 /dev/hwrng | md5sum; done; echo d''one\r")
        session.expect(r"done\r")
        sums = [line for line in session.screen.splitlines() if line.endswith("  -")]
        assert len(set(sums)) == 2
        session.type("poweroff -f\r")
        assert session.wait() == exit_status.OK


@pytest.mark.parametrize("backend", ["unix", "vhost"])
def test_linux_answers_on_vsock(
    kernels: dict[str, str], initramfs: str, tmp_path: Path, backend: str
) -> None:
    if backend == "vhost" and not os.path.exists("/dev/vhost-vsock"):
        pytest.skip("needs /dev/vhost-vsock: sudo modprobe vhost_vsock, or the lab: make test-lab")
    path = str(tmp_path / "v.sock")
    where = path if backend == "unix" else "vhost"
    with boot(kernels["minimal"], initramfs, "--vsock", where, "--cid", "42") as session:
        session.expect(PROMPT)
        # Nobody listens on the port: the guest's kernel says so, at once.
        if backend == "unix":
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(30)
                client.connect(path)
                client.sendall(b"CONNECT 1234\n")
                assert client.recv(100) == b""
        else:
            with socket.socket(socket.AF_VSOCK) as client:
                client.settimeout(30)
                with pytest.raises(ConnectionResetError):
                    client.connect((42, 1234))
        session.type("poweroff -f\r")
        assert session.wait() == exit_status.OK
    assert not os.path.exists(path)
