"""The voidbox-runtime wheel: what is in it, that pip takes it, that it is the same each time."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from voidbox import defaults
from voidbox.version import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
INFO = f"voidbox_runtime-{__version__}.dist-info"


class Parts:
    """Small files in place of kernel and images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernel = folder / "minimal-6.1.9-1-0123456789ab"
        files = {
            self.kernel / "bzImage": b"kernel",
            self.kernel / "config": b"CONFIG_64BIT=y\n",
            folder / "image/boot.cpio": b"boot",
            folder / "image/runtime.erofs": os.urandom(3 << 20),
            folder / "image/packages.json": json.dumps([{"package": "libc6", "version": "1"}]),
            folder / "default/default.erofs": b"default" * 100_000,
            folder / "default/packages.json": json.dumps([]),
        }
        for path, content in files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def pack(self, output: str = "output") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable, ROOT / "scripts/runtime_wheel.py", "--kernel", self.kernel,
                "--image", self.folder / "image", "--default", self.folder / "default",
                "--output", self.folder / output,
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    def wheel(self, output: str = "output") -> Path:
        done = self.pack(output)
        assert (done.returncode, done.stderr) == (0, ""), done
        return Path(done.stdout.strip())


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


def test_the_same_files_give_the_same_bytes(parts: Parts) -> None:
    first = parts.wheel()
    for path in parts.folder.rglob("*"):
        os.utime(path, (1, 1))
    second = parts.wheel("other")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    assert os.listdir(first.parent) == [first.name]


def test_its_record_is_true(parts: Parts) -> None:
    with zipfile.ZipFile(parts.wheel()) as wheel:
        lines = list(csv.reader(io.StringIO(wheel.read(f"{INFO}/RECORD").decode())))
        assert {line[0] for line in lines} == set(wheel.namelist())
        for name, digest, size in lines:
            if name == f"{INFO}/RECORD":
                assert (digest, size) == ("", "")
                continue
            content = wheel.read(name)
            found = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            assert (digest, int(size)) == (f"sha256={found.decode()}", len(content))
            assert wheel.getinfo(name).external_attr >> 16 == 0o100644


def test_it_says_what_is_in_it(parts: Parts) -> None:
    with zipfile.ZipFile(parts.wheel()) as wheel:
        text = wheel.read(f"{INFO}/METADATA").decode()
        digest = hashlib.sha256(b"kernel").hexdigest()
        assert f"| `bzImage` | Linux | {digest} |" in text
        assert "linux-source, version 6.1.9-1," in text
        assert json.loads(wheel.read("voidbox_runtime/runtime-packages.json"))
        tags = wheel.read(f"{INFO}/WHEEL").decode()
        assert "Tag: py3-none-manylinux2014_x86_64\n" in tags and "musllinux" in tags


@pytest.mark.slow
def test_pip_installs_it_and_voidbox_finds_it(parts: Parts, tmp_path: Path) -> None:
    site = tmp_path / "site"
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check",
            "--no-index", "--target", site, parts.wheel(),
        ],
        check=True,
    )  # fmt: skip
    code = (
        "from voidbox import defaults; kernel = defaults.find_kernel(); "
        "print(kernel, *defaults.find_root(kernel), defaults.find_default_image())"
    )
    environment = {
        **os.environ, "PYTHONPATH": f"{site}:{ROOT}", "VOIDBOX_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    environment.pop("VOIDBOX_RUNTIME")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    names = ("bzImage", "boot.cpio", "runtime.erofs", "default.erofs")
    assert done.stdout.split() == [str(site / "voidbox_runtime" / name) for name in names]
    assert (site / "voidbox_runtime/api").read_text() == f"{defaults.RUNTIME_API}\n"


@pytest.mark.parametrize("name", ["default/default.erofs", "image/packages.json"])
def test_a_missing_part_is_one_line(parts: Parts, name: str) -> None:
    (parts.folder / name).unlink()
    done = parts.pack()
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"runtime_wheel.py: {parts.folder / name} is missing\n"
    assert not list(parts.folder.glob("output/*"))


def test_what_package_indexes_would_refuse_is_refused(parts: Parts) -> None:
    with open(parts.folder / "image/boot.cpio", "wb") as file:
        for _ in range(101):
            file.write(os.urandom(1_000_000))
    done = parts.pack()
    assert done.returncode == 1 and "of 100,000,000 that it may have" in done.stderr
    assert not list(parts.folder.glob("output/*"))
