"""Files and folders of this machine in a guest image."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator

from voidbox.images import host_folder
from voidbox.images.errors import ImageError
from voidbox.images.tree import Tree
from voidbox.named_tuple import NamedTuple
from voidbox.setup.errors import SetupError

_FILE_BYTES_MAX = 1 << 30


class Added(NamedTuple):
    """One of them.

    Attributes:
        word: as the user gave it.
        host: its path here; a link is followed.
        guest: its path there, absolute.
    """

    word: str
    host: str
    guest: str

    def fingerprint(self) -> Iterator[str]:
        """Yield what stands for its content and its place. Raises SetupError, OSError."""
        yield self.guest
        host = os.path.realpath(self.host)
        yield _told(host, "")
        for path, folders, files in os.walk(host):
            folders.sort()
            for name in sorted([*folders, *files]):
                full = f"{path}/{name}"
                yield _told(full, os.path.relpath(full, host))

    def put_into(self, tree: Tree) -> None:
        """Put it where it belongs.

        Raises:
            SetupError: something is there already, or in the way.
            OSError: it cannot be read.
        """
        path = self.guest.strip("/")
        try:
            folder = tree.make_folder(path.split("/")[:-1])
        except ImageError as error:
            parent = os.path.dirname(self.guest)
            raise SetupError(f"--add {self.word}: {parent} is no folder in the image") from error
        name = path.rpartition("/")[2]
        if name in folder.children:
            raise SetupError(f"--add {self.word}: the image has a {self.guest} already")
        options = host_folder.default_options()._replace(are_modes_shared=True)
        host = os.path.realpath(self.host)
        try:
            if os.path.isdir(host):
                folder.children[name] = host_folder.read_folder(host, options).root
                return
            with open(host, "rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                content = file.read(_FILE_BYTES_MAX)
        except (ImageError, OSError) as error:
            why = getattr(error, "strerror", None) or error
            raise SetupError(f"--add {self.word}: {why}") from error
        owner = mode & 0o500
        folder.children[name] = tree.add_bytes(
            content, mode=mode & 0o7700 | owner >> 3 | owner >> 6
        )


def parse_added(word: str) -> Added:
    """Return what HOSTPATH:GUESTPATH stands for.

    Raises:
        SetupError: it is something else, or there is nothing of the kind here.
    """
    host, colon, guest = word.partition(":")
    if not colon or not guest.startswith("/") or "\n" in word or "\0" in word:
        raise SetupError(f"--add {word}: give HOSTPATH:GUESTPATH, the guest's path absolute")
    parts = guest[1:].split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise SetupError(f"--add {word}: the guest's path must name a file, without . and ..")
    if not os.path.exists(host):
        raise SetupError(f"--add {word}: there is no {host}")
    for path in _paths(os.path.realpath(host)):
        kind = stat.S_IFMT(os.lstat(path).st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            raise SetupError(f"--add {word}: {path} is no file, folder or link")
    return Added(word, host, guest)


def _paths(host: str) -> Iterator[str]:
    yield host
    for path, folders, files in os.walk(host):
        yield from (f"{path}/{name}" for name in (*folders, *files))


def _told(path: str, name: str) -> str:
    status = os.lstat(path)
    content = ""
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    return f"{name} {status.st_mode:o} {content}"
