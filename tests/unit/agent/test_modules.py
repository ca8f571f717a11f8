"""Devices that load their module when they are opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from guest_agent import modules

DEVNAME = """# Device nodes to trigger on-demand module loading.
fuse fuse c10:229
tun net/tun c10:200
btrfs btrfs-control c10:234
loop loop-control b7:0
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_devices_are_made_where_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "btrfs-control").write_text("the module's own")
    modules.make_devices(DEVNAME, str(tmp_path))
    found = {}
    for name in ("fuse", "net/tun", "loop-control"):
        status = (tmp_path / name).stat()
        kind = "c" if stat.S_ISCHR(status.st_mode) else "b"
        found[name] = (kind, os.major(status.st_rdev), os.minor(status.st_rdev))
        assert stat.S_IMODE(status.st_mode) == 0o600
    assert found == {"fuse": ("c", 10, 229), "net/tun": ("c", 10, 200), "loop-control": ("b", 7, 0)}
    assert (tmp_path / "btrfs-control").read_text() == "the module's own"
