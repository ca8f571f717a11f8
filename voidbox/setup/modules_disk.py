"""All modules of a kernel as one file system: a disk that guests share."""

from __future__ import annotations

import os
from pathlib import Path

from voidbox.defaults import MODULES_DISK
from voidbox.images import host_folder
from voidbox.images.pack import write_tree
from voidbox.images.tree import Tree
from voidbox.lz4 import Compressor, Lz4Error
from voidbox.setup.depmod import tables
from voidbox.setup.files import failure
from voidbox.setup.modules import Modules
from voidbox.setup.tree_edit import put_bytes

_LEVEL = 3  # of LZ4: a twentieth of the time of the highest, for 3 % more


def make_modules_disk(folder: str) -> None:
    """Have a kernel's folder hold the disk; nothing of a kernel without modules. Idempotent.

    Its root is lib/modules/RELEASE, with what depmod adds to it: see depmod.

    Args:
        folder: as kernel.fetch_kernel() makes it.
    Raises:
        SetupError: a file is no module.
        HostError: it cannot be written.
    """
    target = f"{folder}/{MODULES_DISK}"
    if os.path.exists(target):
        return
    for path in sorted(Path(folder, "lib/modules").iterdir())[:1]:
        modules = Modules(path)
        # Whose they are, and when they came here, is of no interest to a guest.
        options = host_folder.default_options()._replace(
            owner=(0, 0), mtime_ns=0, are_modes_shared=True
        )
        try:
            with host_folder.read_folder(str(path), options) as tree:
                _add_tables(tree, modules)
                write_tree(tree, target, compressor=_compressor())
        except OSError as error:
            raise failure("write", target, error) from error


def _add_tables(tree: Tree, modules: Modules) -> None:
    for name, content in tables(modules).items():
        put_bytes(tree, f"/{name}", content)


def _compressor() -> Compressor | None:
    try:
        return Compressor(_LEVEL)
    except Lz4Error:
        return None  # it is three times as large then, and as good
