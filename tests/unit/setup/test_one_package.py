"""A package as files, and the scripts of a clone that take it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.unit.setup.conftest import Open
from tests.unit.setup.fake_archive import FakeArchive, make_deb
from voidbox.setup.errors import SetupError
from voidbox.setup.one_package import unpack_package

ROOT = Path(__file__).parents[3]
SCRIPTS = ("kernel/build_minimal.sh", "scripts/build_first_guest.sh", "scripts/fetch_registry.sh")


@pytest.fixture
def package(mirror: FakeArchive) -> None:
    files = {
        "bin/tool": b"#!/bin/sh\n",
        "usr/src/x.tar": b"source",
        "usr/bin/other": "../../bin/tool",
    }
    mirror.add_package("tool", deb=make_deb(files), Depends="what-nobody-has")
    mirror.publish()


def test_what_it_holds_and_nothing_that_it_needs(
    open_it: Open, package: None, tmp_path: Path
) -> None:
    target = tmp_path / "there"
    assert unpack_package(open_it(), "tool", str(target)) == str(target)
    assert (target / "bin/tool").read_bytes() == b"#!/bin/sh\n"
    assert (target / "usr/src/x.tar").read_bytes() == b"source"
    assert os.readlink(target / "usr/bin/other") == "../../bin/tool"
    assert os.access(target / "usr/bin/tool", os.X_OK)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"there", "cache", "keyring.gpg"}


def test_a_folder_that_is_there_stays_as_it_is(
    open_it: Open, package: None, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(SetupError, match="there already: name a new folder"):
        unpack_package(open_it(), "tool", str(tmp_path / "there"))
    with pytest.raises(SetupError, match="there is no folder"):
        unpack_package(open_it(), "tool", str(tmp_path / "none/there"))
    with pytest.raises(SetupError, match="has no package nothing"):
        unpack_package(open_it(), "nothing", str(tmp_path / "new"))
    assert not list((tmp_path / "there").iterdir()) and not (tmp_path / "new").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_need_no_apt_and_say_in_one_line_where_nobody_answers(
    script: str, tmp_path: Path
) -> None:
    """Their PATH has all that this machine has, but nothing of apt's or dpkg's."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for folder in os.environ["PATH"].split(":"):
        for path in Path(folder).glob("*") if os.path.isdir(folder) else ():
            if not path.name.startswith(("apt", "dpkg")) and not (programs / path.name).exists():
                (programs / path.name).symlink_to(path)
    cache = tmp_path / "cache"
    done = subprocess.run(
        ["/bin/sh", str(ROOT / script)], capture_output=True, text=True, check=False,
        env={
            **os.environ, "PATH": str(programs), "VOIDBOX_CACHE": str(cache),
            "VOIDBOX_MIRROR": "http://127.0.0.1:1/debian",
        },
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1, done.stderr
    if "to build a kernel: apt-get install" in done.stderr:
        pytest.skip("this host has not all that a kernel is built with: scripts/setup.sh")
    assert "cannot connect to 127.0.0.1 port 1" in done.stderr
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert not list(cache.rglob("tmp.*"))
