"""A Debian archive: its lists checked, its packages chosen and downloaded into the cache.

    debs/NAME_VERSION_ARCH.deb     what was downloaded and is whole; partial/ is on its way
    lists/SUITE/InRelease          as it was fetched last; what it names lies in lists/ by digest

Whatever is in the cache was checked when it came, and is checked when it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import json
import os
from collections.abc import Callable, Sequence
from types import TracebackType

from voidbox.defaults import cache_folder
from voidbox.images import progress
from voidbox.images.progress import INSTALL, ImageProgress, OnProgress, Tally
from voidbox.named_tuple import NamedTuple
from voidbox.setup import openpgp, sources
from voidbox.setup.apt_conf import AptConf, read_apt_conf
from voidbox.setup.errors import SetupError
from voidbox.setup.files import PARTIAL, Files, is_whole, make_folder, replace
from voidbox.setup.lists import Lists
from voidbox.setup.packages import Package, parse_package
from voidbox.setup.resolve import Universe, resolve
from voidbox.setup.site import Absent
from voidbox.setup.sources import DEFAULT_SUITE, Source
from voidbox.threads import Threads

MIRROR_VARIABLE = "VOIDBOX_MIRROR"
_AT_A_TIME = 4
_KEYS_FOLDER = "keys"


class ArchiveOptions(NamedTuple):
    """Which archive.

    Attributes:
        suite: a release's code name.
        mirror: its address; $VOIDBOX_MIRROR, then what this host's apt has, if None.
        offline: a folder laid out as a mirror, in place of any.
        keyring: a file with keys to trust beside those of Debian's archive.
        is_refreshed: ask for new lists, however fresh those in the cache are.
        save: a folder that becomes a mirror of what is used, for `offline` elsewhere.
        cache: the user's own if None.
        apt: where apt's configuration is.
    """

    suite: str = DEFAULT_SUITE
    mirror: str | None = None
    offline: str | None = None
    keyring: str | None = None
    is_refreshed: bool = False
    save: str | None = None
    cache: str | None = None
    apt: str = sources.ETC


def open_archive(
    options: ArchiveOptions | None = None, report: OnProgress = progress.ignore
) -> Archive:
    """Return the archive; nothing is asked yet.

    Raises:
        SetupError: nobody says where it is, or its keys cannot be read.
        HostError: the cache cannot be used.
    """
    options = options or ArchiveOptions()
    sources.check_suite(options.suite)
    conf = AptConf()
    mirror = options.mirror or os.environ.get(MIRROR_VARIABLE)
    if options.offline is not None:
        found = sources.folder_sources(options.offline, options.suite)
    elif mirror:
        found = sources.mirror_sources(mirror, options.suite)
    else:
        found, conf = (
            sources.host_sources(options.suite, options.apt),
            read_apt_conf(options.apt),
        )
    return Archive(options, found, conf, _read_keys(options.keyring), report)


def _read_keys(keyring: str | None) -> list[openpgp.Key]:
    """Return Debian's keys, which are part of this package, and the user's."""
    keys = []
    folder = importlib.resources.files("voidbox.setup") / _KEYS_FOLDER
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".gpg"):
            keys += openpgp.read_keyring(entry.read_bytes())
    if keyring is not None:
        try:
            with open(keyring, "rb") as file:
                found = openpgp.read_keyring(file.read(openpgp.DOCUMENT_BYTES_MAX))
        except OSError as error:
            raise SetupError(f"--keyring {keyring}: cannot read it: {error.strerror}") from error
        except SetupError as error:
            raise SetupError(f"--keyring {keyring}: {error}") from error
        if not found:
            raise SetupError(f"--keyring {keyring}: it has no RSA key of 2048 bits or more")
        keys += found
    return keys


class Archive:
    """See open_archive. Use as a context manager. Thread: the caller's, but for downloads.

    Args:
        found: where its suites are.
        conf: apt's configuration, where that says where they are.
        keys: of those who may sign lists.
        report: told of downloads, and of what the user should know (INSTALL).
    """

    def __init__(
        self,
        options: ArchiveOptions,
        found: Sequence[Source],
        conf: AptConf,
        keys: Sequence[openpgp.Key],
        report: OnProgress = progress.ignore,
    ) -> None:
        self.suite = options.suite
        self.sources = tuple(found)
        self._report = report
        self._files = Files(conf.proxies, options.save)
        self._is_saving = options.save is not None
        cache = options.cache or cache_folder()
        self._debs = f"{cache}/debs"
        make_folder(f"{self._debs}/{PARTIAL}")
        self._lists = Lists(
            found, keys, self._files, f"{cache}/lists",
            is_refreshed=options.is_refreshed or options.mirror is not None,
            is_bound=options.offline is not None,
            may_be_old=not conf.are_dates_checked,
            report=report, tell=self._tell,
        )  # fmt: skip

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._files.close()

    def snapshot(self) -> str:
        """Return what stands for the state of all lists: the same state, the same packages.

        Raises:
            SetupError, HostError: see Lists.universe.
        """
        return self._lists.snapshot()

    def universe(self) -> Universe:
        """Return all that there is.

        Raises:
            SetupError, HostError: see Lists.universe.
        """
        return self._lists.universe()

    def resolve(self, names: Sequence[str]) -> list[Package]:
        """Return these packages and all that they depend on, needed ones first.

        Raises:
            SetupError: see resolve.resolve and Lists.universe.
            HostError: the cache cannot be written.
        """
        return self._recall("resolve", names, lambda: resolve(self.universe(), names))

    def exactly(self, names: Sequence[str]) -> list[Package]:
        """Return the newest versions of these packages, and nothing more.

        Args:
            names: "ONE|OTHER" for what has another name in another release.
        Raises:
            SetupError: there is no such package; see Lists.universe.
            HostError: the cache cannot be written.
        """
        return self._recall("exactly", names, lambda: [self._newest(name) for name in names])

    def base(self, names: Sequence[str]) -> list[Package]:
        """Return what every Debian has, essential or required, these packages, and their needs.

        Raises:
            SetupError, HostError: as resolve().
        """
        return self._recall(
            "base", names, lambda: resolve(self.universe(), [*self.universe().base(), *names])
        )

    def _newest(self, names: str) -> Package:
        for name in names.split("|"):
            package = self.universe().newest(name)
            if package is not None:
                return package
        raise SetupError(f"the archive has no package {names}: is the mirror whole?")

    def _recall(
        self, kind: str, names: Sequence[str], find: Callable[[], list[Package]]
    ) -> list[Package]:
        """Return what was found before, while the lists are the same: they are long to read."""
        words = json.dumps([self.snapshot(), kind, list(names)])
        path = f"{self._lists.folder}/found-{hashlib.sha256(words.encode()).hexdigest()[:24]}.json"
        uris = {source.suite: source.uri for source in self.sources}
        suites = {source.uri: source.suite for source in self.sources}
        if not self._is_saving:  # else the lists are to be read
            with (
                contextlib.suppress(OSError, ValueError, TypeError, KeyError, SetupError),
                open(path, encoding="utf-8") as file,
            ):
                return [parse_package(stanza, uris[suite]) for suite, stanza in json.load(file)]
        found = find()
        kept = [(suites[package.uri], package.stanza) for package in found]
        replace(path, json.dumps(kept).encode())
        return found

    def download(self, packages: Sequence[Package]) -> list[str]:
        """Have the cache hold these packages; return the paths of their files, in the same order.

        Raises:
            SetupError: one cannot be had, or is not what the list says.
            HostError: the disk is full, say; what has come stays, and is gone on from.
        """
        paths = [f"{self._debs}/{package.file_name}" for package in packages]
        missing = [
            package
            for package, path in zip(packages, paths, strict=True)
            if not is_whole(path, package.digest)
        ]
        tally = Tally(sum(package.digest.size_bytes for package in missing), self._report)

        def fetch(package: Package) -> None:
            target = f"{self._debs}/{package.file_name}"
            try:
                self._files.fetch(package.uri, package.path, package.digest, target, tally.add)
            except Absent as error:
                raise SetupError(
                    f"{error}: the archive has changed since its list was made: --refresh asks "
                    "for a new one"
                ) from error

        self._in_parallel(fetch, missing)
        for package, path in zip(packages, paths, strict=True):
            self._files.save(path, package.path)
        return paths

    def _in_parallel(self, fetch: Callable[[Package], None], packages: Sequence[Package]) -> None:
        with Threads(_AT_A_TIME, "voidbox-packages") as threads:
            try:
                for package in packages:
                    threads.submit(fetch, package)
                for _ in packages:
                    threads.first().result()
            except BaseException:
                self._files.stop()
                raise

    def _tell(self, line: str) -> None:
        self._report(ImageProgress(INSTALL, line, 0, 0))
