"""An overlay's file: what it says of itself, and how one is made.

    0            header, in a page of its own
    4096         a bit for each cluster: set if the cluster is here, else it is the base's
    data_offset  the clusters, each where it is on the disk: the file is as long, and sparse

A bit reaches the disk only after the cluster, so that a file is right whenever the power goes.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from contextlib import suppress

from voidbox.block import host_io
from voidbox.block.bitmap import PAGE_BYTES
from voidbox.block.image import Image
from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple

MAGIC = b"VoidboxO"
VERSION = 1
HEADER_BYTES = BITMAP_OFFSET = PAGE_BYTES
# Clusters are as small as the guest's blocks, so that few writes copy from the base, unless the
# bits would be many: those are kept in memory.
CLUSTER_BYTES_MIN = 4096
BITMAP_BYTES_MAX = 2 << 20
_SAMPLE_BYTES = 64 << 10

# magic, version, cluster size, size of the disk, the base's size, mtime_ns and digest; a CRC-32
_HEADER = struct.Struct("<8sIIQQQ32s")
_CRC = struct.Struct("<I")


class BaseIdentity(NamedTuple):
    """By what a base is told from another, or from what it was before.

    Attributes:
        digest: of its first and last 64 KiB.
    """

    size_bytes: int
    mtime_ns: int
    digest: bytes


class Header(NamedTuple):
    """What an overlay says of itself."""

    cluster_bytes: int
    size_bytes: int
    base: BaseIdentity

    @property
    def clusters(self) -> int:
        """How many clusters the disk has; the last may be cut short."""
        return -(-self.size_bytes // self.cluster_bytes)

    @property
    def bitmap_bytes(self) -> int:
        """The size of the bits, in whole pages."""
        return -(-self.clusters // (8 * PAGE_BYTES)) * PAGE_BYTES

    @property
    def data_offset(self) -> int:
        """Where the first cluster is."""
        return -(-(BITMAP_OFFSET + self.bitmap_bytes) // self.cluster_bytes) * self.cluster_bytes

    @property
    def file_bytes(self) -> int:
        """The file's size."""
        return self.data_offset + self.size_bytes

    def pack(self) -> bytes:
        """Return it as the file has it."""
        packed = _HEADER.pack(MAGIC, VERSION, self.cluster_bytes, self.size_bytes, *self.base)
        return packed + _CRC.pack(zlib.crc32(packed))


def header_for(base: BaseIdentity) -> Header:
    """Return the header of a new overlay."""
    cluster_bytes = CLUSTER_BYTES_MIN
    while base.size_bytes > cluster_bytes * 8 * BITMAP_BYTES_MAX:
        cluster_bytes *= 2
    return Header(cluster_bytes, base.size_bytes, base)


def parse_header(path: str, raw: bytes, file_bytes: int) -> Header:
    """Return the header of an overlay.

    Raises:
        ConfigError: it is none, or damaged, or of a newer voidbox.
    """
    what = f"overlay {path}"
    if len(raw) < _HEADER.size + _CRC.size or not raw.startswith(MAGIC):
        raise ConfigError(f"{what}: it is no overlay of voidbox: remove it, or name another file")
    _, version, cluster_bytes, size_bytes, *base = _HEADER.unpack_from(raw)
    if version != VERSION:
        raise ConfigError(f"{what}: it is of version {version}, made by a newer voidbox: use that")
    (crc,) = _CRC.unpack_from(raw, _HEADER.size)
    header = Header(cluster_bytes, size_bytes, BaseIdentity(*base))
    is_sane = cluster_bytes >= CLUSTER_BYTES_MIN and not cluster_bytes & (cluster_bytes - 1)
    if crc != zlib.crc32(raw[: _HEADER.size]) or not is_sane:
        raise ConfigError(f"{what}: it is damaged: remove it to begin anew")
    if file_bytes != header.file_bytes:
        raise ConfigError(
            f"{what}: it has {file_bytes} bytes of {header.file_bytes}: it was cut short; take "
            "another copy of it, or remove it to begin anew"
        )
    return header


def identify(base: Image) -> BaseIdentity:
    """Return the base's identity.

    Raises:
        ConfigError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for offset in (0, max(0, base.size_bytes - _SAMPLE_BYTES)):
            digest.update(os.pread(base.fd, _SAMPLE_BYTES, offset))
    except OSError as error:
        raise ConfigError(f"disk {base.path}: {error.strerror}") from error
    return BaseIdentity(base.size_bytes, base.mtime_ns, digest.digest())


def create(path: str, header: Header) -> None:
    """Make an overlay in which nothing is written. It appears whole, or not at all.

    Does nothing if somebody else makes one at this moment.

    Raises:
        ConfigError: the folder cannot be written.
    """
    folder = os.path.dirname(path) or "."
    try:
        import tempfile  # for those alone who make one

        fd, part = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(path)}.")
        try:
            os.truncate(fd, header.file_bytes)
            # So that a full disk cannot keep the bits of clusters that found room from it.
            os.posix_fallocate(fd, 0, header.data_offset)
            host_io.write_all(fd, [header.pack()], 0, len(header.pack()))
            os.fsync(fd)
            with suppress(FileExistsError):
                os.link(part, path)
        finally:
            os.close(fd)
            os.unlink(part)
        _sync_folder(folder)
    except OSError as error:
        raise ConfigError(f"overlay {path}: it cannot be made: {error.strerror}") from error


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
