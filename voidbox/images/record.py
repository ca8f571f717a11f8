"""What is known of an image: its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from voidbox.errors import VoidboxError
from voidbox.images.config import ImageConfig
from voidbox.images.reference import is_digest
from voidbox.named_tuple import NamedTuple
from voidbox.storage.durable import Corrupted

VERSION = 1


class Layer(NamedTuple):
    """A layer as the image's source has it.

    Attributes:
        digest: "sha256:…" of what is transferred, perhaps compressed.
        size_bytes: of the same.
        media_type: as the manifest has it; "" where nothing says.
    """

    digest: str
    size_bytes: int
    media_type: str = ""


class ImageRecord(NamedTuple):
    """An image's description.

    Attributes:
        id: "sha256:…", of its configuration.
        config: how its commands want to be run.
        size_bytes: of its file system.
        created_at: seconds since 1970, as its maker says; None where nobody says.
        added_at: when it came here.
        source: where it came from, for people.
        platform: such as linux/amd64.
        digest: "sha256:…" of its manifest; "" if it has none.
        layers: of the registry's image that it was; () for others.
    """

    id: str
    config: ImageConfig
    size_bytes: int
    created_at: float | None
    added_at: float
    source: str
    platform: str = "linux/amd64"
    digest: str = ""
    layers: tuple[Layer, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as it is kept, and as `voidbox image inspect` shows it."""
        values = {"version": VERSION, **self._asdict()}
        values["config"] = self.config.to_json()
        values["layers"] = [layer._asdict() for layer in self.layers]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ImageRecord:
        """Build it from what was kept.

        Raises:
            Corrupted: it is something else.
        """
        try:
            fields = {key: values[key] for key in cls._fields}
            fields["layers"] = tuple(Layer(**layer) for layer in values["layers"])
            fields["config"] = ImageConfig.from_json(values["config"])
            record = cls(**fields)
        except (KeyError, TypeError, AttributeError, VoidboxError) as error:
            raise Corrupted(f"it is no image's description ({error})") from error
        digests = (record.id, *(layer.digest for layer in record.layers))
        if not all(isinstance(digest, str) and is_digest(digest) for digest in digests):
            raise Corrupted("it has no digest where one belongs")
        times = (record.added_at, record.size_bytes, record.created_at or 0)
        if not all(isinstance(number, int | float) for number in times):
            raise Corrupted("it has no number where one belongs")
        return record
