"""What the makers of images do to a tree, beside unpacking packages into it."""

from __future__ import annotations

from collections.abc import Iterator

from voidbox.images.tree import Directory, Node, Regular, Symlink, Tree

_MERGED = ("bin", "lib", "lib64", "sbin")


def merged_root(tree: Tree) -> None:
    """Give an empty tree the folders of a merged /usr, before packages come that know of none."""
    for name in _MERGED:
        tree.make_folder(["usr", name])
        tree.put(name, Symlink(target=f"usr/{name}"))


def remove(tree: Tree, path: str) -> None:
    """Take what is at a path out of a tree, if anything is; a link is taken, not what it is to.

    Raises:
        ImageError: the path leads out of the tree.
    """
    parent, _, name = path.strip("/").rpartition("/")
    folder = tree.find(parent) if parent else tree.root
    if isinstance(folder, Directory):
        folder.children.pop(name, None)


def remove_all(tree: Tree, name: str) -> None:
    """Take everything of a name out of a tree, wherever it is."""
    for _, node in list(tree.walk()):
        if isinstance(node, Directory):
            node.children.pop(name, None)


def put_bytes(tree: Tree, path: str, content: bytes | str, mode: int = 0o644) -> None:
    """Put a file at a path.

    Raises:
        ImageError: something other than a folder is in the way.
        OSError: writing failed.
    """
    data = content.encode() if isinstance(content, str) else content
    tree.put(path, tree.add_bytes(data, mode=mode))


def names(tree: Tree, path: str) -> list[str]:
    """Return what a folder holds, sorted; nothing if it is none."""
    folder = tree.find(path)
    return sorted(folder.children) if isinstance(folder, Directory) else []


def settle(tree: Tree) -> None:
    """Have everything belong to root and be of 1970: where and when it was made does not show."""
    for node in _nodes(tree):
        node.uid = node.gid = node.mtime_ns = 0


def _nodes(tree: Tree) -> Iterator[Node]:
    for _, node in tree.walk():
        yield node


def read(tree: Tree, path: str, limit_bytes: int = 64 << 20) -> bytes | None:
    """Return a file's content, following links; None if there is no such file.

    Raises:
        ImageError: it is too long, or links lead in circles.
    """
    node = tree.find(path)
    for _ in range(40):
        if not isinstance(node, Symlink):
            break
        folder = "" if node.target.startswith("/") else path.rpartition("/")[0]
        path = f"{folder}/{node.target}"
        node = tree.find(path)
    return tree.read(node, limit_bytes) if isinstance(node, Regular) else None
