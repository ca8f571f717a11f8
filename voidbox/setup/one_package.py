"""One package, as files on the host: for the scripts of a clone, which build from sources."""

from __future__ import annotations

import os

from voidbox.images.tree import Tree
from voidbox.setup.archive import Archive
from voidbox.setup.deb import unpack_deb
from voidbox.setup.errors import SetupError
from voidbox.setup.host_copy import new_folder, publish, write_node
from voidbox.setup.tree_edit import merged_root


def unpack_package(archive: Archive, name: str, folder: str) -> str:
    """Unpack a package's newest version, without what it needs; return the path of the folder.

    No script of it is run; /bin, /lib and /sbin are links, as on a Debian with a merged /usr.

    Args:
        folder: is made once all is there, in one that exists.
    Raises:
        SetupError: the archive cannot give it, or the folder exists.
        HostError: it cannot be written.
    """
    if os.path.lexists(folder):
        raise SetupError(f"{folder} is there already: name a new folder")
    parent = os.path.dirname(os.path.abspath(folder))
    if not os.path.isdir(parent):
        raise SetupError(f"there is no folder {parent}")
    (deb,) = archive.download(archive.exactly([name]))
    with new_folder(parent) as work, Tree(work) as tree:
        merged_root(tree)
        unpack_deb(tree, deb)
        write_node(tree.root, f"{work}/root")
        publish(f"{work}/root", folder)
    return folder
