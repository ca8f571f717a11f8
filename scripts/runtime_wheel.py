"""Pack kernel and images as the voidbox-runtime wheel, reproducibly; print its path.

python scripts/runtime_wheel.py --kernel FOLDER --image FOLDER --default FOLDER --output FOLDER

PEP 427; see voidbox/defaults.py for what is in the package, and scripts/build_runtime_wheel.sh.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from voidbox.defaults import RUNTIME_API, kernel_release
from voidbox.version import __version__

NAME = "voidbox_runtime"
# Nothing in it is executed by the host, so any C library of it will do.
TAG = "py3-none-manylinux2014_x86_64.musllinux_1_1_x86_64"
BYTES_MAX = 100_000_000  # what package indexes take without being asked
_INIT = '"""The kernel and the images that voidbox runs by default: files, no code."""\n'
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a ZIP file can tell
_MODE = 0o100644 << 16
_PIECE_BYTES = 1 << 20

_METADATA = """\
Metadata-Version: 2.1
Name: voidbox-runtime
Version: {version}
Summary: The kernel and the images that voidbox-kvm runs by default
Requires-Python: >=3.11
Classifier: Operating System :: POSIX :: Linux
License: each file has its own, see Licences
Description-Content-Type: text/markdown

# voidbox-runtime

What voidbox-kvm boots when nothing else is named, made of Debian's sources and packages alone, by
scripts/build_runtime_wheel.sh of voidbox's repository, which gives the same bytes again.
`pip install 'voidbox-kvm[runtime]'` is all that is needed.

| file | what | sha256 |
|---|---|---|
{files}

## Licences

`packages.json` and `runtime-packages.json` name every package in the images: its version, the name
and version of its source in Debian's archive, its licences, and its copyright file. The kernel is
Linux {release} (GPL-2.0-only), built from Debian's package linux-source, version {source}, with the
configuration in `kernel.config`. The agent in `runtime.erofs` is voidbox's own (Apache-2.0).
"""
_WHEEL = "Wheel-Version: 1.0\nGenerator: voidbox\nRoot-Is-Purelib: false\n{tags}"


class NotWhole(Exception):
    """A file is missing, or the wheel gets too large."""


def package_files(kernel: Path, image: Path, default: Path) -> dict[str, Path]:
    """Return the files of the package, by their names in it.

    Args:
        kernel: the folder that kernel/build_minimal.sh names.
        image: the one with boot.cpio; `default`: the one with default.erofs.
    Raises:
        NotWhole: one is missing.
    """
    files = {
        "boot.cpio": image / "boot.cpio",
        "bzImage": kernel / "bzImage",
        "default.erofs": default / "default.erofs",
        "kernel.config": kernel / "config",
        "packages.json": default / "packages.json",
        "runtime-packages.json": image / "packages.json",
        "runtime.erofs": image / "runtime.erofs",
    }
    for path in files.values():
        if not path.is_file():
            raise NotWhole(f"{path} is missing")
    return files


def kernel_source(kernel: Path) -> str:
    """Return the version of linux-source that a folder's kernel was built from."""
    match = re.fullmatch(r"minimal-(.+)-[0-9a-f]{12}", kernel.resolve().name)
    if match is None:
        raise NotWhole(f"{kernel} is no folder of kernel/build_minimal.sh")
    return match[1]


def write_wheel(path: Path, files: dict[str, Path], source: str) -> None:
    """Write the wheel.

    Args:
        source: the version of linux-source that the kernel is built from.
    Raises:
        NotWhole: it gets larger than BYTES_MAX.
        OSError: reading or writing failed.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(beside, "x", zipfile.ZIP_DEFLATED, compresslevel=9) as wheel:
            record = dict(_write_package(wheel, files))
            for name, content in _information(files, source, record).items():
                record[name] = _write(wheel, name, content)
            lines = [f"{name},{record[name]}\n" for name in sorted(record)]
            record_name = f"{NAME}-{__version__}.dist-info/RECORD"
            _write(wheel, record_name, f"{''.join(lines)}{record_name},,\n")
        size_bytes = beside.stat().st_size
        if size_bytes > BYTES_MAX:
            raise NotWhole(f"the wheel has {size_bytes:,} bytes, of {BYTES_MAX:,} that it may have")
        os.rename(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _write_package(wheel: zipfile.ZipFile, files: dict[str, Path]) -> Iterator[tuple[str, str]]:
    small = {"__init__.py": _INIT, "api": f"{RUNTIME_API}\n"}
    for name in sorted([*small, *files]):
        path = f"{NAME}/{name}"
        if name in small:
            yield path, _write(wheel, path, small[name])
            continue
        digest, size_bytes = hashlib.sha256(), 0
        with open(files[name], "rb") as file, wheel.open(_entry(path), "w") as entry:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
                size_bytes += len(piece)
                entry.write(piece)
        yield path, _recorded(digest.digest(), size_bytes)


def _write(wheel: zipfile.ZipFile, name: str, content: str) -> str:
    data = content.encode()
    wheel.writestr(_entry(name), data, compresslevel=9)
    return _recorded(hashlib.sha256(data).digest(), len(data))


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = _MODE
    entry.create_system = 3  # Unix, whose modes these are
    return entry


def _recorded(digest: bytes, size_bytes: int) -> str:
    """Return what RECORD says of a file, after its name."""
    return f"sha256={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()},{size_bytes}"


def _information(files: dict[str, Path], source: str, record: dict[str, str]) -> dict[str, str]:
    what = {
        "boot.cpio": "the initramfs that mounts a root",
        "bzImage": "Linux",
        "default.erofs": _packages_line(files["packages.json"]),
        "runtime.erofs": _packages_line(files["runtime-packages.json"]) + ", and voidbox's agent",
    }
    rows = []
    for name, text in what.items():
        encoded = record[f"{NAME}/{name}"].partition(",")[0].removeprefix("sha256=")
        rows.append(f"| `{name}` | {text} | {base64.urlsafe_b64decode(encoded + '=').hex()} |")
    folder = f"{NAME}-{__version__}.dist-info"
    platforms = TAG.rpartition("-")[2].split(".")
    return {
        f"{folder}/METADATA": _METADATA.format(
            version=__version__,
            files="\n".join(rows),
            release=kernel_release(str(files["bzImage"])),
            source=source,
        ),
        f"{folder}/WHEEL": _WHEEL.format(
            tags="".join(f"Tag: py3-none-{platform}\n" for platform in platforms)
        ),
    }


def _packages_line(path: Path) -> str:
    packages = {one["package"]: one["version"] for one in json.loads(path.read_text())}
    return (
        f"{len(packages)} packages, with Python {packages.get('python3.11-minimal', '')}".rstrip()
    )


def main(arguments: list[str]) -> int:
    """Pack it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="runtime_wheel.py", allow_abbrev=False)
    for name in ("kernel", "image", "default", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    path = options.output / f"{NAME}-{__version__}-{TAG}.whl"
    try:
        files = package_files(options.kernel, options.image, options.default)
        options.output.mkdir(parents=True, exist_ok=True)
        write_wheel(path, files, kernel_source(options.kernel))
    except (NotWhole, OSError) as error:
        print(f"runtime_wheel.py: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
