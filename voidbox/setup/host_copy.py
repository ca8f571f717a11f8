"""A tree, or a part of one, as files on the host; and folders that have their name once they are
whole."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import time
from collections.abc import Iterator

from voidbox.images.contents import Copier
from voidbox.images.flock import try_lock
from voidbox.images.tree import Directory, Node, Regular, Symlink, encode
from voidbox.setup.files import failure, make_folder
from voidbox.storage import durable

_TEMPORARY = ".new-"
_YOUNG_S = 10.0  # somebody is about to lock it


def write_node(node: Node, path: str) -> None:
    """Write a node, and all that it holds, under a name that is free.

    Its owner is whoever does it; device nodes are left out. A link is made, never followed.

    Raises:
        OSError: writing failed.
    """
    _write(node, encode(path))


def _write(node: Node, path: bytes) -> None:
    if isinstance(node, Directory):
        os.mkdir(path, 0o755)
        for name in sorted(node.children, key=encode):
            _write(node.children[name], b"%s/%s" % (path, encode(name)))
    elif isinstance(node, Symlink):
        os.symlink(encode(node.target), path)
    elif isinstance(node, Regular):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        target = os.open(path, flags, 0o755 if node.mode & 0o111 else 0o644)
        try:
            os.ftruncate(target, node.size)
            copier = Copier(target)
            for extent in node.extents:
                with extent.source.open() as source:
                    copier.copy(source, extent, extent.position)
        finally:
            os.close(target)


@contextlib.contextmanager
def new_folder(parent: str) -> Iterator[str]:
    """Return a temporary folder in a folder of the cache; it is gone when the context ends.

    What killed makers have left there goes, too.

    Raises:
        HostError: it cannot be made, or something in it cannot be written.
    """
    make_folder(parent)
    # Its name is known before it is made: a signal may come in between.
    path, fd = f"{parent}/{_TEMPORARY}{os.urandom(8).hex()}", -1
    try:
        _sweep(parent)
        os.mkdir(path, 0o700)
        # Nobody sweeps it away while this is locked.
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield path
    except OSError as error:
        raise failure("write in", parent, error) from error
    finally:
        durable.remove_tree(path)
        if fd >= 0:
            os.close(fd)


def _sweep(parent: str) -> None:
    for name in os.listdir(parent):
        if name.startswith(_TEMPORARY):
            path = f"{parent}/{name}"
            with contextlib.suppress(BlockingIOError):
                fd = try_lock(path)
                if fd is not None:
                    os.close(fd)
                    if time.time() - os.stat(path).st_mtime > _YOUNG_S:
                        durable.remove_tree(path)


def publish(folder: str, target: str) -> None:
    """Give a finished folder its name; whoever comes first wins.

    Raises:
        HostError: it cannot have it.
    """
    try:
        os.chmod(folder, 0o755)
        with contextlib.suppress(FileExistsError):
            _sync(folder)
            os.rename(folder, target)
            durable.sync_folder(os.path.dirname(target))
    except OSError as error:
        if not os.path.isdir(target):
            raise failure("make", target, error) from error


def _sync(folder: str) -> None:
    """Bring a folder's files to the disk, before its name says that they are whole.

    By syncfs(2): a kernel has thousands of modules, and fsync(2) waits for each.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(fd)


def point(link: str, target: str) -> None:
    """Have a link lead to a name beside it, at once.

    Raises:
        HostError: it cannot.
    """
    beside = f"{link}.{os.getpid()}"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        os.symlink(target, beside)
        os.rename(beside, link)
    except OSError as error:
        raise failure("make", link, error) from error
