"""Manifests and indexes: what an image consists of, as registries and archives say it.

OCI image specification, manifest.md, image-index.md and descriptor.md; docker's "Image Manifest
Version 2, Schema 2", which has the same members under other media types. All of it is anybody's
words: bounded, checked, and believed only as far as digests reach.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

from voidbox.images.config import ImageConfig
from voidbox.images.cpu_level import LEVELS, host_level
from voidbox.images.errors import ImageError
from voidbox.images.reference import is_digest
from voidbox.named_tuple import NamedTuple

DOCUMENT_BYTES_MAX = 4 << 20  # as registries have it, at most
_LAYERS_MAX, _MANIFESTS_MAX = 512, 1024
_SIZE_MAX = 1 << 40
_PLATFORM_KEYS = {"os": "linux", "architecture": "amd64", "variant": ""}
_PLATFORM_WORD = re.compile("[A-Za-z0-9._-]{0,40}")  # it is shown to people

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"  # +json, +prettyjws
ACCEPTED = (OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST)

_CONFIGS = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_LAYER_KINDS = (  # and what comes after ".tar": nothing, gzip or zstd
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)


class Platform(NamedTuple):
    """What an image is made for, such as linux/amd64.

    Attributes:
        variant: of linux/amd64 the level of the CPU, "v1" to "v4"; "" is the first.
    """

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, self))

    def is_served_by(self, other: Platform) -> bool:
        """Whether an image for the other platform is one for this: a variant only if asked for.

        What runs on a CPU of one level runs on those above.
        """
        if self[:2] != other[:2] or not self.variant:
            return self[:2] == other[:2]
        if self.has_levels and other.variant in LEVELS:
            return LEVELS[other.variant] <= LEVELS.get(self.variant, 0)
        return self.variant == other.variant

    @property
    def has_levels(self) -> bool:
        """Whether its variants are levels of the CPU."""
        return self.architecture == "amd64"


class Descriptor(NamedTuple):
    """What tells of a manifest, a configuration or a layer.

    Attributes:
        media_type: "" where nothing says.
        digest: "sha256:…".
        size_bytes: of the same bytes.
        platform: of a manifest in an index; None where nothing says.
        name: of a manifest in an OCI layout's index, such as "latest"; "" for none.
    """

    media_type: str
    digest: str
    size_bytes: int
    platform: Platform | None = None
    name: str = ""


class Manifest(NamedTuple):
    """One image: its configuration and its layers, the lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


class Index(NamedTuple):
    """Several images: one for each platform, say."""

    manifests: tuple[Descriptor, ...]


class OciConfig(NamedTuple):
    """An image's configuration.

    Attributes:
        config: how its commands want to be run.
        platform: what it is made for.
        diff_ids: "sha256:…" of each layer, uncompressed.
        created_at: seconds since 1970; None where nothing sensible says.
    """

    config: ImageConfig
    platform: Platform
    diff_ids: tuple[str, ...]
    created_at: float | None

    def with_variant(self, platform: Platform | None) -> OciConfig:
        """Return it with the variant that an index tells, if it has none of its own."""
        if platform is None or self.platform.variant or platform[:2] != self.platform[:2]:
            return self
        return self._replace(platform=platform)


def parse_platform(text: str) -> Platform:
    """Return what linux/amd64 or linux/arm/v7 says.

    Raises:
        ImageError: it says nothing of the kind.
    """
    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or not all(part.isalnum() for part in parts):
        raise ImageError(f"{text!r} is no platform: write it as linux/amd64")
    platform = Platform(*parts)
    if platform.has_levels and platform.variant not in LEVELS:
        raise ImageError(f"{text!r} is no platform: amd64 has the variants v1, v2, v3 and v4")
    return platform


def parse_manifest(content: bytes, media_type: str = "") -> Manifest | Index:
    """Read a manifest or an index, whichever it is.

    Args:
        media_type: as its carrier calls it, if it does; what it says itself goes first.

    Raises:
        ImageError: it is neither, or of a kind that cannot be used.
    """
    document = parse_object(content, "manifest")
    media_type = _text(document, "mediaType") or media_type.partition(";")[0].strip()
    if document.get("schemaVersion") == 1 or media_type.startswith(DOCKER_SCHEMA_1):
        raise ImageError(
            "it is of docker's old format (manifest schema 1), which says too little to be "
            "checked: push the image again with a docker of this decade"
        )
    if media_type in (OCI_INDEX, DOCKER_LIST) or (not media_type and "manifests" in document):
        return Index(_descriptors(document, "manifests", _MANIFESTS_MAX))
    if media_type not in (OCI_MANIFEST, DOCKER_MANIFEST, ""):
        raise ImageError(f"a manifest of an unknown type: {media_type[:100]!r}")
    manifest = Manifest(
        _descriptor(document.get("config"), "config"),
        _descriptors(document, "layers", _LAYERS_MAX),
    )
    if manifest.config.media_type not in (*_CONFIGS, ""):
        raise ImageError(
            f"it is no image of a file system, but {manifest.config.media_type[:100]!r}"
        )
    for layer in manifest.layers:
        if not layer.media_type.startswith(_LAYER_KINDS) and layer.media_type:
            raise ImageError(f"a layer of an unknown type: {layer.media_type[:100]!r}")
    return manifest


def choose(index: Index, platform: Platform, level: int | None = None) -> Descriptor:
    """Return the one manifest of an index that is for a platform.

    Of several levels of the CPU it is the highest that the platform names, or, if it names none,
    that this host runs.

    Args:
        level: instead of this host's own.

    Raises:
        ImageError: there is none; the message says for which there are.
    """
    found = [
        manifest
        for manifest in index.manifests
        if manifest.platform is not None and platform.is_served_by(manifest.platform)
    ]
    if found and platform.has_levels:
        found = _of_level(found, platform, host_level() if level is None else level)
    if found:
        return found[0]
    there = [str(manifest.platform) for manifest in index.manifests if manifest.platform]
    real = sorted({name for name in there if name != "unknown/unknown"})  # attestations
    if not real and len(index.manifests) == 1:
        return index.manifests[0]  # of an archive, which need not say
    shown = ", ".join(real[:20]) or "no platform at all"
    raise ImageError(f"it is not made for {platform}, but for {shown}: see --platform")


def _of_level(found: list[Descriptor], wanted: Platform, level: int) -> list[Descriptor]:
    """Return what a CPU of this level runs, best first; with a variant that was asked for, all.

    Raises:
        ImageError: it runs none.
    """
    levels = [LEVELS.get(manifest.platform.variant, 0) for manifest in found if manifest.platform]
    ranked = sorted(zip(levels, found, strict=True), key=lambda pair: -pair[0])
    if wanted.variant:
        return [manifest for _, manifest in ranked]
    fitting = [manifest for rank, manifest in ranked if 0 < rank <= level]
    if not fitting:
        shown = ", ".join(sorted({str(manifest.platform) for manifest in found}))
        raise _not_for_this_cpu(shown, level)
    return fitting


def check_level(wanted: Platform, made_for: Platform, level: int | None = None) -> None:
    """Check that this host's CPU can run an image, if nobody has asked for its level.

    Raises:
        ImageError: it cannot.
    """
    if wanted.has_levels and not wanted.variant and made_for.variant:
        level = host_level() if level is None else level
        if LEVELS.get(made_for.variant, 0) > level:
            raise _not_for_this_cpu(str(made_for), level)


def _not_for_this_cpu(made_for: str, level: int) -> ImageError:
    return ImageError(
        f"it is made for {made_for}, which this CPU, of level v{level}, cannot run: ask for it by "
        "--platform to have it all the same"
    )


def parse_config(content: bytes) -> OciConfig:
    """Read an image's configuration.

    Raises:
        ImageError: it is none.
    """
    document = parse_object(content, "configuration")
    rootfs = document.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if diff_ids is None:
        diff_ids = []
    if not isinstance(diff_ids, list) or len(diff_ids) > _LAYERS_MAX:
        raise ImageError("its configuration is wrong: rootfs.diff_ids")
    for diff_id in diff_ids:
        if not isinstance(diff_id, str) or not is_digest(diff_id):
            raise ImageError("its configuration is wrong: rootfs.diff_ids")
    return OciConfig(
        config=ImageConfig.from_oci(document),
        platform=_platform(document),
        diff_ids=tuple(diff_ids),
        created_at=_moment(_text(document, "created")),
    )


def parse_object(content: bytes, what: str) -> dict[str, Any]:
    """Read an object of JSON.

    Raises:
        ImageError: it is something else, or too large.
    """
    if len(content) > DOCUMENT_BYTES_MAX:
        raise ImageError(f"its {what} is larger than {DOCUMENT_BYTES_MAX >> 20} MiB")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"its {what} is no JSON ({error})") from error
    if not isinstance(document, dict):
        raise ImageError(f"its {what} is no object")
    return document


def _descriptors(document: dict[str, Any], key: str, most: int) -> tuple[Descriptor, ...]:
    values = document.get(key)
    if not isinstance(values, list):
        raise ImageError(f"its manifest is wrong: {key}")
    if len(values) > most:
        raise ImageError(f"its manifest has {len(values):,} {key}: {most:,} are the most")
    return tuple(_descriptor(value, key) for value in values)


def _descriptor(value: Any, where: str) -> Descriptor:
    if not isinstance(value, dict):
        raise ImageError(f"its manifest is wrong: {where}")
    digest, size = _text(value, "digest"), value.get("size")
    if not is_digest(digest):
        raise ImageError(f"its manifest is wrong: {digest[:100]!r} is no sha256 digest ({where})")
    if type(size) is not int or not 0 <= size <= _SIZE_MAX:
        raise ImageError(f"its manifest is wrong: the size of {digest} ({where})")
    platform = value.get("platform")
    annotations = value.get("annotations")
    return Descriptor(
        _text(value, "mediaType"),
        digest,
        size,
        _platform(platform) if isinstance(platform, dict) else None,
        _text(annotations, "org.opencontainers.image.ref.name")
        if isinstance(annotations, dict)
        else "",
    )


def _platform(values: dict[str, Any]) -> Platform:
    words = [_text(values, key) or other for key, other in _PLATFORM_KEYS.items()]
    return Platform(*(word if _PLATFORM_WORD.fullmatch(word) else "unknown" for word in words))


def _text(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""


def _moment(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text).timestamp()
        return moment if moment >= 0 else None  # year 1 is what Go writes for no time at all
    except (ValueError, OverflowError, OSError):
        return None
