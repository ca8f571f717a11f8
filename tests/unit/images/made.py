"""Images for tests: as the store has them, without anything that could be run."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from voidbox.images.config import ImageConfig
from voidbox.images.record import ImageRecord
from voidbox.images.reference import parse_reference
from voidbox.images.store import Image, ImageStore


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def record_of(content: bytes, **values: object) -> ImageRecord:
    """Return the record of an image whose file system is to be `content`."""
    record = ImageRecord(
        id=digest_of(b"config of " + content),
        config=ImageConfig(env={"PATH": "/bin"}, cmd=("sh",)),
        size_bytes=len(content),
        created_at=1e9,
        added_at=time.time(),
        source="a test",
    )
    return record._replace(**values)  # type: ignore[arg-type]


class StoreFolder:
    """A state folder, and its images."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = ImageStore(str(path))
        self.images = path / "images"

    def add(self, name: str, content: bytes = b"root", **values: object) -> Image:
        """Have an image there."""
        with self.store.draft() as draft:
            Path(draft.rootfs).write_bytes(content)
            return self.store.add(draft, parse_reference(name), record_of(content, **values))

    def names(self) -> dict[str, str]:
        """Return the content of each named image's file system."""
        found, wrong = self.store.list()
        assert not wrong
        return {name: Path(image.path).read_text() for image in found for name in image.names}

    def leftovers(self) -> list[str]:
        """Return what nobody will ever use."""
        hidden = [path.name for path in self.images.iterdir() if path.name.startswith(".")]
        return hidden + [path.name for path in self.images.glob("refs/*.new")]
