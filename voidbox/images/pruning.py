"""Deletes what no image needs: images without a name, layers, what was half downloaded."""

from __future__ import annotations

import os
from contextlib import suppress

from voidbox.images import pins
from voidbox.images.errors import ImageError
from voidbox.images.flock import try_lock
from voidbox.images.store import BLOBS, PARTIAL, ImageStore
from voidbox.named_tuple import NamedTuple
from voidbox.storage import durable


class Pruned(NamedTuple):
    """What was deleted, or would be.

    Attributes:
        images: the IDs of those without a name.
        layers: how many downloaded layers, whole or in part.
        size_bytes: what they took of the disk.
        is_complete: False where layers stay because somebody pulls an image just now.
    """

    images: tuple[str, ...]
    layers: int
    size_bytes: int
    is_complete: bool


def prune(
    *, layers: bool = False, dry_run: bool = False, store: ImageStore | None = None
) -> Pruned:
    """Delete images without a name that no sandbox runs, and layers that no image was made of.

    Args:
        layers: also those layers that images were made of: only a later pull of an image that
            shares them needs them.
        dry_run: only say what would be deleted.
        store: the user's own if None.

    Raises:
        ConfigError: a newer voidbox's images are there.
        HostError: something cannot be deleted.
    """
    store = store or ImageStore()
    with store.lock():
        return _Prune(store, dry_run).run(layers)


class _Prune:
    """Lock: that of the store is held."""

    def __init__(self, store: ImageStore, is_dry: bool) -> None:
        self._store = store
        self._is_dry = is_dry
        self._size_bytes = 0
        self._count = 0

    def run(self, with_layers: bool) -> Pruned:
        if not self._is_dry:
            self._store.tidy()
        found, wrong = self._store.list()
        for error in wrong:
            if not isinstance(error, ImageError):  # of a newer voidbox: it may need anything
                raise error
        nameless = [image for image in found if not image.names]
        gone = tuple(image.id for image in nameless if self._remove_image(image.id, image.path))
        needed = set()
        if not with_layers:
            kept = (image for image in found if image.id not in gone)
            needed = {layer.digest[7:] for image in kept for layer in image.record.layers}
        is_complete = self._remove_layers(needed)
        self._remove_partial()
        return Pruned(gone, self._count, self._size_bytes, is_complete)

    def _remove_image(self, id: str, path: str) -> bool:
        size = _disk_bytes(path)
        if pins.holders(os.path.dirname(path)):
            return False
        try:
            if self._is_dry:
                fd = try_lock(path)
                if fd is not None:
                    os.close(fd)
            elif not self._store.remove_image(id):
                return False
        except BlockingIOError:
            return False
        self._size_bytes += size
        return True

    def _remove_layers(self, needed: set[str]) -> bool:
        folder = f"{self._store.path}/{BLOBS}"
        try:
            fd = try_lock(folder)
        except BlockingIOError:
            return False
        if fd is None:
            return True
        try:
            for name in self._store.entries(BLOBS):
                if name not in needed:
                    self._unlink(f"{folder}/{name}")
        finally:
            os.close(fd)
        return True

    def _remove_partial(self) -> None:
        for name in self._store.entries(PARTIAL):
            path = f"{self._store.path}/{PARTIAL}/{name}"
            with suppress(BlockingIOError):  # somebody writes to it
                fd = try_lock(path)
                if fd is None:
                    continue
                try:
                    self._unlink(path)
                finally:
                    os.close(fd)

    def _unlink(self, path: str) -> None:
        size = _disk_bytes(path)
        try:
            if not self._is_dry:
                os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise durable.failure("delete", path, error) from error
        self._size_bytes += size
        self._count += len(os.path.basename(path)) == 64  # else it is a lock


def _disk_bytes(path: str) -> int:
    try:
        return os.stat(path).st_blocks * 512
    except OSError:
        return 0
