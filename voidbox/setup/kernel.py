"""Debian's stock kernels, as folders of the cache: vmlinuz, config, the modules, those as a disk.

kernels/debian-FLAVOUR-RELEASE/     made once
kernels/current-FLAVOUR             the one that the archive has by now
"""

from __future__ import annotations

import os
import re

from voidbox.defaults import cache_folder
from voidbox.images.tree import Directory, Node, Tree
from voidbox.setup.archive import Archive
from voidbox.setup.deb import unpack_deb
from voidbox.setup.errors import SetupError
from voidbox.setup.host_copy import new_folder, point, publish, write_node
from voidbox.setup.modules_disk import make_modules_disk
from voidbox.setup.tree_edit import merged_root

FLAVOURS = {"cloud": "linux-image-cloud-amd64", "generic": "linux-image-amd64"}
_PACKAGE = re.compile(r"linux-image-([0-9][A-Za-z0-9.+~-]*)")


def fetch_kernel(archive: Archive, flavour: str) -> str:
    """Have the cache hold a kernel; return the path of its vmlinuz.

    Args:
        flavour: "cloud" or "generic".
    Raises:
        SetupError: no such flavour, or the archive cannot give it.
        HostError: the cache cannot be written.
    """
    if flavour not in FLAVOURS:
        raise SetupError(f"no kernel called {flavour!r}: say {' or '.join(FLAVOURS)}")
    package, release = _current(archive, flavour)
    folder = f"{cache_folder()}/kernels"
    target = f"{folder}/debian-{flavour}-{release}"
    if not os.path.isdir(target):
        (deb,) = archive.download(archive.exactly([package]))
        with new_folder(folder) as work, Tree(work) as tree:
            merged_root(tree)
            unpack_deb(tree, deb)
            _write(tree, f"{work}/kernel", deb)
            publish(f"{work}/kernel", target)
    make_modules_disk(target)
    point(f"{folder}/current-{flavour}", os.path.basename(target))
    return f"{target}/vmlinuz"


def _current(archive: Archive, flavour: str) -> tuple[str, str]:
    """Return name and release of the package that a flavour's metapackage stands for now."""
    meta = FLAVOURS[flavour]
    (found,) = archive.exactly([meta])
    for group in found.needs:
        for wanted in group:
            match = _PACKAGE.fullmatch(wanted.name)
            if match is not None:
                return wanted.name, match[1]
    raise SetupError(f"the archive's {meta} stands for no kernel")


def _write(tree: Tree, folder: str, deb: str) -> None:
    """Write what a guest, and who makes its image, needs of a kernel's package."""
    os.makedirs(f"{folder}/lib")
    boot = tree.find("boot")
    files = boot.children if isinstance(boot, Directory) else {}
    for prefix in ("vmlinuz", "config"):
        node = next((files[name] for name in files if name.startswith(f"{prefix}-")), None)
        write_node(_checked(node, prefix, deb), f"{folder}/{prefix}")
    modules = _checked(tree.find("usr/lib/modules"), "lib/modules", deb)
    write_node(modules, f"{folder}/lib/modules")


def _checked(node: Node | None, what: str, deb: str) -> Node:
    if node is None:
        raise SetupError(f"{deb} has no {what}")
    return node
