"""Images and snapshots from one node to another: files, known by their digests.

An image is its folder in the store. A snapshot is its folder on the shelf; what it rests on, the
images and the runtime, must be at the same paths of both nodes, and hold the same: that is looked
at, byte by byte, once. Half of a copy is never seen by anybody.

    → {"token": "…", "op": "copy", "kind": "image", "key": "sha256:…"}
    ← {"ok": true, "becomes": true}, a line of JSON that says what comes, and the files' data
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

from voidbox.errors import ConfigError, HostError
from voidbox.images import pins
from voidbox.images.draft import ROOTFS
from voidbox.images.record import VERSION, ImageRecord
from voidbox.images.reference import parse_reference
from voidbox.images.store import ImageStore
from voidbox.named_tuple import NamedTuple
from voidbox.ray.gateway import Stream
from voidbox.sandbox.image_choice import is_stored
from voidbox.sandbox.snapshots import record as records
from voidbox.sandbox.snapshots.rests_on import identify
from voidbox.sandbox.snapshots.shelf import Shelf
from voidbox.sdk.creating import CreateOptions
from voidbox.snapshot import digests
from voidbox.snapshot import folder as folders
from voidbox.snapshot.memory import extents
from voidbox.storage import durable

IMAGE, SNAPSHOT = "image", "snapshot"
_BYTES = 1 << 20
_HEAD_BYTES_MAX = 16 << 20
_FILES_MAX = 256
_DIGEST_BYTES = 32


class Part(NamedTuple):
    """A file on its way.

    Attributes:
        extents: where it has data, as pairs of offset and length; the rest is zeroes.
        digest: BLAKE2b of that data.
    """

    name: str
    size_bytes: int
    extents: list[list[int]]
    digest: str


# What there is.


class Found(NamedTuple):
    """An image or a snapshot of a node.

    Attributes:
        id: its own.
        image: the ID of the image that a snapshot rests on; "" for none of the store.
    """

    id: str
    image: str = ""


def wanted(options: CreateOptions) -> tuple[str, str] | None:
    """Return the kind and the name of what sandboxes are made of; None for what all nodes have."""
    snapshot, image = options.get("snapshot"), options.get("image")
    if snapshot is not None:
        return SNAPSHOT, snapshot if isinstance(snapshot, str) else snapshot.snapshot_id
    return (IMAGE, str(image)) if is_stored(image) else None


def find(kind: str, key: str, state_folder: str) -> Found | None:
    """Return what a name stands for here; None for nothing.

    Raises:
        ConfigError: the name is none, or stands for several.
    """
    try:
        if kind == IMAGE:
            return Found(ImageStore(state_folder).find(key).id)
        record = Shelf(state_folder).find(key).record
        return Found(record.id, str((record.sandbox.root or {}).get("digest", "")))
    except ConfigError as error:
        if str(error).startswith("no "):
            return None
        raise


def pull(name: str, state_folder: str) -> None:
    """Have an image come from its registry.

    Raises:
        VoidboxError: it does not.
    """
    from voidbox.images.pulling import pull as pull_image

    pull_image(name, store=ImageStore(state_folder))


# From here.


def send(kind: str, key: str, state_folder: str) -> Stream:
    """Return what sends an image or a snapshot.

    Raises:
        ConfigError: it is not here.
    """
    if kind == IMAGE:
        image = ImageStore(state_folder).find(key)
        head: dict[str, Any] = {"record": image.record.to_json(), "names": list(image.names)}
        return _sender(os.path.dirname(image.path), [ROOTFS], head)
    if kind != SNAPSHOT:
        raise ConfigError(f"{kind[:40]!r} is nothing that could be copied")
    found = Shelf(state_folder).find(key)
    names = sorted(os.listdir(found.folder))
    return _sender(found.folder, names, {"id": found.record.id, "rests_on": found.record.files})


def _sender(folder: str, names: list[str], head: dict[str, Any]) -> Stream:
    async def send(sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        if rests_on := head.get("rests_on"):
            head["contents"] = await asyncio.to_thread(_contents, rests_on)
        with contextlib.ExitStack() as stack:
            fds = [_open(stack, f"{folder}/{name}") for name in names]
            parts = [
                await asyncio.to_thread(_describe, name, fd)
                for name, fd in zip(names, fds, strict=True)
            ]
            answer = {**head, "parts": [part._asdict() for part in parts]}
            await loop.sock_sendall(sock, json.dumps(answer).encode() + b"\n")
            for part, fd in zip(parts, fds, strict=True):
                for at, size in _blocks(part):
                    data = await asyncio.to_thread(os.pread, fd, size, at)
                    await loop.sock_sendall(sock, data)

    return send


def _open(stack: contextlib.ExitStack, path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    stack.callback(os.close, fd)
    return fd


def _describe(name: str, fd: int) -> Part:
    size_bytes = os.fstat(fd).st_size
    found = [[at, size] for at, size in extents(fd, 0, size_bytes)]
    digest = blake2b(digest_size=_DIGEST_BYTES)
    part = Part(name, size_bytes, found, "")
    for at, size in _blocks(part):
        digest.update(os.pread(fd, size, at))
    return part._replace(digest=digest.hexdigest())


def _blocks(part: Part) -> Iterator[tuple[int, int]]:
    for at, size in part.extents:
        for begin in range(at, at + size, _BYTES):
            yield begin, min(_BYTES, at + size - begin)


def _contents(paths: Mapping[str, str]) -> dict[str, str]:
    """Return a digest of each file."""
    found = {}
    for path in paths:
        digest = blake2b(digest_size=_DIGEST_BYTES)
        with open(path, "rb") as file:
            while data := file.read(_BYTES):
                digest.update(data)
        found[path] = digest.hexdigest()
    return found


# To here. Thread: any.


def receive(sock: socket.socket, kind: str, name: str, state_folder: str) -> str:
    """Take what the other node sends; return its ID.

    Args:
        name: that an image is to have here; one that it has there, if this is its ID.
    Raises:
        ConfigError: it cannot be used here.
        HostError: it did not come whole, or the disk is full; nothing of it is left.
    """
    with sock, sock.makefile("rb", _BYTES) as source:
        try:
            head = json.loads(source.readline(_HEAD_BYTES_MAX))
            parts = [Part(**part) for part in head["parts"][:_FILES_MAX]]
        except (ValueError, KeyError, TypeError) as error:
            raise HostError(f"the copy of {name} broke off") from error
        if kind == IMAGE:
            return _receive_image(source, head, parts, name, state_folder)
        return _receive_snapshot(source, head, parts, state_folder)


def _receive_image(
    source: Any, head: dict[str, Any], parts: list[Part], name: str, state_folder: str
) -> str:
    record = ImageRecord.from_json({**head["record"], "version": VERSION})
    store = ImageStore(state_folder)
    with store.draft() as draft:
        for part in parts:
            if part.name != ROOTFS:
                raise HostError(f"the copy of {name} has a file {part.name!r}, of no image")
            _write(source, part, draft.rootfs)
        if name == record.id and head.get("names"):
            name = str(head["names"][0])
        return store.add(draft, parse_reference(name), record).id


def _receive_snapshot(
    source: Any, head: dict[str, Any], parts: list[Part], state_folder: str
) -> str:
    files = _check_rests_on(head)
    shelf = Shelf(state_folder)
    with shelf.place("") as (_, _):
        pass  # its folder is there, and what killed makers left is not
    place = f"{shelf.path}/{_checked_id(head['id'])}"
    draft = folders.Draft(place)
    try:
        for part in parts:
            if "/" in part.name or part.name.startswith("."):
                raise HostError(f"a snapshot has no file {part.name!r}")
            _write(source, part, draft.file(part.name))
        record = records.load(draft.path)._replace(files=files)
        os.unlink(draft.file(records.FILE))
        with open(draft.file(records.FILE), "xb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(record.encode())
        if digests.NAME in {part.name for part in parts}:
            os.unlink(draft.file(digests.NAME))  # of the record that was: made anew
            digests.seal(draft.path)
        for path in filter(lambda path: path.endswith(f"/{ROOTFS}"), files):
            pins.pin(path, place)
        draft.commit()
    except BaseException:
        draft.abort()
        raise
    return record.id


def _checked_id(id: object) -> str:
    from voidbox.sandbox.state.names import is_id

    if not isinstance(id, str) or not is_id(id):
        raise HostError(f"{str(id)[:40]!r} is no snapshot's ID")
    return id


def _check_rests_on(head: dict[str, Any]) -> dict[str, str]:
    """Return what a snapshot rests on, as it is here.

    Raises:
        ConfigError: a file is missing here, or holds something else.
    """
    expected = head.get("contents") or {}
    missing = [path for path in expected if not os.path.exists(path)]
    if missing:
        raise ConfigError(
            f"the snapshot rests on {missing[0]}, which this node does not have: install the same "
            "voidbox and runtime on all nodes, at the same paths"
        )
    for path, digest in _contents(dict.fromkeys(expected, "")).items():
        if digest != expected[path]:
            raise ConfigError(f"the snapshot rests on {path}, which holds something else here")
    return {path: identify(path) for path in expected}


def _write(source: Any, part: Part, path: str) -> None:
    digest = blake2b(digest_size=_DIGEST_BYTES)
    try:
        with open(path, "xb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.truncate(part.size_bytes)
            for at, size in _blocks(part):
                data = source.read(size)
                if len(data) != size:
                    raise HostError(f"the copy of {part.name} broke off")
                digest.update(data)
                file.seek(at)
                file.write(data)
    except OSError as error:
        raise durable.failure("write", path, error) from error
    if digest.hexdigest() != part.digest:
        raise HostError(f"{part.name} is damaged: its digest is another one")
