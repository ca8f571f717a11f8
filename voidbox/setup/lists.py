"""The lists of an archive: who signed them, which of them the cache has, what they hold.

A list that was fetched today is not asked for again, unless the user wants to know or names a
mirror; and where nobody answers, an older one will do.
"""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import os
import time
import zlib
from collections.abc import Callable, Sequence

from voidbox.images.progress import OnProgress, Tally
from voidbox.setup import openpgp
from voidbox.setup.errors import SetupError
from voidbox.setup.files import PARTIAL, Files, is_whole, make_folder, replace
from voidbox.setup.packages import ARCHITECTURE, PackageList
from voidbox.setup.release import Digest, Release, read_release, shown_time
from voidbox.setup.resolve import Universe
from voidbox.setup.site import Absent, Unreached
from voidbox.setup.sources import Source, hide_credentials

_LIST_BYTES_MAX = 256 << 20  # unpacked; Debian's largest has 50 MB
_FRESH_S = 24 * 3600.0
_KINDS = (".xz", ".gz", "")


class Lists:
    """What some sources have. Thread: one.

    Args:
        found: where the suites are.
        keys: of those who may sign.
        files: the cache's.
        folder: of the cache, for lists.
        is_refreshed: ask for new ones, however fresh those in the cache are.
        is_bound: those who are asked decide alone: older ones than the cache's are taken, and
            expired ones, too.
        may_be_old: expired ones are taken.
        report: told of downloads; `tell`, of what the user should know.
    """

    def __init__(
        self,
        found: Sequence[Source],
        keys: Sequence[openpgp.Key],
        files: Files,
        folder: str,
        *,
        is_refreshed: bool,
        is_bound: bool,
        may_be_old: bool,
        report: OnProgress,
        tell: Callable[[str], object],
    ) -> None:
        self._sources = found
        self._keys = keys
        self._files = files
        self.folder = folder
        self._is_refreshed = is_refreshed
        self._is_bound = is_bound
        self._may_be_old = may_be_old or is_bound
        self._report = report
        self._tell = tell
        self._is_unreached = False  # and the cache stands in
        self._releases: list[tuple[Source, Release]] | None = None
        self._universe: Universe | None = None
        make_folder(f"{folder}/{PARTIAL}")

    def snapshot(self) -> str:
        """Return what stands for the state of all lists: the same state, the same packages.

        Raises:
            SetupError: see universe().
        """
        digests = [
            f"{source.suite} {path} {digest.sha256}"
            for source, release in self._read_releases()
            for path, digest in (self._list_of(source, release, name) for name in source.components)
        ]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def universe(self) -> Universe:
        """Return all that there is.

        Raises:
            SetupError: the archive cannot be reached, is not signed by whom it should be, is not
                this suite, or has expired.
            HostError: the cache cannot be written.
        """
        if self._universe is None:
            lists = []
            for source, release in self._read_releases():
                for component in source.components:
                    path, digest = self._list_of(source, release, component)
                    content = self._list_content(source, release, path, digest)
                    lists.append(PackageList(content, source.uri))
            self._universe = Universe(lists)
        return self._universe

    def _read_releases(self) -> list[tuple[Source, Release]]:
        if self._releases is None:
            found = [(source, self._release(source)) for source in self._sources]
            self._releases = [(source, one) for source, one in found if one is not None]
            for source, release in self._releases:
                self._files.save(self._in_release(source.suite), f"dists/{source.suite}/InRelease")
                self._check_age(source, release)
        return self._releases

    def _in_release(self, suite: str) -> str:
        return f"{self.folder}/{suite}/InRelease"

    def _release(self, source: Source) -> Release | None:
        """Return a suite's release: new, or as the cache has it; None if it may be missing."""
        kept = self._kept_release(source)
        if kept is not None and self._is_fresh(source):
            return kept
        where = f"{hide_credentials(source.uri)}/dists/{source.suite}/InRelease"
        try:
            document = self._files.read(
                source.uri, f"dists/{source.suite}/InRelease", openpgp.DOCUMENT_BYTES_MAX
            )
        except Absent as error:
            if not source.is_needed:
                self._tell(f"{where} is not there: going on without it")
                return None
            raise SetupError(
                f"{hide_credentials(source.uri)} has no suite {source.suite}: is the address "
                "right? most mirrors' ends in /debian"
            ) from error
        except Unreached as error:
            if kept is None and (source.is_needed or not self._is_unreached):
                raise SetupError(
                    f"{error} `voidbox setup --offline DIR` takes a folder instead"
                ) from error
            self._is_unreached = True
            if kept is not None:
                self._tell(f"{error} Using the list of {shown_time(kept.date_s)}")
            return kept
        release = read_release(document, source.suite, self._keys, where=where)
        if kept is not None and release.date_s < kept.date_s and not self._is_bound:
            self._tell(f"{where} is older than what was there before: not taken")
            return kept
        replace(self._in_release(source.suite), document)
        return release

    def _is_fresh(self, source: Source) -> bool:
        if self._is_refreshed or self._is_bound:
            return False
        age_s = time.time() - os.stat(self._in_release(source.suite)).st_mtime
        return 0 <= age_s < _FRESH_S

    def _kept_release(self, source: Source) -> Release | None:
        """Return what the cache has, unless it is damaged or signed by somebody else."""
        path = self._in_release(source.suite)
        with contextlib.suppress(FileNotFoundError, SetupError):
            with open(path, "rb") as file:
                document = file.read(openpgp.DOCUMENT_BYTES_MAX)
            return read_release(document, source.suite, self._keys, where=path)
        return None

    def _check_age(self, source: Source, release: Release) -> None:
        if not release.is_expired(time.time()):
            return
        until = shown_time(release.valid_until_s or 0)
        what = f"the list of {source.suite} at {hide_credentials(source.uri)} expired on {until}"
        if not (self._may_be_old or self._is_unreached):
            raise SetupError(f"{what}: is this machine's clock right? else try another --mirror")
        self._tell(f"{what}: newer packages may mend what these leave open")

    def _list_of(self, source: Source, release: Release, component: str) -> tuple[str, Digest]:
        """Return path below the suite's folder and digest of a component's list, unpacked."""
        path = f"{component}/binary-{ARCHITECTURE}/Packages"
        digest = release.files.get(path)
        if digest is None:
            raise SetupError(f"{source.suite} has no {path}: is this a whole mirror?")
        return path, digest

    def _list_content(self, source: Source, release: Release, path: str, digest: Digest) -> bytes:
        """Return a list, unpacked."""
        if not digest.size_bytes:
            return b""
        for kind in _KINDS:
            packed = release.files.get(path + kind)
            if packed is None:
                continue
            target = f"{self.folder}/{packed.sha256}{kind}"
            try:
                if not is_whole(target, packed):
                    self._fetch_list(source, release, path + kind, packed, target)
                content = _unpack(target, kind, digest)
            except Absent:
                continue
            self._files.save(target, f"dists/{source.suite}/{path}{kind}")
            return content
        raise SetupError(f"{hide_credentials(source.uri)} lacks {source.suite}'s {path}: try later")

    def _fetch_list(
        self, source: Source, release: Release, path: str, packed: Digest, target: str
    ) -> None:
        folder = f"dists/{source.suite}/{os.path.dirname(path)}"
        names = [f"dists/{source.suite}/{path}"]
        if release.has_by_hash:  # a list may be replaced between two requests
            names.insert(0, f"{folder}/by-hash/SHA256/{packed.sha256}")
        for idx, name in enumerate(names):
            tally = Tally(packed.size_bytes, self._report)
            try:
                self._files.fetch(source.uri, name, packed, target, tally.add)
                return
            except Absent:
                if idx == len(names) - 1:
                    raise


def _unpack(path: str, kind: str, digest: Digest) -> bytes:
    """Return a list's content, which the signed list of lists bounds and checks."""
    limit = min(digest.size_bytes, _LIST_BYTES_MAX) + 1
    try:
        with open(path, "rb") as file:
            content = file.read()
        if kind == ".xz":
            content = lzma.LZMADecompressor().decompress(content, limit)
        elif kind == ".gz":
            content = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(content, limit)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise SetupError(f"cannot unpack {path}: {error}") from error
    if hashlib.sha256(content).hexdigest() != digest.sha256:
        raise SetupError(f"{path} does not unpack to what the archive's list says")
    return content
