"""What was in the folder, on the host and in the guest, when both were last the same."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from typing import Any

from voidbox.agent.core import printable
from voidbox.errors import ConfigError, HostError
from voidbox.named_tuple import NamedTuple

STAGING_PREFIX = ".voidbox-sync-"
FILE, FOLDER, LINK = "file", "folder", "link"
_VERSION = 1
_READ_BYTES = 1 << 20
_DIGEST_BYTES = 20

Parts = tuple[str, ...]


class HostItem(NamedTuple):
    """Something in the host's folder.

    Attributes:
        kind: FILE, FOLDER, LINK, or another word for what is none of these.
        mode: its permissions.
        digest: of a file's contents, in hexadecimal digits; "" for what is no file.
        target: where a link leads.
    """

    kind: str
    mode: int
    size: int
    mtime_ns: int
    digest: str = ""
    target: str = ""


class GuestItem(NamedTuple):
    """Something in the guest's folder, by its word. One that is changed in any way differs.

    Attributes:
        ctime_ns, file: the kernel's own note of the last change, and the inode.
    """

    kind: str
    mode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    file: int
    target: str = ""


class Manifest(NamedTuple):
    """Both sides at one moment."""

    host: dict[Parts, HostItem]
    guest: dict[Parts, GuestItem]

    def save(self, path: str) -> None:
        """Write it to a file, whole or not at all.

        Raises:
            HostError: it cannot be written.
        """
        document = {
            "version": _VERSION,
            "host": [["/".join(parts), *item] for parts, item in self.host.items()],
            "guest": [["/".join(parts), *item] for parts, item in self.guest.items()],
        }
        temporary = f"{path}.new"
        try:
            # Names that are no UTF-8 are surrogates, which only ASCII can hold.
            with open(temporary, "w", encoding="ascii") as file:
                json.dump(document, file)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except OSError as error:
            raise HostError(f"cannot write {path}: {error.strerror}", error.errno or 0) from error

    @classmethod
    def load(cls, path: str) -> Manifest:
        """Read what save() wrote.

        Raises:
            ConfigError: there is none, or none that is whole.
        """
        try:
            with open(path, encoding="ascii") as file:
                document: dict[str, Any] = json.load(file)
            if document["version"] != _VERSION:
                raise ValueError(f"version {document['version']}")
            return cls(
                {tuple(path.split("/")): HostItem(*rest) for path, *rest in document["host"]},
                {tuple(path.split("/")): GuestItem(*rest) for path, *rest in document["guest"]},
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"cannot tell what was copied into the sandbox ({path}: {error}): "
                "copy what you need with `voidbox cp`"
            ) from error


def kind_of(mode: int) -> str:
    """Return what a mode says, as the guest's agent calls it."""
    kinds = {stat.S_IFREG: FILE, stat.S_IFDIR: FOLDER, stat.S_IFLNK: LINK}
    return kinds.get(stat.S_IFMT(mode), "other")


def digest_of(fd: int) -> str:
    """Return the digest of an open file's contents."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    offset = 0
    while data := os.pread(fd, _READ_BYTES, offset):
        digest.update(data)
        offset += len(data)
    return digest.hexdigest()


def look(folder_fd: int, name: str) -> HostItem | None:
    """Return what a name in a folder of the host stands for; None for nothing.

    A file is read, for what has another content may have the same size and time.

    Raises:
        OSError: it cannot be read.
    """
    try:
        status = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    kind, mode = kind_of(status.st_mode), stat.S_IMODE(status.st_mode) & 0o777
    if kind == LINK:
        return HostItem(kind, mode, 0, 0, "", os.readlink(name, dir_fd=folder_fd))
    if kind != FILE:
        return HostItem(kind, mode, 0, 0)
    size, mtime_ns = status.st_size, status.st_mtime_ns
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=folder_fd)
    try:
        return HostItem(kind, mode, size, mtime_ns, digest_of(fd))
    finally:
        os.close(fd)


def scan_host(path: str) -> dict[Parts, HostItem]:
    """Return what is in a folder of the host, with the digests of all files.

    Raises:
        ConfigError: it cannot be read.
    """
    found: dict[Parts, HostItem] = {}
    waiting: list[Parts] = [()]
    while waiting:
        folder = waiting.pop()
        where = folder_path = "/".join((path, *folder))
        try:
            fd = os.open(folder_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for name in os.listdir(fd):
                    if not folder and name.startswith(STAGING_PREFIX):
                        continue
                    where = f"{folder_path}/{name}"
                    item = look(fd, name)
                    if item is None:
                        continue
                    found[(*folder, name)] = item
                    if item.kind == FOLDER:
                        waiting.append((*folder, name))
            finally:
                os.close(fd)
        except OSError as error:
            raise ConfigError(f"cannot read {printable(where)}: {error.strerror}") from error
    return found
