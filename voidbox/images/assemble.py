"""A tree of files, from layers or elsewhere, written as an image into the store."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from io import BufferedRandom
from typing import BinaryIO

from voidbox.images.draft import Draft
from voidbox.images.erofs import write_erofs
from voidbox.images.errors import ImageError
from voidbox.images.limits import DEFAULT_LIMITS, Limits
from voidbox.images.progress import UNPACK, WRITE, ImageProgress, OnProgress
from voidbox.images.record import ImageRecord
from voidbox.images.reference import Reference
from voidbox.images.store import Image, ImageStore
from voidbox.images.tar_layers import apply_layer
from voidbox.images.tree import Tree
from voidbox.named_tuple import NamedTuple
from voidbox.storage import durable


class Damaged(ImageError):
    """A layer's content is not what its digest, or the image's configuration, says.

    Attributes:
        digest: of the layer.
    """

    digest = ""


class LayerSource(NamedTuple):
    """A layer to be applied.

    Attributes:
        digest: of what is read, for people and for Damaged.
        diff_id: "sha256:…" of its content uncompressed; "" where nobody says.
        size_bytes: of what is read.
        open: returns a stream of it, perhaps compressed.
    """

    digest: str
    diff_id: str
    size_bytes: int
    open: Callable[[], BinaryIO]


def make_image(
    store: ImageStore,
    reference: Reference,
    record: ImageRecord,
    layers: Sequence[LayerSource],
    report: OnProgress,
    limits: Limits = DEFAULT_LIMITS,
) -> Image:
    """Apply layers in their order, and add what comes out to the store; see add_tree.

    Raises:
        Damaged: a layer is not what it should be.
        ImageError: a layer cannot be used.
        HostError: the disk is full, say.
    """
    with store.draft() as draft, Tree(draft.spool) as tree:
        try:
            for layer in layers:
                _apply(tree, layer, limits, report)
        except OSError as error:
            raise durable.failure("unpack a layer into", draft.path, error) from error
        return add_tree(store, draft, reference, record, tree, report)


def add_tree(
    store: ImageStore,
    draft: Draft,
    reference: Reference,
    record: ImageRecord,
    tree: Tree,
    report: OnProgress,
) -> Image:
    """Write a tree as an image's file system, and add the image to the store.

    Args:
        record: its size is filled in; an ID too, where it is "": made of content and config.

    Raises:
        ImageError: the tree cannot be written.
        HostError: the disk is full, say.
    """

    def tell(done: int, total: int) -> None:
        report(ImageProgress(WRITE, "", done, total))

    mtime = max(0, int(record.created_at or 0))
    try:
        with open(draft.rootfs, "x+b") as file:
            size = write_erofs(tree, file, mtime=mtime, progress=tell)
            record = record._replace(size_bytes=size, added_at=time.time())
            if not record.id:
                record = record._replace(id=_identify(record, file))
    except OSError as error:
        raise durable.failure("write", draft.rootfs, error) from error
    return store.add(draft, reference, record)


def _identify(record: ImageRecord, file: BufferedRandom) -> str:
    file.seek(0)
    content = hashlib.file_digest(file, "sha256").hexdigest()
    said = [content, record.platform, record.config.to_json()]
    return f"sha256:{hashlib.sha256(json.dumps(said).encode()).hexdigest()}"


def _apply(tree: Tree, layer: LayerSource, limits: Limits, report: OnProgress) -> None:
    report(ImageProgress(UNPACK, layer.digest, 0, layer.size_bytes))
    try:
        with layer.open() as stream:
            watched: BinaryIO = _Watched(stream, layer, report)  # type: ignore[assignment]
            found = apply_layer(tree, watched, limits).diff_id
    except ImageError as error:
        raise _damage(layer, f"{layer.digest}: {error}") from error
    if layer.diff_id and found != layer.diff_id:
        raise _damage(layer, f"{layer.digest} holds {found} instead of {layer.diff_id}")


class _Watched:
    """A layer's stream, as far as it is needed, that reports how far it is read."""

    def __init__(self, stream: BinaryIO, layer: LayerSource, report: OnProgress) -> None:
        self._stream = stream
        self._layer = layer
        self._report = report
        self._count = 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._count += len(data)
        self._report(ImageProgress(UNPACK, self._layer.digest, self._count, self._layer.size_bytes))
        return data


def _damage(layer: LayerSource, why: str) -> Damaged:
    error = Damaged(f"the layer {why}")
    error.digest = layer.digest
    return error
