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
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from voidbox.images.download import Download, OnBytes
from voidbox.images.flock import OwnedFile
from voidbox.images.manifest import Descriptor
from voidbox.images.store import BLOBS, PARTIAL
from voidbox.images.transport import Answer, Lost
from voidbox.storage import durable


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
                Download(
                    file, f"the layer {layer.digest}", layer.size_bytes, layer.digest[7:], on_bytes
                ).run(
                    registry.name,
                    lambda offset: registry.open_blob(layer.digest, offset),
                    registry.wait,
                )
                os.fsync(file.fd)
                os.rename(path, self.file(layer.digest))
                durable.sync_folder(f"{self._path}/{BLOBS}")
            except OSError as error:
                raise durable.failure("write", path, error) from error
        return True
