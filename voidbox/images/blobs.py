"""Layers as registries have them: fetched once, checked while they come, kept for other images.

A layer on its way is a file in `partial`, locked by whoever fetches it. It stays there when the
connection is lost for good, the disk is full or the process is killed: the next one goes on from
its end. What is in `blobs` is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from voidbox.images.flock import OwnedFile
from voidbox.images.manifest import Descriptor
from voidbox.images.registry import ATTEMPTS
from voidbox.images.store import BLOBS, PARTIAL
from voidbox.images.transport import Answer, Lost, RegistryError
from voidbox.storage import durable

_CHUNK_BYTES = 1 << 20
_PROGRESS_BYTES_MIN = 1 << 20  # what makes an attempt worth another

OnBytes = Callable[[int], object]


class Registry(Protocol):
    """What a blob is asked of; see voidbox.images.registry."""

    name: str

    def open_blob(self, digest: str, offset: int) -> tuple[Answer, int]: ...
    def wait(self, number: int, error: Lost) -> None: ...


class Blobs:
    """The layers in a store. Thread: any; processes: any number.

    Args:
        path: of the folder of images.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def file(self, digest: str) -> str:
        """Return where a layer is, once it is there."""
        return f"{self._path}/{BLOBS}/{digest.removeprefix('sha256:')}"

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a layer is there, as far as its size tells."""
        try:
            return os.stat(self.file(descriptor.digest)).st_size == descriptor.size_bytes
        except FileNotFoundError:
            return False

    def open(self, digest: str) -> BinaryIO:
        """Return a stream of a layer that is there. Raises OSError."""
        return open(self.file(digest), "rb")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Return a context in which nobody deletes layers that no image needs; see prune.

        Raises:
            HostError: the folder cannot be opened.
        """
        path = f"{self._path}/{BLOBS}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise durable.failure("lock", path, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)

    def discard_damaged(self, digest: str) -> bool:
        """Delete a layer if it is not what its digest says; returns whether it was.

        Raises:
            HostError: it cannot be read or deleted.
        """
        path = self.file(digest)
        try:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == digest[7:]:
                    return False
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise durable.failure("delete", path, error) from error
        return True

    def fetch(self, registry: Registry, layer: Descriptor, on_bytes: OnBytes) -> bool:
        """Have a layer be there; returns whether it had to be fetched.

        Args:
            on_bytes: told how much more there is; less than 0 takes some back.

        Raises:
            RegistryError: the registry fails or lies.
            HostError: the disk is full, say; what there is stays, to be gone on from.
        """
        path = f"{self._path}/{PARTIAL}/{layer.digest.removeprefix('sha256:')}"
        with OwnedFile(path) as file:
            try:
                if self.has(layer):  # somebody else has got it meanwhile
                    file.delete()
                    on_bytes(layer.size_bytes)
                    return False
                _Fetch(registry, layer, file, on_bytes).run()
                os.fsync(file.fd)
                os.rename(path, self.file(layer.digest))
                durable.sync_folder(f"{self._path}/{BLOBS}")
            except OSError as error:
                raise durable.failure("write", path, error) from error
        return True


class _Fetch:
    """One layer on its way into a file that is ours."""

    def __init__(
        self, registry: Registry, layer: Descriptor, file: OwnedFile, on_bytes: OnBytes
    ) -> None:
        self._registry = registry
        self._layer = layer
        self._file = file
        self._on_bytes = on_bytes
        self._hash = hashlib.sha256()
        self._count = 0

    def run(self) -> None:
        """Have the file be the layer. Raises RegistryError, OSError; the file stays if it helps."""
        kept = self._read_kept()
        self._complete()
        if self._hash.hexdigest() != self._digits and kept:
            self._truncate()  # perhaps what was kept is to blame
            self._complete()
        if self._hash.hexdigest() != self._digits:
            self._refuse(f"is sha256:{self._hash.hexdigest()}")

    @property
    def _digits(self) -> str:
        return self._layer.digest.removeprefix("sha256:")

    def _complete(self) -> None:
        """Read on until all is there, over as many connections as it takes."""
        failures = 0
        while self._count < self._layer.size_bytes or not self._count:
            before = self._count
            try:
                self._read_some()
                if self._count >= self._layer.size_bytes:
                    return
                raise Lost(
                    f"{self._registry.name} sent {self._count:,} of {self._layer.size_bytes:,} "
                    f"bytes of {self._layer.digest}"
                )
            except Lost as error:
                if self._count - before >= _PROGRESS_BYTES_MIN:
                    failures = 0
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                self._registry.wait(failures, error)

    def _read_some(self) -> None:
        """Read what one connection gives."""
        answer, offset = self._registry.open_blob(self._layer.digest, self._count)
        with answer:
            if offset != self._count:  # it cannot go on where it was
                self._truncate()
            for data in answer.chunks():
                if self._count + len(data) > self._layer.size_bytes:
                    self._refuse(f"has more than the {self._layer.size_bytes:,} bytes it says")
                view = memoryview(data)
                while view:
                    view = view[os.write(self._file.fd, view) :]
                self._hash.update(data)
                self._count += len(data)
                self._on_bytes(len(data))

    def _read_kept(self) -> int:
        """Hash what an earlier attempt has left; returns how much."""
        if os.fstat(self._file.fd).st_size > self._layer.size_bytes:
            self._truncate()
        while data := os.read(self._file.fd, _CHUNK_BYTES):
            self._hash.update(data)
            self._count += len(data)
        self._on_bytes(self._count)
        return self._count

    def _truncate(self) -> None:
        os.ftruncate(self._file.fd, 0)
        os.lseek(self._file.fd, 0, os.SEEK_SET)
        self._on_bytes(-self._count)
        self._hash = hashlib.sha256()
        self._count = 0

    def _refuse(self, what: str) -> None:
        self._file.delete()
        raise RegistryError(
            f"{self._registry.name} does not tell the truth: the layer {self._layer.digest} {what}"
        )
