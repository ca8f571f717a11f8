"""Pack a folder as an EROFS image, the same bytes for the same folder.

python -m voidbox.images.pack FOLDER OUTPUT.erofs [--lz4] [--owner UID:GID] [--mtime SECONDS]
    [--node /dev/console:5:1 …] [--mode /tmp:1777 …]
"""

from __future__ import annotations

import argparse
import os
import stat
import sys

from voidbox.errors import VoidboxError
from voidbox.images import host_folder
from voidbox.images.erofs import write_erofs
from voidbox.images.errors import ImageError
from voidbox.images.tree import Special, Tree
from voidbox.lz4 import Compressor, Lz4Error

_NS = 10**9


def write_tree(
    tree: Tree, output: str, *, mtime: int = 0, compressor: Compressor | None = None
) -> int:
    """Write a tree as an image under a name, which it has once it is whole; return its size.

    Args:
        compressor: see write_erofs.
    Raises:
        ImageError: see write_erofs.
        OSError: writing failed.
    """
    partial = f"{output}.partial-{os.getpid()}"
    try:
        with open(partial, "xb") as file:
            size = write_erofs(tree, file, mtime=mtime, compressor=compressor)
            os.fsync(file.fileno())
        os.rename(partial, output)
    except BaseException:
        if os.path.exists(partial):
            os.unlink(partial)
        raise
    return size


def _say_skipped(path: str, why: str) -> None:
    print(f"left out {path}: {why}", file=sys.stderr)


def _owner(text: str) -> tuple[int, int]:
    uid, gid = text.split(":")
    return int(uid), int(gid)


def _make_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m voidbox.images.pack",
        description="Pack a folder as a read-only EROFS image, reproducibly.",
    )
    parser.add_argument("folder")
    parser.add_argument("output")
    parser.add_argument(
        "--owner",
        type=_owner,
        metavar="UID:GID",
        help="who everything belongs to (0:0 unless you are root: then each file's own)",
    )
    parser.add_argument("--mtime", type=int, metavar="SECONDS", help="the time of everything")
    parser.add_argument(
        "--shared-modes",
        action="store_true",
        help="everyone may read and execute what the owner may, write nothing: no umask shows",
    )
    parser.add_argument("--lz4", action="store_true", help="compress files (Linux 5.13 on)")
    parser.add_argument("--node", action="append", default=[], metavar="PATH:MAJOR:MINOR")
    parser.add_argument("--mode", action="append", default=[], metavar="PATH:OCTAL")
    return parser


def _adjust(tree: Tree, nodes: list[str], modes: list[str], mtime_ns: int) -> None:
    """Add device nodes and set modes that no folder of an ordinary user can tell."""
    for text in nodes:
        path, major, minor = text.rsplit(":", 2)
        device = (int(major), int(minor))
        tree.put(path, Special(kind=stat.S_IFCHR, device=device, mode=0o600, mtime_ns=mtime_ns))
    for text in modes:
        path, _, octal = text.rpartition(":")
        node = tree.find(path)
        if node is None:
            raise ImageError(f"there is no {path} to set the mode of")
        node.mode = int(octal, 8)


def main(argv: list[str]) -> int:
    """Pack a folder; returns the exit status."""
    arguments = _make_options().parse_args(argv)
    options = host_folder.default_options()._replace(are_modes_shared=arguments.shared_modes)
    if arguments.owner is not None:
        options = options._replace(owner=arguments.owner)
    mtime = arguments.mtime
    if mtime is not None:
        options = options._replace(mtime_ns=mtime * _NS)
    try:
        with host_folder.read_folder(arguments.folder, options, on_skip=_say_skipped) as tree:
            _adjust(tree, arguments.node, arguments.mode, options.mtime_ns or 0)
            compressor = Compressor() if arguments.lz4 else None
            write_tree(tree, arguments.output, mtime=mtime or 0, compressor=compressor)
    except (VoidboxError, Lz4Error, OSError, ValueError) as error:
        print(f"pack: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
