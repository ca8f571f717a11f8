"""Images as registries and archives have them, made by hand from a few files."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from typing import Any, NamedTuple

from tests.unit.images.made import digest_of
from voidbox.images.manifest import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"


def tar_of(files: dict[str, bytes]) -> bytes:
    """Return a tar archive; a name that ends with / is a folder's. Programs are executable."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            info.size = len(content)
            if name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif content.startswith(b"\x7fELF"):
                info.mode = 0o755
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


class OciImage(NamedTuple):
    """An image: its documents, and its blobs by their digests."""

    manifest: bytes
    config: bytes
    blobs: dict[str, bytes]
    layers: tuple[str, ...]
    media_type: str = OCI_MANIFEST

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)

    @property
    def id(self) -> str:
        return digest_of(self.config)


def descriptor(media_type: str, content: bytes, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content), **more}


def make_image(
    *layers: dict[str, bytes],
    config: dict[str, Any] | None = None,
    architecture: str = "amd64",
    media_type: str = OCI_MANIFEST,
    diff_ids: list[str] | None = None,
    raw: bool = False,
    variant: str = "",
) -> OciImage:
    """Return an image with these layers of files."""
    plain = [tar_of(files) for files in layers]
    packed = plain if raw else [gzip.compress(content, mtime=0) for content in plain]
    document = {
        "architecture": architecture,
        "os": "linux",
        "created": "2024-05-06T07:08:09.123456789Z",
        "config": {"Env": ["PATH=/bin", "A=b=c"], "Cmd": ["sh"], **(config or {})},
        "rootfs": {
            "type": "layers",
            "diff_ids": [digest_of(content) for content in plain] if diff_ids is None else diff_ids,
        },
    }
    if variant:
        document["variant"] = variant
    content = json.dumps(document).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": descriptor(CONFIG_TYPE, content),
        "layers": [descriptor(LAYER_TYPE, layer) for layer in packed],
    }
    blobs = {digest_of(blob): blob for blob in (content, *packed)}
    digests = tuple(digest_of(layer) for layer in packed)
    return OciImage(json.dumps(manifest).encode(), content, blobs, digests, media_type)


def saved_by_docker(image: OciImage, tag: str) -> bytes:
    """Return the archive that `docker save` would write; its layers are packed, as they may be."""
    names = [f"{digest.removeprefix('sha256:')}.tar" for digest in image.layers]
    entry = {"Config": "config.json", "RepoTags": [tag], "Layers": names}
    layers = {name: image.blobs[digest] for name, digest in zip(names, image.layers, strict=True)}
    return tar_of(
        {"config.json": image.config, "manifest.json": json.dumps([entry]).encode(), **layers}
    )


def make_index(*images: tuple[OciImage, str, str]) -> bytes:
    """Return an index of (image, OS, architecture)."""
    manifests = [
        descriptor(
            image.media_type, image.manifest, platform={"os": os, "architecture": architecture}
        )
        for image, os, architecture in images
    ]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    return json.dumps(index).encode()


__all__ = [
    "DOCKER_MANIFEST",
    "OCI_INDEX",
    "OciImage",
    "make_image",
    "make_index",
    "saved_by_docker",
    "tar_of",
]
