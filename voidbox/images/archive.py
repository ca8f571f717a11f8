"""Images in archives: what `docker save` writes, and OCI layouts; as a tar archive or a folder.

docker: manifest.json names each image's configuration and its layers, which are uncompressed. OCI
image specification, image-layout.md: index.json, and blobs by their digests. Newer dockers write
both at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from voidbox.errors import ConfigError
from voidbox.images import manifest
from voidbox.images.assemble import LayerSource
from voidbox.images.boxes import Box, read_small
from voidbox.images.errors import ImageError
from voidbox.images.manifest import DOCUMENT_BYTES_MAX, Descriptor, Index, OciConfig, Platform
from voidbox.images.reference import Reference, parse_reference
from voidbox.named_tuple import NamedTuple

_DOCKER, _OCI, _OCI_LAYOUT = "manifest.json", "index.json", "oci-layout"
_IMAGES_MAX, _NESTED_MAX = 1024, 4
_DOCUMENTS_BYTES_MAX = 16 << 20  # of all images together: each is parsed, and kept
_MEMBER = re.compile(
    r"\.|blobs(/.*)?|[0-9a-f]{64}(/(VERSION|json|layer\.tar)?)?|[0-9a-f]{64}(\.json|\.tar(\.gz)?)"
    r"|manifest\.json|index\.json|oci-layout|repositories"
)


class ArchivedImage(NamedTuple):
    """An image in an archive.

    Attributes:
        id: "sha256:…", of its configuration.
        names: that the archive has for it.
        digest: of its manifest; "" where docker wrote none.
    """

    id: str
    names: tuple[str, ...]
    digest: str
    config: OciConfig
    layers: tuple[LayerSource, ...]


def is_member(name: str) -> bool:
    """Whether a file of this name belongs to an archive of images, and not to a root folder."""
    return _MEMBER.fullmatch(name) is not None


def is_named_so(box: Box) -> bool:
    """Whether it has a file of the name that leads to images: a root folder may have one too."""
    return box.has(_DOCKER) or box.has(_OCI)


def is_archive(box: Box) -> bool:
    """Whether there are images in it, whatever else there is: each tool names files its own way."""
    if box.has(_OCI) and box.has(_OCI_LAYOUT):
        return True
    if not box.has(_DOCKER):
        return False
    try:
        entries = json.loads(read_small(box, _DOCKER, DOCUMENT_BYTES_MAX))
    except (ImageError, ValueError, RecursionError):
        return False
    return isinstance(entries, list) and any(
        isinstance(entry, dict) and {"Config", "Layers"} <= entry.keys() for entry in entries
    )


def read_archive(box: Box, platform: Platform) -> list[ArchivedImage]:
    """Return the images in it: each for the platform.

    Raises:
        ImageError: something is missing or wrong.
    """
    documents = _Documents(box)
    found = _read_docker(documents) if box.has(_DOCKER) else _read_oci(documents, platform)
    if not found:
        raise ImageError("there is no image in it")
    return found


def choose_image(images: Sequence[ArchivedImage], wanted: str, name: Reference) -> ArchivedImage:
    """Return the image that is meant.

    Args:
        wanted: its name in the archive; "" for the only one, or the one called `name`.

    Raises:
        ConfigError: there is none, or several; the message says which there are.
    """
    if not wanted and len(images) == 1:
        return images[0]
    keys = {_key(wanted), wanted} if wanted else {name.name}
    found = [image for image in images if keys & {*image.names, *map(_key, image.names)}]
    if len({image.id for image in found}) == 1:
        return found[0]
    there = ", ".join(name for image in images for name in image.names or (image.id[7:19],))
    there = "".join(c if c.isprintable() else " " for c in there[:500])
    if wanted:
        raise ConfigError(f"there is no {wanted} in it, but: {there}")
    raise ConfigError(f"there are {len(images)} images in it: choose one with --tag: {there}")


def _key(name: str) -> str:
    try:
        return parse_reference(name).name
    except ConfigError:  # an OCI layout may call it anything
        return name


class _Documents:
    """What tells of the images in an archive: each document is parsed once, and not too many."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self._left = _DOCUMENTS_BYTES_MAX
        self._configs: dict[str, tuple[str, OciConfig]] = {}

    def read(self, name: str) -> bytes:
        content = read_small(self.box, name, DOCUMENT_BYTES_MAX)
        self._left -= len(content)
        if self._left < 0:
            raise ImageError(
                f"its manifests and configurations have more than {_DOCUMENTS_BYTES_MAX:,} bytes"
            )
        return content

    def read_blob(self, descriptor: Descriptor) -> bytes:
        content = self.read(_blob(descriptor))
        if _digest(content) != descriptor.digest:
            raise ImageError(f"its {descriptor.digest} is {_digest(content)}: it is damaged")
        return content

    def config(self, name: str) -> tuple[str, OciConfig]:
        """Return a configuration with its digest."""
        if name not in self._configs:
            content = self.read(name)
            self._configs[name] = _digest(content), manifest.parse_config(content)
        return self._configs[name]


def _read_docker(documents: _Documents) -> list[ArchivedImage]:
    try:
        entries = json.loads(documents.read(_DOCKER))
    except (ValueError, RecursionError) as error:
        raise ImageError(f"its {_DOCKER} is no JSON ({error})") from error
    if not isinstance(entries, list) or len(entries) > _IMAGES_MAX:
        raise ImageError(f"its {_DOCKER} is no list of images")
    return [_read_docker_image(documents, entry) for entry in entries]


def _read_docker_image(documents: _Documents, entry: Any) -> ArchivedImage:
    if not isinstance(entry, dict) or not isinstance(entry.get("Config"), str):
        raise ImageError(f"its {_DOCKER} names no configuration")
    names, tags = _strings(entry, "Layers"), _strings(entry, "RepoTags")
    id, config = documents.config(entry["Config"])
    box = documents.box
    _check_count(config, len(names))
    layers = tuple(
        LayerSource(diff_id, diff_id, box.size(name), partial(box.open, name))
        for name, diff_id in zip(names, config.diff_ids, strict=True)
    )
    return ArchivedImage(id, tags, "", config, layers)


def _read_oci(documents: _Documents, platform: Platform) -> list[ArchivedImage]:
    index = manifest.parse_manifest(documents.read(_OCI), manifest.OCI_INDEX)
    if not isinstance(index, Index):
        raise ImageError(f"its {_OCI} is no index")
    named = [descriptor for descriptor in index.manifests if descriptor.name]
    if not named and any(descriptor.platform for descriptor in index.manifests):
        named = [manifest.choose(index, platform)]  # one image, for several platforms
    found: dict[str, ArchivedImage] = {}
    images = []
    for descriptor in named or index.manifests:
        if descriptor.digest not in found:
            found[descriptor.digest] = _read_oci_image(documents, descriptor, platform)
        names = (descriptor.name,) if descriptor.name else ()
        images.append(found[descriptor.digest]._replace(names=names))
    return images


def _read_oci_image(
    documents: _Documents, descriptor: Descriptor, platform: Platform
) -> ArchivedImage:
    for _ in range(_NESTED_MAX):
        found = manifest.parse_manifest(documents.read_blob(descriptor), descriptor.media_type)
        if not isinstance(found, Index):
            break
        descriptor = manifest.choose(found, platform)
    else:
        raise ImageError("there are indexes in indexes without end")
    id, config = documents.config(_blob(found.config))
    if id != found.config.digest:
        raise ImageError(f"its {found.config.digest} is {id}: it is damaged")
    config = config.with_variant(descriptor.platform)
    box = documents.box
    _check_count(config, len(found.layers))
    layers = tuple(
        LayerSource(layer.digest, diff_id, box.size(_blob(layer)), partial(box.open, _blob(layer)))
        for layer, diff_id in zip(found.layers, config.diff_ids, strict=True)
    )
    return ArchivedImage(id, (), descriptor.digest, config, layers)


def _check_count(config: OciConfig, count: int) -> None:
    if len(config.diff_ids) != count:
        raise ImageError(
            f"its configuration tells of {len(config.diff_ids)} layers, its manifest of {count}"
        )


def _blob(descriptor: Descriptor) -> str:
    return f"blobs/sha256/{descriptor.digest.removeprefix('sha256:')}"


def _strings(entry: dict[str, Any], key: str) -> tuple[str, ...]:
    value = entry.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ImageError(f"its {_DOCKER} is wrong: {key}")
    return tuple(value)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
