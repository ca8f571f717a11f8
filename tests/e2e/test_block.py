"""Disks in real guests: file systems, crashes, overlays over one base."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, script
from tests.e2e.test_agent import run
from tests.in_process import InProcessGuest as Guest
from voidbox.agent.client import AgentClient
from voidbox.block.backend import Backend
from voidbox.block.open_disk import open_backend
from voidbox.errors import ConfigError
from voidbox.vmm.config import DiskConfig, MachineConfig

pytestmark = pytest.mark.boot

# Writes files for ever, and says of each when it is on the disk.
WRITER = """
mkdir /mnt && mount /dev/vda /mnt || exit
i=0
while true; do
    i=$((i + 1))
    head -c $((i * 7919 % 300000)) /dev/urandom | dd of=/mnt/$i conv=fsync 2>/dev/null
    [ $((i % 5)) = 0 ] && rm /mnt/$((i - 3)) && sync
    echo $(sha256sum < /mnt/$i | cut -c1-64) $i
done
"""
FILES_BEFORE_THE_CRASH = 25


@pytest.fixture(scope="session")
def images(kernels: dict[str, str]) -> dict[str, str]:
    """Guest images with mke2fs and e2fsck, by the kernel that they are for."""
    build = ("scripts/build_guest_image.sh", "--with", "e2fsprogs")
    return {
        "minimal": script(*build),
        "cloud": script(*build, "--kernel", kernels["cloud"]),
    }


class Host:
    """What a test boots guests with."""

    def __init__(self, kernel: str, image: str, folder: Path) -> None:
        self.kernel, self.image, self.folder = kernel, image, folder

    def make_disk(self, name: str = "disk", mib: int = 64) -> str:
        path = self.folder / name
        with path.open("wb") as file:
            file.truncate(mib << 20)
        return str(path)

    @contextmanager
    def boot(self, *disks: DiskConfig) -> Iterator[tuple[Guest, AgentClient]]:
        config = MachineConfig(self.kernel, self.image, memory_bytes=256 << 20, disks=disks)
        with Guest(config) as guest:
            guest.machine.start()
            with guest.connect(300) as client:
                sh(client, "mkdir /mnt")
                yield guest, client


@pytest.fixture(params=["minimal", "cloud"])
def host(
    request: pytest.FixtureRequest,
    kernels: dict[str, str],
    images: dict[str, str],
    tmp_path: Path,
) -> Host:
    return Host(kernels[request.param], images[request.param], tmp_path)


@pytest.fixture
def minimal(kernels: dict[str, str], images: dict[str, str], tmp_path: Path) -> Host:
    return Host(kernels["minimal"], images["minimal"], tmp_path)


def sh(client: AgentClient, line: str) -> str:
    """Run a line as root; it must succeed."""
    out, err, status = run(client, f"set -e; {line}", user="root")
    assert status == 0, (out, err)
    return out


def test_a_file_system_on_a_disk(host: Host) -> None:
    path = host.make_disk()
    with host.boot(DiskConfig(path, serial="my-disk")) as (guest, client):
        assert sh(client, "cat /sys/block/vda/serial") == "my-disk"
        assert sh(client, "cat /sys/block/vda/queue/write_cache") == "write back\n"
        sh(client, "mkfs.ext4 -q /dev/vda; mount /dev/vda /mnt")
        sums = sh(
            client,
            "cd /mnt; for i in 1 2 3; do head -c 3000000 /dev/urandom > $i; done; sync;"
            "sha256sum 1 2 3",
        )
        # Read again from the disk itself.
        sh(client, "cd /; umount /mnt; mount /dev/vda /mnt")
        assert sh(client, "cd /mnt; sha256sum 1 2 3") == sums
        full_blocks = os.stat(path).st_blocks
        sh(client, "rm /mnt/1 /mnt/2 /mnt/3; sync; fstrim /mnt; cd /; umount /mnt")
        assert os.stat(path).st_blocks < full_blocks - 10_000  # of 512 bytes
        assert "clean" in sh(
            client, "e2fsck -fn /dev/vda 2>&1; dumpe2fs -h /dev/vda 2>&1 | grep state"
        )
        sh(client, "dd if=/dev/urandom of=/dev/vda bs=1M count=8 seek=8 conv=fsync 2>/dev/null")
        found = sh(client, "dd if=/dev/vda bs=1M skip=8 count=8 2>/dev/null | sha256sum")[:64]
        (counts,) = guest.machine.statistics().disks
    with open(path, "rb") as file:
        file.seek(8 << 20)
        assert hashlib.sha256(file.read(8 << 20)).hexdigest() == found
    assert counts.writes
    assert counts.flushes
    assert counts.discards
    assert (counts.errors, counts.refused) == (0, 0)


@pytest.mark.parametrize("is_overlay", [False, True], ids=["raw", "overlay"])
def test_what_was_synced_survives_a_kill_of_the_vmm(minimal: Host, is_overlay: bool) -> None:
    path = minimal.make_disk()
    with minimal.boot(DiskConfig(path)) as (_, client):
        sh(client, "mkfs.ext4 -q /dev/vda")
    overlay = str(minimal.folder / "overlay") if is_overlay else None
    disk = f"{path},overlay={overlay}" if is_overlay else path
    command = [sys.executable, "-m", "voidbox", "run", "--kernel", minimal.kernel]
    command += [
        "--initramfs",
        minimal.image,
        "--disk",
        disk,
        "-u",
        "root",
        "--",
        "sh",
        "-c",
        WRITER,
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    sums = {}
    with process:
        for line in process.stdout:
            digest, name = line.split()
            sums[name] = digest
            if len(sums) == FILES_BEFORE_THE_CRASH:
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert len(sums) >= FILES_BEFORE_THE_CRASH
    with minimal.boot(DiskConfig(path, overlay=overlay)) as (_, client):
        sh(client, "mount /dev/vda /mnt; umount /mnt")  # which replays the journal
        sh(client, "e2fsck -fn /dev/vda")
        sh(client, "mount /dev/vda /mnt")
        found = dict(
            reversed(line.split("  "))
            for line in sh(client, "cd /mnt; sha256sum [0-9]* 2>/dev/null").splitlines()
        )
    removed = {str(number - 3) for number in map(int, sums) if number % 5 == 0}
    for name, digest in sums.items():
        if name not in removed:
            # The one after the last that was said may have removed one more.
            assert found.get(name) == digest or int(name) == len(sums) - 2, name
    assert not removed & found.keys()


def test_two_machines_share_a_base(minimal: Host) -> None:
    path = minimal.make_disk()
    with minimal.boot(DiskConfig(path)) as (_, client):
        sh(
            client,
            "mkfs.ext4 -q /dev/vda; mount /dev/vda /mnt; echo base > /mnt/file; umount /mnt",
        )
    before = hashlib.sha256(Path(path).read_bytes()).digest()
    overlays = [str(minimal.folder / name) for name in ("one", "two")]
    disks = [DiskConfig(path, overlay=overlay) for overlay in overlays]
    with minimal.boot(disks[0]) as (_, one), minimal.boot(disks[1]) as (_, two):
        for client, word in ((one, "first"), (two, "second")):
            sh(client, f"mount /dev/vda /mnt; cat /mnt/file; echo {word} >> /mnt/file; umount /mnt")
    assert hashlib.sha256(Path(path).read_bytes()).digest() == before
    assert all(os.stat(overlay).st_blocks * 512 < 8 << 20 for overlay in overlays)
    with minimal.boot(*disks, DiskConfig(path, is_read_only=True)) as (_, client):
        out = sh(
            client,
            "for disk in a b; do mount /dev/vd$disk /mnt; cat /mnt/file; umount /mnt; done;"
            "mount -o ro /dev/vdc /mnt; cat /mnt/file; umount /mnt",
        )
        assert out == "base\nfirst\nbase\nsecond\nbase\n"
        sh(client, "! mount -o rw /dev/vdc /mnt || ! touch /mnt/new")
        assert run(client, "dd if=/dev/zero of=/dev/vdc count=1", user="root")[2] != 0
    assert hashlib.sha256(Path(path).read_bytes()).digest() == before


def test_a_disk_that_shrinks_gives_io_errors_and_no_more(minimal: Host) -> None:
    path = minimal.make_disk()
    with minimal.boot(DiskConfig(path)) as (guest, client):
        os.truncate(path, 1 << 20)
        assert (
            sh(client, "dd if=/dev/vda of=/dev/null bs=512k count=2 2>/dev/null; echo yes")
            == "yes\n"
        )
        _, err, status = run(
            client, "dd if=/dev/vda of=/dev/null bs=512k skip=4 count=1", user="root"
        )
        assert status != 0
        assert "Input/output error" in err
        assert sh(client, "echo alive") == "alive\n"
        assert guest.machine.statistics().disks[0].errors > 0


@pytest.fixture
def loop_device(kernels: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """A block device of 16 MiB. Only in the lab, a machine of our own."""
    if "VOIDBOX_LAB" not in os.environ:
        pytest.skip("makes a block device: run it in the lab, make test-lab")
    if not os.path.exists("/dev/loop-control"):
        modules = Path(kernels["cloud"]).resolve().parent / "lib/modules" / os.uname().release
        (module,) = modules.rglob("loop.ko*")
        subprocess.run(["insmod", str(module)], check=True)
    (tmp_path / "backing").write_bytes(b"\xaa" * (16 << 20))
    device = script("losetup", "--find", "--show", str(tmp_path / "backing"))
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


def test_a_block_device(loop_device: str, tmp_path: Path) -> None:
    def read(backend: Backend, offset: int, length: int) -> bytes:
        data = bytearray(length)
        backend.read([memoryview(data)], offset, length)
        return bytes(data)

    backend = open_backend(loop_device)
    assert backend.size_bytes == 16 << 20
    backend.write([b"x" * 512, b"y" * 512], 512, 1024)
    backend.zero(4096, 8192, True)
    backend.zero(16384, 4096, False)
    assert read(backend, 0, 2048) == b"\xaa" * 512 + b"x" * 512 + b"y" * 512 + b"\xaa" * 512
    assert read(backend, 4096, 20480) == (
        bytes(8192) + b"\xaa" * 4096 + bytes(4096) + b"\xaa" * 4096
    )
    before = (tmp_path / "backing").stat().st_blocks
    backend.discard(8 << 20, 8 << 20)
    assert (tmp_path / "backing").stat().st_blocks < before - (7 << 20) // 512
    backend.flush()
    with pytest.raises(ConfigError, match=r"in use by another machine|the host itself uses it"):
        open_backend(loop_device)
    backend.close()
    overlay = open_backend(loop_device, overlay=str(tmp_path / "overlay"))
    overlay.write([b"z" * 512], 512, 512)
    assert read(overlay, 0, 1536) == b"\xaa" * 512 + b"z" * 512 + b"y" * 512
    overlay.close()
    subprocess.run(["mkfs.ext4", "-q", loop_device], check=True)
    (tmp_path / "mnt").mkdir()
    subprocess.run(["mount", loop_device, str(tmp_path / "mnt")], check=True)
    try:
        with pytest.raises(ConfigError, match="the host itself uses it: unmount it first"):
            open_backend(loop_device)
        open_backend(loop_device, is_read_only=True).close()
    finally:
        subprocess.run(["umount", str(tmp_path / "mnt")], check=True)
