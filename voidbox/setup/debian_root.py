"""A whole Debian: its packages installed by dpkg and apt, their scripts run, in a guest.

Packages' scripts are programs of root's: nothing of them runs on the host. The essential packages
are unpacked here, which is all that a guest needs to run the rest:

    /target       they, over a merged /usr
    /repo         all packages, as files and as an archive for apt
    /outer.sh     what the guest runs: see guest/debian_outer.sh and guest/debian_inner.sh

What comes back, a tar archive, is a stranger's, and is checked like any layer of an image.
"""

from __future__ import annotations

import importlib.resources
import os
import re
import stat
from collections.abc import Callable, Sequence
from typing import BinaryIO, Protocol, cast

from voidbox.images.errors import ImageError
from voidbox.images.host_folder import HostFile
from voidbox.images.limits import DEFAULT_LIMITS, Limits
from voidbox.images.tar_layers import Applied, apply_layer
from voidbox.images.transport import is_loopback, parse_url
from voidbox.images.tree import Extent, Regular, Special, Symlink, Tree, encode
from voidbox.setup.archive import Archive
from voidbox.setup.deb import Part, unpack_deb
from voidbox.setup.errors import SetupError
from voidbox.setup.host_copy import new_folder
from voidbox.setup.packages import Package, check_name
from voidbox.setup.sources import Source, hide_credentials, host_sources
from voidbox.setup.tree_edit import merged_root, put_bytes

_APT = "apt"
_OUTPUT_BYTES = 8 << 30  # sparse; some file systems have no larger files
_OUTER, _INNER = "debian_outer.sh", "debian_inner.sh"
_TOTALS = re.compile(r"Total bytes written: ([0-9]{1,15})\b")
_SOURCES = "etc/apt/sources.list"
_FOLDERS = ("dev", "proc", "sys", "tmp", ".repo", "var/lib/dpkg/info", "var/lib/dpkg/updates")
_DEVICES = {
    "console": (5, 1), "full": (1, 7), "null": (1, 3), "ptmx": (5, 2), "random": (1, 8),
    "tty": (5, 0), "urandom": (1, 9), "zero": (1, 5),
}  # fmt: skip

_DEVICE_LINKS = {
    "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}  # fmt: skip
_APT_LISTS = "var/lib/apt/lists/partial"

OnLine = Callable[[str], None]


class Runner(Protocol):
    """What runs the scripts: a guest."""

    def __call__(self, tree: Tree, work: str, output: str, on_line: OnLine) -> None:
        """Run /outer.sh of a root, which writes an archive to the disk "voidbox-output".

        Args:
            tree: the root.
            work: a folder for temporary files, on the disk that the image will be on.
            output: a file that is that disk.
            on_line: called with each line that it says, perhaps in another thread.
        Raises:
            VoidboxError: it cannot run, or it fails.
        """


def build_debian(
    tree: Tree,
    archive: Archive,
    packages: Sequence[str],
    run: Runner,
    *,
    work: str,
    limits: Limits = DEFAULT_LIMITS,
    on_line: OnLine = lambda line: None,
) -> Applied:
    """Fill an empty tree with a minimal Debian and these packages.

    Args:
        packages: beside the essential and required ones and apt.
        run: what runs their scripts.
        work: a folder for temporary files.
        on_line: called with each line that dpkg and apt say.
    Raises:
        SetupError: the archive cannot give it, or the installation failed.
        VoidboxError: there is no guest to do it.
        OSError: reading or writing failed.
    """
    for name in packages:
        check_name(name)
    every = archive.base([_APT, *packages])
    names = {package.name for package in archive.base([_APT])}
    # What the user names may stand for something of these: then it comes later.
    first = [package for package in every if package.name in names]
    paths = archive.download(every)
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        del said[:-100]
        on_line(line)

    with new_folder(work) as folder, Tree(folder) as unpacked:
        _prepare(unpacked, first, every, paths, packages)
        output = f"{folder}/output"
        with open(output, "xb") as disk:
            disk.truncate(min(limits.total_bytes, _OUTPUT_BYTES))
        run(unpacked, folder, output, hear)
        with open(output, "rb") as file:
            stream = cast(BinaryIO, Part(file, 0, _archive_bytes(said, limits)))
            applied = apply_layer(tree, stream, limits)
    _finish(tree, archive)
    return applied


def _archive_bytes(said: Sequence[str], limits: Limits) -> int:
    """Return how long the archive is, as tar said last."""
    for line in reversed(said):
        match = _TOTALS.search(line)
        if match is not None and int(match[1]) <= min(limits.total_bytes, _OUTPUT_BYTES):
            return int(match[1])
    raise SetupError("the installation of packages ended without a result")


def _prepare(
    tree: Tree,
    first: Sequence[Package],
    every: Sequence[Package],
    paths: Sequence[str],
    wanted: Sequence[str],
) -> None:
    """Make the root that the guest runs from."""
    target = tree.below("target")
    merged_root(target)
    is_first = {package.name for package in first}
    for package, path in zip(every, paths, strict=True):
        if package.name in is_first:
            unpack_deb(target, path)
        tree.put(f"repo/{_plain_name(package)}", _host_file(path))
    for folder in (
        "dev",
        "proc",
        "sys",
        "tmp",
        ".repo",
        "var/lib/dpkg/info",
        "var/lib/dpkg/updates",
    ):
        target.make_folder(folder.split("/"))
    for name in ("status", "available"):
        put_bytes(target, f"var/lib/dpkg/{name}", b"")
    put_bytes(tree, "repo/first", "".join(f"{_plain_name(one)}\n" for one in first))
    chosen = {package.name: package.version for package in every}
    words = [f"{name}={chosen[name]}\n" for name in wanted if name not in is_first]
    put_bytes(tree, "repo/wanted", "".join(words))
    put_bytes(tree, "repo/Packages", "\n".join(map(_stanza, every)))
    scripts = importlib.resources.files("voidbox.setup") / "guest"
    put_bytes(tree, "outer.sh", (scripts / _OUTER).read_bytes(), 0o755)
    put_bytes(tree, f"repo/{_INNER}", (scripts / _INNER).read_bytes(), 0o755)


def _plain_name(package: Package) -> str:
    """Return a file's name that apt and a shell take as it is."""
    return package.file_name.replace("%3a", "-")


def _stanza(package: Package) -> str:
    lines = [line for line in package.stanza.split("\n") if not line.startswith("Filename:")]
    return "\n".join([*filter(None, lines), f"Filename: ./{_plain_name(package)}", ""])


def _host_file(path: str) -> Regular:
    status = os.stat(path)
    source = HostFile(encode(path), status)
    return Regular(size=status.st_size, extents=(Extent(0, status.st_size, source, 0),))


def _finish(tree: Tree, archive: Archive) -> None:
    """Give the image what no installation has: device nodes, and where its packages came from."""
    for name, device in _DEVICES.items():
        tree.put(f"dev/{name}", Special(kind=stat.S_IFCHR, device=device, mode=0o666))
    for name, target in _DEVICE_LINKS.items():
        tree.put(f"dev/{name}", Symlink(target=target))
    for folder in ("dev/pts", "dev/shm", _APT_LISTS):
        tree.make_folder(folder.split("/"))
    lines = [f"deb {one.uri} {one.suite} {' '.join(one.components)}\n" for one in _origins(archive)]
    put_bytes(tree, _SOURCES, hide_credentials("".join(lines)))


def _origins(archive: Archive) -> Sequence[Source]:
    """Return sources that are of use elsewhere; a folder, or a mirror on this machine, is not."""
    if all(_is_for_others(source.uri) for source in archive.sources):
        return archive.sources
    try:
        return [one for one in host_sources(archive.suite) if _is_for_others(one.uri)]
    except SetupError:
        return ()


def _is_for_others(uri: str) -> bool:
    try:
        return not is_loopback(parse_url(hide_credentials(uri)).host)
    except ImageError:
        return False
