"""What the benchmarks of devices share: the default guest, under voidbox and under QEMU microvm."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from voidbox.agent import connect
from voidbox.agent.client import AgentClient
from voidbox.boot import newc
from voidbox.sandbox import guest as sandbox_guest
from voidbox.vmm.config import DEFAULT_CMDLINE, MachineConfig

ROOT = Path(__file__).parents[1]
MEMORY_MIB = 512
QEMU_CID = 55
LIMIT_S = 120
ATTEMPTS = 3  # a guest in the lab may die at its start; the rounds before are not to be lost by it


class QemuEndpoint:
    """A guest of QEMU's, for the agent's client."""

    def __init__(self, process: subprocess.Popen[bytes], console: Path) -> None:
        self.cid = QEMU_CID
        self._console = console
        self._process = process

    def connect(self, port: int, timeout_s: float) -> socket.socket:
        """See Endpoint."""
        sock = socket.socket(socket.AF_VSOCK)
        try:
            sock.settimeout(timeout_s)
            sock.connect((self.cid, port))
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
        return sock

    def connect_serial(self) -> None:
        """See Endpoint."""

    def has_ended(self, timeout_s: float) -> bool:
        """See Endpoint."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self._process.poll() is not None

    def explain_end(self) -> str:
        """See Endpoint."""
        return self._console.read_text(errors="replace")


@contextlib.contextmanager
def run_qemu(
    config: MachineConfig,
    folder: Path,
    options: Iterable[str] = (),
    files: tuple[newc.Entry, ...] = (),
) -> Iterator[tuple[AgentClient, float]]:
    """Run the guest under QEMU microvm with vhost-vsock; yields a client and the time it took.

    Args:
        options: QEMU's, for further devices.
        files: added to the initramfs, as MachineConfig.extra_files are.
    """
    secret = os.urandom(32)
    initramfs = folder / "initramfs"
    assert config.initramfs is not None
    image = Path(config.initramfs).read_bytes()
    tail = newc.archive((*sandbox_guest.secret_files(secret), *files))
    initramfs.write_bytes(image + bytes(-len(image) % 4) + tail)
    command = ["qemu-system-x86_64", "-M", "microvm", "-accel", "kvm", "-cpu", "host"]
    command += ["-global", "virtio-mmio.force-legacy=false"]  # vhost-user speaks virtio 1 alone
    command += [
        "-m",
        str(config.memory_bytes >> 20),
        "-kernel",
        config.kernel,
        "-initrd",
        str(initramfs),
    ]
    command += ["-append", config.kernel_cmdline, "-nodefaults", "-no-user-config"]
    command += ["-display", "none", "-no-reboot", "-serial", f"file:{folder}/console"]
    command += ["-device", "virtio-rng-device"]
    command += ["-device", f"vhost-vsock-device,guest-cid={QEMU_CID}", *options]
    started = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        with connect.connect(QemuEndpoint(process, folder / "console"), secret, LIMIT_S) as client:
            client.exec(["true"], cwd="/").wait()  # a shared folder may be root's alone
            yield client, time.monotonic() - started
    finally:
        process.kill()
        process.wait()


def run_voidbox(config: MachineConfig, work: Callable[[AgentClient], Any]) -> Any:
    """Run `work` on a guest in a process of its own, as each sandbox is one; returns its result.

    The result has to be what JSON can carry.
    """
    for _ in range(ATTEMPTS):
        if text := _run_voidbox_once(config, work):
            return json.loads(text)
    raise SystemExit(f"voidbox: {ATTEMPTS} guests in a row failed, as is said above")


def _run_voidbox_once(config: MachineConfig, work: Callable[[AgentClient], Any]) -> str:
    """Return the result as JSON; nothing if it failed, which has been said then."""
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_fd)
        status = 1
        try:
            with sandbox_guest.Guest(config) as guest:
                guest.machine.start()
                with guest.connect() as client, open(write_fd, "w", encoding="utf-8") as pipe:
                    json.dump(work(client), pipe)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write_fd)
    try:
        with open(read_fd, encoding="utf-8") as pipe:
            return pipe.read()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def find_config(*packages: str, memory_mib: int = MEMORY_MIB) -> MachineConfig:
    """The default kernel and image; or one with Debian packages more."""

    def script(*command: str) -> str:
        return subprocess.run(
            command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
        ).stdout.strip()

    kernel = f"{script('kernel/build_minimal.sh')}/bzImage"
    more = [word for package in packages for word in ("--with", package)]
    image = script("scripts/build_guest_image.sh", *more)
    return MachineConfig(kernel, image, DEFAULT_CMDLINE, memory_mib << 20)
