"""An image from what is on this machine: a folder, an archive of a root folder or of images."""

from __future__ import annotations

import bz2
import lzma
import os
import stat
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import BinaryIO

from voidbox.errors import ConfigError
from voidbox.images import progress
from voidbox.images.archive import (
    ArchivedImage,
    choose_image,
    is_archive,
    is_member,
    is_named_so,
    read_archive,
)
from voidbox.images.assemble import LayerSource, add_tree, make_image
from voidbox.images.boxes import Box, FolderBox, TarBox
from voidbox.images.config import DEFAULT_ENV, ImageConfig
from voidbox.images.config_change import ConfigChange
from voidbox.images.errors import ImageError
from voidbox.images.host_folder import read_folder
from voidbox.images.limits import DEFAULT_LIMITS
from voidbox.images.manifest import check_level, parse_platform
from voidbox.images.progress import OnProgress
from voidbox.images.record import ImageRecord, Layer
from voidbox.images.reference import Reference, parse_new_name
from voidbox.images.store import Image, ImageStore
from voidbox.images.unpack import unpack
from voidbox.storage import durable

STDIN = "-"
_XZ, _BZIP2 = b"\xfd7zXZ", b"BZh"
_STANDARD_LIBRARYS = (_XZ, _BZIP2)
_UNPACKS = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # gzip, zstd


def import_(
    name: str,
    source: str | os.PathLike[str],
    *,
    tag: str = "",
    env: Mapping[str, str] | None = None,
    workdir: str | None = None,
    user: str | None = None,
    entrypoint: Sequence[str] | None = None,
    cmd: Sequence[str] | None = None,
    platform: str = "linux/amd64",
    store: ImageStore | None = None,
    progress: OnProgress = progress.ignore,
) -> Image:
    """Have the store hold an image made of what is on this machine. Thread: the caller's.

    Args:
        name: what it is to be called.
        source: a root folder, a tar archive of one, or what `docker save` wrote or an OCI layout,
            as an archive or a folder; perhaps compressed. "-" is an archive on standard input.
        tag: which image of an archive of several.
        env: variables more than the image's own.
        workdir: instead of the image's own; so `user`.
        entrypoint: instead of the image's own, whose `cmd` then counts no more.
        cmd: instead of the image's own.
        platform: the one to take of a multi-platform image.
        store: the user's own if None.
        progress: called with each step.

    Raises:
        ConfigError: there is no such source, or no such image in it.
        ImageError: it cannot be made an image.
        HostError: the disk is full, say; nothing has changed.
    """
    reference = parse_new_name(name)
    change = ConfigChange(env, workdir, user, entrypoint, cmd)
    change.apply(ImageConfig())  # refuses what is wrong before any work
    parse_platform(platform)
    path = os.fspath(source)
    made = _Import(store or ImageStore(), reference, path, change, progress)
    try:
        return made.run(tag, platform)
    except ImageError as error:
        raise type(error)(f"{made.shown}: {error}") from error


class _Import:
    def __init__(
        self,
        store: ImageStore,
        reference: Reference,
        source: str,
        change: ConfigChange,
        report: OnProgress,
    ) -> None:
        self._store = store
        self._reference = reference
        self._source = source
        self._change = change
        self._report = report
        self.shown = "standard input" if source == STDIN else source

    def run(self, tag: str, platform: str) -> Image:
        if self._source != STDIN and os.path.isdir(self._source):
            folder = FolderBox(self._source)
            if is_archive(folder) or (is_named_so(folder) and not self._is_root()):
                return self._from_archive(folder, tag, platform)
            return self._from_folder()
        with ExitStack() as at_end:
            # What is unpacked or read from a stream lies on the store's disk, without a name.
            draft = at_end.enter_context(self._store.draft())
            file = at_end.enter_context(self._open())
            try:
                spool = at_end.enter_context(open(f"{draft.spool}/archive", "x+b"))
                os.unlink(spool.name)
                file = _plain(file, spool)
            except OSError as error:
                raise durable.failure("unpack into", draft.spool, error) from error
            box = TarBox(file, is_member)
            if box.is_other and not is_archive(box):
                return self._from_tar(file)
            if box.is_empty:
                raise ImageError("it is no tar archive, or has nothing in it")
            if not is_named_so(box):
                raise ImageError("it is cut short: it has neither manifest.json nor index.json")
            return self._from_archive(box, tag, platform)

    def _is_root(self) -> bool:
        """Whether a folder, whose manifest.json leads to no images, can be a root folder."""
        return any(os.path.isdir(f"{self._source}/{name}") for name in ("bin", "usr", "etc"))

    def _open(self) -> BinaryIO:
        try:
            if self._source == STDIN:
                return open(sys.stdin.fileno(), "rb", closefd=False)
            fd = os.open(self._source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(fd, True)
            return open(fd, "rb")
        except (OSError, ValueError, AttributeError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"cannot read {self.shown}: {why}") from error

    def _from_archive(self, box: Box, tag: str, platform: str) -> Image:
        images = read_archive(box, parse_platform(platform))
        image = choose_image(images, tag, self._reference)
        config = self._change.apply(image.config.config)
        wanted = parse_platform(platform)
        if not wanted.is_served_by(image.config.platform):
            raise ImageError(f"it is made for {image.config.platform}, not for {wanted}")
        check_level(wanted, image.config.platform)
        id = image.id if config == image.config.config else ""
        if id and self._store.name(self._reference, id):
            return self._store.find(id)
        return make_image(
            self._store, self._reference, self._record_of(image, config, id), image.layers,
            self._report,
        )  # fmt: skip

    def _record_of(self, image: ArchivedImage, config: ImageConfig, id: str) -> ImageRecord:
        return self._record(config)._replace(
            id=id,
            created_at=image.config.created_at,
            platform=str(image.config.platform),
            digest=image.digest,
            layers=tuple(Layer(layer.diff_id, layer.size_bytes) for layer in image.layers),
        )

    def _from_tar(self, file: BinaryIO) -> Image:
        file.seek(0)
        layer = LayerSource("", "", os.fstat(file.fileno()).st_size, lambda: file)
        record = self._record(self._change.apply(ImageConfig(env=DEFAULT_ENV)))
        return make_image(self._store, self._reference, record, [layer], self._report)

    def _from_folder(self) -> Image:
        record = self._record(self._change.apply(ImageConfig(env=DEFAULT_ENV)))
        with self._store.draft() as draft, read_folder(self._source) as tree:
            return add_tree(self._store, draft, self._reference, record, tree, self._report)

    def _record(self, config: ImageConfig) -> ImageRecord:
        return ImageRecord(
            id="",
            config=config,
            size_bytes=0,
            created_at=None,
            added_at=time.time(),
            source=f"imported from {self.shown}",
        )


def _plain(file: BinaryIO, spool: BinaryIO) -> BinaryIO:
    """Return the archive uncompressed, in a file that can be read at any place.

    Raises:
        ImageError: it is damaged, or larger than images are.
        OSError: the disk is full, say.
    """
    is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    start = file.read(6)  # as often as it takes: a pipe may come by a byte at a time
    if is_regular:
        file.seek(0)
    source: BinaryIO = file if is_regular else _Started(start, file)  # type: ignore[assignment]
    if start.startswith(_STANDARD_LIBRARYS):
        size = os.fstat(file.fileno()).st_size if is_regular else None
        _unpack_by_library(source, start, size, spool)
    elif is_regular and not start.startswith(_UNPACKS):
        return file
    else:
        unpack(source, spool, DEFAULT_LIMITS)
    return spool


class _Started:
    """A stream whose start has been read."""

    def __init__(self, start: bytes, rest: BinaryIO) -> None:
        self._start = start
        self._rest = rest

    def read(self, size: int) -> bytes:
        start, self._start = self._start, b""
        return start or self._rest.read(size)


def _unpack_by_library(file: BinaryIO, start: bytes, size: int | None, spool: BinaryIO) -> None:
    """Unpack xz or bzip2, where nobody counts what is read for what comes out: count the whole."""
    limits = DEFAULT_LIMITS
    if size is not None:
        most = max(limits.ratio_from_bytes, limits.ratio * size)
        limits = limits._replace(total_bytes=min(most, limits.total_bytes))
    limits = limits._replace(ratio=1 << 20)
    reader = lzma.LZMAFile if start.startswith(_XZ) else bz2.BZ2File
    try:
        with reader(file) as stream:
            unpack(stream, spool, limits)  # type: ignore[arg-type]  # it reads; that is all
    except (EOFError, lzma.LZMAError) as error:
        raise ImageError(f"it is damaged or ends too early ({error})") from error
    except OSError as error:
        if error.errno:
            raise
        raise ImageError(f"it is damaged ({error})") from error  # as bz2 says it
