"""The cache of what comes from an archive: each file has its name once it is whole.

Whatever is killed, what has come stays in partial/, under its digest, and is gone on from.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Mapping

from voidbox.errors import HostError
from voidbox.images.flock import OwnedFile
from voidbox.setup.errors import SetupError
from voidbox.setup.release import Digest
from voidbox.setup.site import Site, open_site
from voidbox.storage import durable

PARTIAL = "partial"
_ELSEWHERE = "name another folder for it with VOIDBOX_CACHE"
_TODO = {
    errno.ENOSPC: f"free some space there, or {_ELSEWHERE}",
    errno.EDQUOT: f"free some space there, or {_ELSEWHERE}",
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.ENOTDIR: _ELSEWHERE,
}


def failure(verb: str, path: str, error: OSError) -> HostError:
    """Return the error of an operation on the cache, which says what to do."""
    found = durable.failure(verb, path, error)
    todo = _TODO.get(error.errno or 0)
    return HostError(f"{found}: {todo}", found.errno) if todo else found


class Files:
    """Brings an archive's files into the cache. Thread: any.

    Args:
        proxies: of apt's, where the environment names none.
        save: a folder that becomes a mirror of what is used; None for none.
    """

    def __init__(self, proxies: Mapping[str, str], save: str | None) -> None:
        self._proxies = proxies
        self._save_folder = save
        self._sites: dict[str, Site] = {}

    def close(self) -> None:
        """Let go of all connections. Idempotent."""
        for site in self._sites.values():
            site.close()

    def stop(self) -> None:
        """End what other threads fetch."""
        for site in self._sites.values():
            site.stop()

    def read(self, uri: str, path: str, limit_bytes: int) -> bytes:
        """Return a small file of an archive. Raises as Site.read."""
        return self._site(uri).read(path, limit_bytes)

    def fetch(
        self, uri: str, path: str, digest: Digest, target: str, on_bytes: Callable[[int], object]
    ) -> None:
        """Have a file of the cache be one of an archive's.

        Raises:
            SetupError: it cannot be had, or is not what its digest says.
            HostError: the disk is full, say; what has come stays.
        """
        partial = f"{os.path.dirname(target)}/{PARTIAL}/{digest.sha256}"
        try:
            with OwnedFile(partial) as file:
                if is_whole(target, digest):  # somebody else has got it meanwhile
                    file.delete()
                    on_bytes(digest.size_bytes)
                    return
                try:
                    self._site(uri).fetch(path, file, digest, on_bytes)
                except SetupError:
                    if not os.fstat(file.fd).st_size:  # nothing to go on from
                        file.delete()
                    raise
                os.fsync(file.fd)
                os.fchmod(file.fd, 0o644)
                os.rename(partial, target)
                durable.sync_folder(os.path.dirname(target))
        except OSError as error:
            raise failure("write", partial, error) from error

    def save(self, path: str, name: str) -> None:
        """Put a file into the folder that becomes a mirror, if there is one.

        Raises:
            HostError: it cannot be written.
        """
        if self._save_folder is None:
            return
        target = f"{self._save_folder}/{name}"
        make_folder(os.path.dirname(target))
        beside = f"{target}.{os.getpid()}"
        try:
            with open(path, "rb") as source:
                durable.write_file(beside, source.read(), 0o644)
            os.rename(beside, target)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise failure("write", target, error) from error

    def _site(self, uri: str) -> Site:
        site = self._sites.get(uri)
        if site is None:
            site = self._sites.setdefault(uri, open_site(uri, self._proxies))
        return site


def make_folder(path: str) -> None:
    """Make a folder of the cache, and those above it.

    Raises:
        HostError: it cannot be.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise failure("make", path, error) from error


def is_whole(path: str, digest: Digest) -> bool:
    """Whether a file of the cache is what it should be."""
    try:
        if os.stat(path).st_size != digest.size_bytes:
            return False
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest.sha256
    except FileNotFoundError:
        return False
    except OSError as error:
        raise failure("read", path, error) from error


def replace(path: str, content: bytes) -> None:
    """Write a file that has its name once it is whole.

    Raises:
        HostError: it cannot be written; what was there stays.
    """
    make_folder(os.path.dirname(path))
    beside = f"{path}.{os.getpid()}"
    try:
        durable.write_file(beside, content, 0o644)
        os.rename(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise failure("write", path, error) from error
