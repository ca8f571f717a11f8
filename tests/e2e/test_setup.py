"""What `voidbox setup` makes, at work; and the guest that installs packages."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT
from tests.e2e.disk_images import in_home, ready_home
from voidbox.images.tree import Symlink, Tree
from voidbox.setup.errors import SetupError
from voidbox.setup.guest_runner import run_in_guest

pytestmark = pytest.mark.boot


def test_what_was_set_up_runs() -> None:
    """tests/unit/setup/test_setup_real.py sets up in an empty home, and kills it on its way."""
    home = ready_home()
    code = "print(6*7)"
    done = in_home(home, "run", "--memory", "512M", "--", "python3", "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")


def test_what_was_not_set_up_is_told(tmp_path: Path) -> None:
    done = in_home(tmp_path, "run", "--", "true")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "voidbox setup" in done.stderr


INNER = """set -e
echo "E: a warning that looks like an error" >&2
[ -c /dev/null ] && [ -d /proc/self ] && [ -d /sys/kernel ] && [ -r /.repo/debian_inner.sh ]
[ -d /.bare/sys ] && [ ! -e /.bare/sys/kernel ]
echo here >/made
tar -cf "$1" made
echo "Total bytes written: 10240 (10KiB, 1MiB/s)" >&2
"""


def test_a_guest_runs_what_installs_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but dpkg and apt themselves, which take a lab too long: busybox stands in."""
    monkeypatch.setenv("VOIDBOX_CACHE", str(ready_home() / ".cache/voidbox"))
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
