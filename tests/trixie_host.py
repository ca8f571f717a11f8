"""A Debian 13 as a host: its C library, its Python, its pip. By mmdebstrap, and kept in the cache.

    python -m tests.trixie_host

In it, /home/user has what somebody gets by two commands: `pip install` of the wheels in
build/wheels, and `voidbox setup`. Where that is done, nothing of it needs a network any more.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.e2e.disk_images import saved_archive
from voidbox.defaults import cache_folder
from voidbox.setup.sources import host_sources

WHEELS = Path(__file__).parents[1] / "build" / "wheels"
SUITE, PYTHON = "trixie", "3.13"
PACKAGES = "python3-venv"
HOME = "/home/user"
VOIDBOX = f"{HOME}/venv/bin/voidbox"
# No program but the environment's own is on the PATH: neither apt nor dpkg, not even a shell.
ENVIRONMENT = {"HOME": HOME, "PATH": f"{HOME}/venv/bin", "LANG": "C.UTF-8"}
_MAKE_S, _RUN_S = 600, 300
# With this machine's devices, KVM among them, and a folder of it at /mnt. The new root is that of a
# mount namespace, and no chroot in one, where the kernel makes no user namespaces.
_ENTER = """
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount --rbind /dev dev
mount --rbind /sys sys
mount -t tmpfs tmpfs tmp
[ -z "$2" ] || mount --bind "$2" mnt
shift 2
mount --move . /
exec chroot . "$@"
"""


class Missing(Exception):
    """There is none, and none can be made here; says why."""


class TrixieHost:
    """See ready_host.

    Attributes:
        root: its root folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(
        self, *command: str, folder: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as root.

        Args:
            folder: of this machine, to be /mnt.
            variables: of the environment, beside ENVIRONMENT.
        """
        words = [f"{name}={value}" for name, value in {**ENVIRONMENT, **variables}.items()]
        enter = ["unshare", "--mount", "sh", "-euc", _ENTER, "sh", self.root, folder or ""]
        return subprocess.run(
            [*enter, "/usr/bin/env", "-i", *words, *command],
            cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_RUN_S,
            check=False,
        )  # fmt: skip

    def need(self, *command: str, folder: Path | None = None) -> str:
        """Run a command that has to succeed; returns what it says."""
        done = self.run(*command, folder=folder)
        assert done.returncode == 0, done
        return done.stdout


def ready_host() -> TrixieHost:
    """Return a host with the wheels of this tree installed, and set up.

    Raises:
        Missing: see there.
    """
    if os.getuid() != 0:
        raise Missing("mounts take root")
    wheels = sorted(WHEELS.glob("voidbox_*.whl"))
    if len(wheels) != 2:
        raise Missing(f"not both wheels are in {WHEELS}: run make runtime first")
    folder = Path(cache_folder(), "hosts")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        host = TrixieHost(folder / SUITE)
        if not host.root.exists():
            _make(host.root)
        _install(host, wheels)
        stick = saved_archive()
        host.need(VOIDBOX, "setup", "--offline", "/mnt", folder=stick)
    return host


def _make(root: Path) -> None:
    """Have mmdebstrap make it, from where this host's apt has Debian."""
    if shutil.which("mmdebstrap") is None:
        raise Missing("mmdebstrap is missing: apt-get install mmdebstrap")
    (uri,) = {source.uri for source in host_sources(SUITE) if source.suite == SUITE}
    with tempfile.TemporaryDirectory(dir=root.parent, prefix="new-") as work:
        made = Path(work, "root")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}"]
        _try([*command, SUITE, str(made), f"deb {uri} {SUITE} main"], "mmdebstrap")
        made.rename(root)


def _install(host: TrixieHost, wheels: list[Path]) -> None:
    """Have its pip install the wheels; what they depend on, this machine's pip fetches."""
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in wheels]
    stamp = Path(f"{host.root}{HOME}/.installed")
    if stamp.exists() and stamp.read_text().split() == digests:
        return
    stamp.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=host.root.parent, prefix="new-") as work:
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
        command += ["--only-binary=:all:", "--python-version", PYTHON, "--dest", work]
        command += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64"]
        _try([*command, "--find-links", str(WHEELS), "voidbox-kvm[runtime]"], "pip download")
        host.need("/usr/bin/python3", "-m", "venv", "--clear", f"{HOME}/venv")
        pip = [f"{HOME}/venv/bin/pip", "install", "-q", "--no-index", "--find-links", "/mnt"]
        host.need(*pip, "voidbox-kvm[runtime]", folder=Path(work))
    stamp.write_text("\n".join(digests))


def _try(command: list[str], name: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MAKE_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise Missing(f"{name} took longer than {_MAKE_S} s: is there a network?") from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise Missing(f"{name} failed: {' '.join(last) or done.returncode}")


def main() -> int:
    """Prepare it; returns the exit status."""
    try:
        print(ready_host().root)
    except Missing as error:
        print(f"no {SUITE} host: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
