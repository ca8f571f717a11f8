"""`voidbox setup` in an empty home with nothing of Debian's in the PATH, and what it made."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.e2e.conftest import ROOT
from tests.e2e.disk_images import saved_archive
from voidbox.images.tree import Symlink, Tree
from voidbox.setup.errors import SetupError
from voidbox.setup.guest_runner import run_in_guest

pytestmark = [pytest.mark.boot, pytest.mark.slow]


class Home:
    """A user who has just installed voidbox."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()

    def voidbox(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it."""
        values = {"HOME": str(self.folder), "PATH": f"{self.folder}/bin", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "voidbox", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=values, cwd=self.folder
        )


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with TemporaryDirectory(prefix="vb-", dir=saved_archive().parent) as folder:
        yield Home(Path(folder))


def test_set_up_and_run(home: Home) -> None:
    none = home.voidbox("run", "--", "true")
    assert none.returncode == 2
    assert "voidbox setup" in none.stderr
    made = home.voidbox("setup", "--offline", str(saved_archive()))
    assert made.returncode == 0, made.stderr
    done = home.voidbox("run", "--memory", "512M", "--", "python3", "-c", "print(6*7)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")


INNER = """set -e
echo "E: a warning that looks like an error" >&2
[ -c /dev/null ] && [ -d /proc/self ] && [ -r /.repo/debian_inner.sh ]
echo here >/made
tar -cf "$1" made
echo "Total bytes written: 10240 (10KiB, 1MiB/s)" >&2
"""


def test_a_guest_runs_what_installs_packages(tmp_path: Path, guest_images: dict[str, str]) -> None:
    """All but dpkg and apt themselves, which take a lab too long: busybox stands in."""
    assert all(guest_images.values())
    outer = (ROOT / "voidbox/setup/guest/debian_outer.sh").read_bytes()
    lines: list[str] = []
    output = tmp_path / "output"
    with Tree(str(tmp_path)) as tree:
        for folder in ("bin", "dev", "proc", "sys", ".repo"):
            tree.make_folder(["target", folder])
        busybox = Path("/bin/busybox").read_bytes()
        tree.put("target/bin/busybox", tree.add_bytes(busybox, mode=0o755))
        for applet in ("sh", "tar"):
            tree.put(f"target/bin/{applet}", Symlink(target="busybox"))
        tree.put("outer.sh", tree.add_bytes(outer, mode=0o755))
        tree.put("repo/debian_inner.sh", tree.add_bytes(INNER.encode()))
        output.write_bytes(bytes(1 << 20))
        run_in_guest(tree, str(tmp_path), str(output), lines.append)
        assert lines[0] == "E: a warning that looks like an error"
        assert lines[-1].startswith("Total bytes written: ")
        with tarfile.open(output) as archive:
            made = archive.extractfile("made")
            assert made is not None and made.read() == b"here\n"
        tree.put("repo/debian_inner.sh", tree.add_bytes(b"echo 'E: no such thing'; exit 1\n"))
        (tmp_path / "root.erofs").unlink()
        with pytest.raises(SetupError, match="installation of packages failed: no such thing$"):
            run_in_guest(tree, str(tmp_path), str(output), lines.append)
