"""An image from a registry, into the store."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Sequence
from functools import partial

from voidbox.errors import HostError
from voidbox.images import manifest, progress
from voidbox.images.assemble import Damaged, LayerSource, make_image
from voidbox.images.blobs import Blobs
from voidbox.images.credentials import Credentials
from voidbox.images.errors import ImageError
from voidbox.images.flock import OwnedFile
from voidbox.images.manifest import Descriptor, OciConfig, Platform, parse_platform
from voidbox.images.progress import ImageProgress, OnProgress, Tally
from voidbox.images.record import ImageRecord, Layer
from voidbox.images.reference import Reference, parse_reference
from voidbox.images.registry import Registry, Resolved
from voidbox.images.store import Image, ImageStore
from voidbox.threads import Threads

DEFAULT_PLATFORM = "linux/amd64"
_AT_ONCE = 3  # layers


def pull(
    name: str,
    *,
    store: ImageStore | None = None,
    platform: str = DEFAULT_PLATFORM,
    insecure: bool = False,
    timeout_s: float = 30.0,
    progress: OnProgress = progress.ignore,
    credentials: Credentials | None = None,
    keep_as: Reference | None = None,
) -> Image:
    """Have the store hold what a registry has under a name now. Thread: any, for as long as it is.

    Whoever pulls a name while somebody else does gets what that one gets.

    Args:
        name: such as python:3.12 or localhost:5000/team/app.
        store: the user's own if None.
        platform: the one of a multi-platform image to take.
        insecure: plain http and unknown certificates will do.
        timeout_s: how long the registry may say nothing.
        progress: called with each step, from several threads but by one at a time.
        credentials: who asks; what `docker login` wrote down by default.
        keep_as: the store's name for it, if that is another one.

    Raises:
        ConfigError: the name or the platform is none.
        RegistryError: the registry cannot be reached, has no such image, or lies.
        ImageError: the image cannot be used.
        HostError: the disk is full, say. What has been downloaded is used by the next pull.
    """
    reference = parse_reference(name)
    kept = keep_as or reference
    wanted = parse_platform(platform)
    store = store or ImageStore()
    since = time.time()
    key = hashlib.sha256(f"{kept.name} {wanted}".encode()).hexdigest()
    with OwnedFile(
        f"{store.path}/partial/name-{key}",
        lambda: progress(ImageProgress("wait", "", 0, 0)),
    ) as lock:
        try:
            id = store.look_up(kept, since)
            if id is not None:
                image = store.find(id)
                if wanted.is_served_by(Platform(*image.record.platform.split("/"))):
                    return image  # somebody else has pulled it while we waited
            stop = threading.Event()
            with Registry(
                reference,
                is_insecure=insecure,
                timeout_s=timeout_s,
                stop=stop,
                credentials=credentials,
            ) as registry:
                return _Pull(store, registry, reference, kept, progress, stop).run(wanted)
        finally:
            lock.delete()


class _Pull:
    """One pull, of one name. Thread: the caller's, but for the downloads."""

    def __init__(
        self,
        store: ImageStore,
        registry: Registry,
        reference: Reference,
        kept: Reference,
        report: OnProgress,
        stop: threading.Event,
    ) -> None:
        self._store = store
        self._blobs = Blobs(store.path)
        self._registry = registry
        self._reference = reference
        self._kept = kept
        self._report = report
        self._stop = stop

    def run(self, platform: Platform) -> Image:
        try:
            return self._run(platform)
        except ImageError as error:
            raise type(error)(f"{self._reference.familiar}: {error}") from error

    def _run(self, platform: Platform) -> Image:
        resolved = self._registry.resolve(self._reference, platform)
        id = resolved.manifest.config.digest
        config = manifest.parse_config(
            self._registry.document(resolved.manifest.config, "configuration")
        )
        config = config.with_variant(resolved.platform)
        self._check(resolved, config, platform)
        with OwnedFile(f"{self._store.path}/partial/image-{id[7:]}") as lock:
            try:
                if self._store.name(self._kept, id):
                    return self._store.find(id)
                return self._bring(resolved, config)
            finally:
                lock.delete()

    def _bring(self, resolved: Resolved, config: OciConfig) -> Image:
        with self._blobs.held():
            self._download(resolved.manifest.layers)
            try:
                return self._make(resolved, config)
            except Damaged as error:
                if not self._blobs.discard_damaged(error.digest):
                    raise  # it is what the registry has
            self._download(resolved.manifest.layers)
            return self._make(resolved, config)

    def _check(self, resolved: Resolved, config: OciConfig, platform: Platform) -> None:
        if len(config.diff_ids) != len(resolved.manifest.layers):
            raise ImageError(
                f"its configuration tells of {len(config.diff_ids)} layers, its manifest of "
                f"{len(resolved.manifest.layers)}"
            )
        if not platform.is_served_by(config.platform):
            raise ImageError(f"it is made for {config.platform}: see --platform")
        manifest.check_level(platform, config.platform)

    def _download(self, layers: Sequence[Descriptor]) -> None:
        """Have all layers in the cache, some at a time."""
        missing = {layer.digest: layer for layer in layers if not self._blobs.has(layer)}
        self._check_room(sum(layer.size_bytes for layer in missing.values()))
        tally = Tally(sum(layer.size_bytes for layer in missing.values()), self._report)
        for layer in layers:
            if layer.digest not in missing:
                tally.layer(progress.CACHED, layer.digest, layer.size_bytes)

        def fetch(layer: Descriptor) -> None:
            was_fetched = self._blobs.fetch(self._registry, layer, tally.add)
            stage = progress.LAYER if was_fetched else progress.CACHED
            tally.layer(stage, layer.digest, layer.size_bytes)

        with Threads(_AT_ONCE, "voidbox-pull") as threads:
            try:
                for layer in missing.values():
                    threads.submit(fetch, layer)
                for _ in missing:
                    threads.first().result()
            except BaseException:
                self._stop.set()  # nobody waits for another attempt, nor for what a server may say
                self._registry.cut()
                raise

    def _check_room(self, needed_bytes: int) -> None:
        room = os.statvfs(self._store.path)
        free_bytes = room.f_bavail * room.f_frsize
        if needed_bytes > free_bytes:
            raise HostError(
                f"{self._reference.familiar}: {needed_bytes >> 20:,} MiB are to be downloaded, and "
                f"{self._store.path} has room for {free_bytes >> 20:,}: voidbox image prune frees "
                "what is not used"
            )

    def _make(self, resolved: Resolved, config: OciConfig) -> Image:
        pairs = zip(resolved.manifest.layers, config.diff_ids, strict=True)
        layers = [
            LayerSource(
                layer.digest, diff_id, layer.size_bytes, partial(self._blobs.open, layer.digest)
            )
            for layer, diff_id in pairs
        ]
        record = ImageRecord(
            id=resolved.manifest.config.digest,
            config=config.config,
            size_bytes=0,
            created_at=config.created_at,
            added_at=time.time(),
            source=f"pulled as {self._reference.familiar}",
            platform=str(config.platform),
            digest=resolved.digest,
            layers=tuple(
                Layer(layer.digest, layer.size_bytes, layer.media_type)
                for layer in resolved.manifest.layers
            ),
        )
        return make_image(self._store, self._kept, record, layers, self._report)
