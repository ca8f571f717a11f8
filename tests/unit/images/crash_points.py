"""A program of the tests: whatever images go through, stopped before each call to the disk.

    python -m tests.unit.images.crash_points FOLDER kill|full ACT

`kill` kills the process there; `full` has the disk be full from there on. After each, the store
has to be whole, and the same has to work. It forks, so it is a process of its own.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from tests.unit.images.made import StoreFolder
from tests.unit.images.oci import OciImage, make_image, tar_of
from tests.unit.images.test_import import docker_archive
from voidbox.errors import VoidboxError
from voidbox.images import pulling
from voidbox.images.importing import import_
from voidbox.images.manifest import Descriptor, Manifest, parse_manifest
from voidbox.images.pruning import prune
from voidbox.images.pulling import pull
from voidbox.images.registry import Resolved

CALLS = ("open", "mkdir", "rename", "unlink", "rmdir", "fsync", "ftruncate", "write", "pwrite")
TAKES_ROOM = ("open", "mkdir", "rename", "fsync", "write", "pwrite")
IMAGE = make_image({"bin/": b"", "bin/sh": b"#!" * 500}, {"etc/motd": b"hello"})
OTHER = make_image({"other": b"other"}, raw=True)


class FakeAnswer:
    """A blob, in pieces."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def chunks(self) -> Iterator[bytes]:
        for at in range(0, len(self._content), 64):
            yield self._content[at : at + 64]

    def __enter__(self) -> FakeAnswer:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class FakeRegistry:
    """What pulling needs, without a network."""

    name = "registry.example"
    images: dict[str, OciImage] = {"registry.example/app:latest": IMAGE}

    def __init__(self, reference: Any, **_: object) -> None:
        self._image = self.images[reference.name]

    def resolve(self, reference: Any, platform: Any) -> Resolved:
        manifest = parse_manifest(self._image.manifest)
        assert isinstance(manifest, Manifest)
        return Resolved(self._image.digest, manifest)

    def document(self, descriptor: Descriptor, what: str) -> bytes:
        return self._image.blobs[descriptor.digest]

    def open_blob(self, digest: str, offset: int) -> tuple[FakeAnswer, int]:
        return FakeAnswer(self._image.blobs[digest][offset:]), offset

    def wait(self, number: int, error: Exception) -> NoReturn:
        raise error

    def cut(self) -> None:
        pass

    def __enter__(self) -> FakeRegistry:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _pull(stored: StoreFolder) -> object:
    return pull("registry.example/app", store=stored.store)


def _import(stored: StoreFolder) -> object:
    return import_("other", stored.path.parent / "saved.tar", store=stored.store)


def _nothing(stored: StoreFolder) -> object:
    return None


def _pull_and_unname(stored: StoreFolder) -> object:
    _pull(stored)
    stored.store.remove("registry.example/app")
    return _pull(stored), _import(stored), stored.add("other", b"another")


# What is there before, and what is done.
ACTS: dict[str, tuple[Callable[[StoreFolder], object], Callable[[StoreFolder], object]]] = {
    "pull": (_nothing, _pull),
    "import": (_pull, _import),
    "remove": (_pull, lambda stored: stored.store.remove("registry.example/app")),
    "prune": (_pull_and_unname, lambda stored: prune(layers=True, store=stored.store)),
}


def check_whole(stored: StoreFolder, wanted: dict[str, bytes]) -> None:
    """Check that whatever has a name is whole, and what is cached too."""
    found, wrong = stored.store.list()
    assert not wrong, wrong
    for image in found:
        assert image.id not in wanted or Path(image.path).read_bytes() == wanted[image.id]
        for name in image.names:
            assert stored.store.find(name) == image
    for blob in (stored.images / "blobs/sha256").iterdir():
        content = {**IMAGE.blobs, **OTHER.blobs}[f"sha256:{blob.name}"]
        assert blob.read_bytes() == content, blob


def points(folder: Path, is_kill: bool, name: str) -> int:
    """Do it until no point is left; returns how many there were."""
    prepare, act = ACTS[name]
    (folder / "saved.tar").write_bytes(tar_of(docker_archive((OTHER, ["other"]))))
    state = folder / "state"
    wanted = {}
    for make in (_pull, _import):
        stored = StoreFolder(state)
        make(stored)
        wanted |= {image.id: Path(image.path).read_bytes() for image in stored.store.list()[0]}
    point = 0
    while True:
        point += 1
        shutil.rmtree(state)
        stored = StoreFolder(state)
        prepare(stored)
        child = os.fork()
        if child == 0:
            _run_up_to(point, is_kill, stored, act)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        check_whole(stored, wanted)
        _pull(stored), _import(stored)
        check_whole(stored, wanted)
        prune(store=stored.store)
        assert not stored.leftovers() and not os.listdir(stored.images / "partial")
        if status == 0:
            return point - 1
        assert status in ((-signal.SIGKILL,) if is_kill else (3, 4)), (name, point, status)


def _run_up_to(
    point: int, is_kill: bool, stored: StoreFolder, act: Callable[[StoreFolder], object]
) -> NoReturn:
    left = point
    lock = threading.Lock()

    def on_call(call: str) -> None:
        nonlocal left
        with lock:
            left -= 1
            is_now = left == 0 if is_kill else left <= 0
        if is_now and is_kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if is_now and call in TAKES_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for call in CALLS:
        _count(call, on_call)
    try:
        act(stored)
        os._exit(0 if left > 0 else 4)  # 4: what was left took no room
    except VoidboxError as error:
        assert "No space left on device" in str(error), error
        os._exit(3)
    except BaseException as error:
        os.write(2, f"{point}: {type(error).__name__}: {error}\n".encode())
        os._exit(1)


def _count(call: str, on_call: Callable[[str], None]) -> None:
    real = getattr(os, call)

    def counted(*words: Any, **more: Any) -> Any:
        is_reading = call == "open" and not (words[1] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR))
        if not is_reading and not (call == "write" and words[0] <= 2):
            on_call(call)
        return real(*words, **more)

    setattr(os, call, counted)


def main() -> None:
    pulling.Registry = FakeRegistry  # type: ignore[assignment, misc]
    folder = Path(sys.argv[1])
    tempfile.tempdir = str(folder)
    print(points(folder, sys.argv[2] == "kill", sys.argv[3]), "points")


if __name__ == "__main__":
    main()
