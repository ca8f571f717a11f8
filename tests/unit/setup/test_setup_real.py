"""`voidbox setup` from Debian's own archive, as far as this host's apt reaches it."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from voidbox.defaults import cache_folder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
DISTRIBUTION = "base-files"  # small, and always there
KILLS = 6


@pytest.fixture(scope="module")
def stick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that `voidbox setup --save` has filled."""
    folder = tmp_path_factory.mktemp("real")
    if not shutil.which("apt-get"):
        pytest.skip("no apt here that would know where Debian is")
    (folder / "debs").mkdir(parents=True)
    probe = ["apt-get", "download", "-qq", DISTRIBUTION]
    if subprocess.run(probe, cwd=folder, capture_output=True, check=False).returncode:
        pytest.skip("Debian's archive cannot be reached: apt-get download fails")
    home = folder / "home"
    debs = home / ".cache/voidbox/debs"
    debs.mkdir(parents=True)
    for path in Path(cache_folder()).glob("debs/*.deb"):
        if not path.name.startswith("busybox-static"):  # that one comes from there indeed
            shutil.copyfile(path, debs / path.name)
    done = setup(home, "--save", str(folder / "stick"), wrapped=True)
    assert done.returncode == 0, done.stderr
    return folder / "stick"


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "voidbox", "setup", *words]


def environment(home: Path) -> dict[str, str]:
    """An empty home, and nothing of Debian's in the PATH."""
    (home / "bin").mkdir(parents=True, exist_ok=True)
    return {"HOME": str(home), "PATH": str(home / "bin"), "PYTHONPATH": str(ROOT)}


def setup(home: Path, *words: str, wrapped: bool = False) -> subprocess.CompletedProcess[str]:
    """Run it; `wrapped`: with a mirror that this host's apt is behind."""
    values = [f"{name}={value}" for name, value in environment(home).items()]
    line = 'exec "$0" "$@" --mirror "$VOIDBOX_MIRROR"'
    inner = ["/usr/bin/env", "-i", *values, *command(*words)]
    full = [str(ROOT / "scripts/with-apt"), "/bin/sh", "-c", line, *inner] if wrapped else inner
    return subprocess.run(full, capture_output=True, text=True, check=False)


def image_of(home: Path) -> dict[str, str]:
    """Return the digests of the images' files."""
    folders = (home / ".cache/voidbox/images").glob("current-*")
    return {
        f"{folder.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in folder.iterdir()
    }


def test_all_is_there_and_nothing_else(stick: Path) -> None:
    home = stick.parent / "home"
    cache = home / ".cache/voidbox"
    release = next((cache / "kernels/current/lib/modules").iterdir()).name
    tiny = {"boot.cpio", "initramfs.cpio", "packages.json", "runtime.erofs"}
    assert set(image_of(home)) == {
        *(f"current-{release}/{name}" for name in tiny),
        *(f"current-default/{name}" for name in ("default.erofs", "packages.json")),
    }
    assert (cache / "kernels/current/vmlinuz").read_bytes()[0x202:0x206] == b"HdrS"
    assert not [path for path in cache.rglob("partial/*") if path.is_file()]
    assert not list(cache.glob("*/.new-*"))


def test_killed_at_any_moment_and_begun_again(stick: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    chance = random.Random(stick.name)
    began = time.monotonic()
    for idx in range(KILLS):
        with subprocess.Popen(
            command("--offline", str(stick)),
            env=environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            deadline = chance.uniform(0.3, 4.0 + 3 * idx)
            try:
                process.wait(deadline)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
    for path in (home / ".cache/voidbox").glob("*/.new-*"):
        os.utime(path, (began, began))  # as if it were older than a few seconds
    done = setup(home, "--offline", str(stick))
    assert done.returncode == 0, done.stderr
    assert image_of(home) == image_of(stick.parent / "home")
    cache = home / ".cache/voidbox"
    assert not [path for path in cache.rglob("partial/*") if path.is_file()]
    again = setup(home, "--offline", str(stick))
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_a_stick_that_is_not_whole_is_told_in_one_line(stick: Path, tmp_path: Path) -> None:
    copy = tmp_path / "stick"
    shutil.copytree(stick, copy)
    (deb,) = copy.rglob("busybox-static_*.deb")
    deb.write_bytes(deb.read_bytes()[:-1] + b"!")
    done = setup(tmp_path / "home", "--offline", str(copy))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("voidbox: ")
    assert "busybox-static" in done.stderr and "its digest is another" in done.stderr
    release = copy / "dists/bookworm/InRelease"
    release.write_bytes(release.read_bytes().replace(b"Debian", b"Debiam", 1))
    done = setup(tmp_path / "other", "--offline", str(copy))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is not signed by Debian: the signature by" in done.stderr
    assert not list((tmp_path / "other/.cache/voidbox").rglob("*.deb"))
