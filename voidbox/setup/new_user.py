"""A user of one's own in an image: with a home and, where there is sudo, root's rights."""

from __future__ import annotations

import re

from voidbox.errors import ConfigError
from voidbox.images.tree import Directory, Tree
from voidbox.setup.tree_edit import put_bytes, read

UID = 1000
_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,30}")  # as adduser(8) wants it
_SKELETON = (".bashrc", ".profile")


def check_user_name(name: str) -> None:
    """Refuse what is no user's name.

    Raises:
        ConfigError: that.
    """
    if not _NAME.fullmatch(name) or name == "root":
        raise ConfigError(f"{name!r} is no name for a user: small letters, digits, '_' and '-'")


def add_user(tree: Tree, name: str) -> None:
    """Add a user, its group and its home to a Debian; nobody can log in as it by a password.

    Raises:
        ConfigError: there is one of this name or number already.
    """
    lines = {
        "passwd": f"{name}:x:{UID}:{UID}:{name}:/home/{name}:/bin/bash\n",
        "group": f"{name}:x:{UID}:\n",
        "shadow": f"{name}:*:19000:0:99999:7:::\n",
    }
    for table, line in lines.items():
        content = read(tree, f"etc/{table}")
        if content is None:
            continue
        taken = [words.split(":") for words in content.decode("utf-8", "replace").splitlines()]
        is_number = table != "shadow"
        if any(row[0] == name or (is_number and row[2:3] == [str(UID)]) for row in taken):
            raise ConfigError(f"--new-user {name}: the image has such a user already")
        put_bytes(tree, f"etc/{table}", content + line.encode(), 0o640 if not is_number else 0o644)
    make_home(tree, f"home/{name}", UID)
    if isinstance(tree.find("etc/sudoers.d"), Directory):
        put_bytes(tree, f"etc/sudoers.d/{name}", f"{name} ALL=(ALL) NOPASSWD: ALL\n", 0o440)


def make_home(tree: Tree, folder: str, uid: int) -> None:
    """Make a user's folder, with what a new one has."""
    home = tree.make_folder(folder.split("/"))
    for name in _SKELETON:
        content = read(tree, f"etc/skel/{name}")
        if content is not None:
            put_bytes(tree, f"{folder}/{name}", content)
    for node in (home, *home.children.values()):
        node.uid = node.gid = uid
