"""The default image: what is in it, and the same bytes always. From the packages of the cache."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.images.erofs_reader import File, Image
from tests.unit.images.trees import check_with_fsck
from tests.unit.setup.test_guest_image import NOWHERE, ROOT, copy_packages, leftovers
from voidbox.lz4 import Compressor, Lz4Error

pytestmark = pytest.mark.slow


class Built:
    """An image built without a network, in a cache of its own."""

    def __init__(self, folder: Path, umask: int = 0o022) -> None:
        self.cache = folder / "cache"
        copy_packages(self.cache)
        result = subprocess.run(
            [sys.executable, "-m", "voidbox.setup", "default"],
            cwd="/", env={
                **os.environ, **NOWHERE, "VOIDBOX_CACHE": str(self.cache), "PYTHONPATH": str(ROOT),
            },
            capture_output=True, text=True, check=False, umask=umask,
        )  # fmt: skip
        if "cannot connect" in result.stderr:
            pytest.skip("the cache has not all packages of it; to run this: make runtime")
        assert result.returncode == 0, result.stderr
        self.path = Path(result.stdout.strip())
        self._image = Image(self.path.read_bytes())

    def file(self, path: str) -> File:
        """A file by its path, in which no link is followed."""
        found = self._image.file(self._image.root_nid)
        for name in path.encode().split(b"/"):
            nids = {known: nid for known, nid, _ in self._image.names(found)}
            found = self._image.file(nids[name])
        return found

    def names(self, path: str) -> list[str]:
        return [name.decode() for name, _, _ in self._image.names(self.file(path))]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    try:
        Compressor()
    except Lz4Error as error:
        pytest.skip(f"{error}: install it")
    return Built(tmp_path_factory.mktemp("built"))


def test_what_is_in_it(built: Built) -> None:
    programs = built.names("usr/bin")
    wanted = {
        "bash", "git", "make", "curl", "wget", "pip", "python3", "ps", "less", "file", "zip",
        "unzip", "xz", "patch", "perl", "vi", "nc",
    }  # fmt: skip
    assert wanted <= set(programs)
    for path, target in {"usr/bin/sh": "dash", "bin": "usr/bin", "usr/bin/awk": "mawk"}.items():
        assert built.file(path).content.decode() == target
    assert (
        b"sandbox:x:1000:1000:sandbox:/home/sandbox:/bin/bash\n" in built.file("etc/passwd").content
    )
    assert b"root:x:0:" in built.file("etc/passwd").content
    certificates = built.file("etc/ssl/certs/ca-certificates.crt").content
    assert certificates.count(b"BEGIN CERTIFICATE") > 50


def test_pip_may_install(built: Built) -> None:
    (python,) = (name for name in built.names("usr/lib") if name.startswith("python3."))
    names = built.names(f"usr/lib/{python}")
    assert "EXTERNALLY-MANAGED" not in names and {"venv", "ensurepip"} <= set(names)
    assert built.names("usr/lib/python3/dist-packages/pip/__pycache__")


def test_owners_and_modes(built: Built) -> None:
    for path in ("home/sandbox", "home/sandbox/.bashrc", "workspace"):
        assert (built.file(path).uid, built.file(path).gid) == (1000, 1000), path
    assert stat.S_IMODE(built.file("tmp").mode) == 0o1777
    assert stat.S_IMODE(built.file("root").mode) == 0o700
    assert (built.file("usr/bin/bash").uid, built.file("usr/bin/bash").mtime_ns) == (0, 0)


def test_each_package_is_told_of(built: Built) -> None:
    packages = json.loads((built.path.parent / "packages.json").read_text())
    names = {one["package"]: one for one in packages}
    assert names["bash"]["source"] == "bash" and names["libssl3"]["source"] == "openssl"
    assert "GPL" in " ".join(names["git"]["licences"])
    assert all(one["copyright"] for one in packages if one["package"] not in _DOCUMENTED_ELSEWHERE)
    assert not {"perl", "dpkg", "usrmerge"} & names.keys()


# Their folder of documents is a link to another package's.
_DOCUMENTED_ELSEWHERE = {"libgcc-s1", "libstdc++6", "gcc-12-base"}


@pytest.mark.parametrize("umask", [0o077])
def test_the_same_bytes_whoever_builds_it(built: Built, tmp_path: Path, umask: int) -> None:
    again = Built(tmp_path, umask)
    for name in ("default.erofs", "packages.json"):
        assert (again.path.parent / name).read_bytes() == (built.path.parent / name).read_bytes()
    assert not [name for name in leftovers(again.cache) if not name.startswith("default-")]


def test_it_is_a_file_system_and_small(built: Built) -> None:
    assert built.path.stat().st_size < 90_000_000
    check_with_fsck(built.path)
