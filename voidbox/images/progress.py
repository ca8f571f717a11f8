"""How far an image is: what the makers of images report, and to whom."""

from __future__ import annotations

import threading
from collections.abc import Callable

from voidbox.named_tuple import NamedTuple

CACHED, DOWNLOAD, LAYER, UNPACK = "cached", "download", "layer", "unpack"
WRITE, WAIT, INSTALL = "write", "wait", "install"


class ImageProgress(NamedTuple):
    """A step of an image's making.

    Attributes:
        stage: "download" (of all layers together), "layer" (one has arrived), "cached" (one was
            there), "unpack" (a layer), "install" (what the installation of packages says),
            "write" (the file system), or "wait" (for somebody else who makes the same).
        item: the digest of a layer, or what is said; "" where it is about the whole.
        done: bytes so far.
        total: bytes in all.
    """

    stage: str
    item: str
    done: int
    total: int


OnProgress = Callable[[ImageProgress], object]


def ignore(step: ImageProgress) -> None:
    """Show nothing."""


class Tally:
    """Adds up what several threads download, and reports it from one at a time. Thread: any."""

    def __init__(self, total: int, report: OnProgress) -> None:
        self._lock = threading.Lock()
        self._report = report
        self._done, self._total = 0, total

    def add(self, count: int) -> None:
        """Say that more has come; less than 0 takes some back."""
        if not count:
            return
        with self._lock:
            self._done += count
            self._report(ImageProgress(DOWNLOAD, "", self._done, self._total))

    def layer(self, stage: str, digest: str, size_bytes: int) -> None:
        """Say that a layer is there."""
        with self._lock:
            self._report(ImageProgress(stage, digest, size_bytes, size_bytes))
