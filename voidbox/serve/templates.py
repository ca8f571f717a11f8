"""Templates: what a client's `templateID` names. An image, or a snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from voidbox.errors import ConfigError, VoidboxError
from voidbox.images.store import ImageStore
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.image_choice import DEFAULT
from voidbox.sandbox.snapshots.record import SNAPSHOT
from voidbox.sandbox.snapshots.shelf import Shelf, Snapshot
from voidbox.serve.builds import private_images
from voidbox.serve.config import ServeConfig
from voidbox.serve.database import Database
from voidbox.serve.errors import ApiError
from voidbox.serve.keys import Key
from voidbox.serve.marks import Mark
from voidbox.serve.tags import Tag, Tags, split_tag

BASE = "base"
_DEFAULT_TAG = ":default"
_CLOUDS_OWN = ("mcp-gateway", "desktop")


class Template(NamedTuple):
    """What a sandbox is made from.

    Attributes:
        id: its name, as the client gave it.
        options: of AsyncSandbox.create().
        snapshot: that it is, or None.
    """

    id: str
    options: dict[str, Any]
    snapshot: Snapshot | None = None


class Templates:
    """What there is to make sandboxes from.

    Args:
        folder: the state folder.

    Attributes:
        images: those of this machine.
        tags: of the templates that were built.
    """

    def __init__(self, config: ServeConfig, folder: str, database: Database) -> None:
        self._config = config
        self.tags = Tags(database)
        self.images = ImageStore(folder)
        self._shelf = Shelf(folder)

    async def find(self, name: str, key: Key) -> Template:
        """Return the template of a name, as far as a key may use it.

        Args:
            name: NAME:TAG for one that was built; without a tag it is the default one.
        Raises:
            ApiError: 404.
        """
        plain, wanted = split_tag(name)
        tags = {one.tag: one for one in self.tags.of(key.id, plain)}
        found = await asyncio.to_thread(self._find, name, key, tags.get(wanted))
        if found is not None:
            return found
        if tags:
            raise ApiError(404, f"template {plain!r} has no tag {wanted!r}: {', '.join(tags)}")
        more = " (a template of E2B's cloud)" if plain in _CLOUDS_OWN else ""
        raise ApiError(
            404,
            f"template {name!r} not found{more}: it is the name of an image (voidbox image ls), a "
            "snapshot of this key, what it has built, or given by voidbox serve --template",
        )

    def _find(self, name: str, key: Key, tag: Tag | None) -> Template | None:
        plain = name.removesuffix(_DEFAULT_TAG)
        if not self.is_given(plain):
            snapshot = self._snapshot(tag.snapshot, key) if tag is not None else None
            if snapshot is None:
                named = self._snapshot(plain, key)
                snapshot = None if named is None or _is_of_build(named) else named
            if snapshot is not None:
                return Template(plain, {"snapshot": snapshot.record.id}, snapshot)
        image = self.image(plain, key)
        return None if image is None else Template(plain, {"image": image})

    def is_given(self, name: str) -> bool:
        """Whether the server's settings say what a name stands for."""
        return name in self._config.templates

    def image(self, name: str, key: Key | None = None) -> str | None:
        """Return which image a template's name stands for; None for none.

        Args:
            key: who may use it; None: the server itself.
        """
        if name in self._config.templates:
            return self._config.templates[name]
        try:
            found = self.images.find(name)
        except VoidboxError:
            return DEFAULT if name == BASE else None  # voidbox's own has bash, git, Python
        return name if key is None or private_images.may_use(key, found.names) else None

    def _snapshot(self, name: str, key: Key) -> Snapshot | None:
        try:
            found = self._shelf.find(name)
        except ConfigError:
            return None
        return found if owner_of(found, key) is not None else None

    async def snapshots(self, key: Key) -> list[Snapshot]:
        """Return the snapshots that a key may use and that are no templates, the newest first."""
        found = await asyncio.to_thread(self._snapshots, key)
        return [one for one in found if not _is_of_build(one)]

    async def built(self, key: Key) -> list[tuple[Tag, Snapshot]]:
        """Return the templates that were built and that a key may use, each with one of its tags.

        Of a name with several tags each that stands for another build is there.
        """
        tags = self.tags.names()
        found = await asyncio.to_thread(self._snapshots, key)
        return [(tags[one.record.id], one) for one in found if one.record.id in tags]

    def _snapshots(self, key: Key) -> list[Snapshot]:
        found = [one for one in self._shelf.all() if one.record.kind == SNAPSHOT]
        return [one for one in reversed(found) if owner_of(one, key) is not None]

    async def assign(
        self, name: str, tags: list[str], snapshot_id: str, build_id: str, key: Key
    ) -> None:
        """Have tags of a key's template stand for a build; a build without a tag goes."""
        await self._drop(self.tags.assign(key.id, name, tags, snapshot_id, build_id))

    async def unassign(self, name: str, tags: list[str], key: Key) -> None:
        """Remove tags of a key's template; a build without a tag goes."""
        await self._drop(self.tags.remove(key.id, name, tags))

    async def _drop(self, snapshots: Iterable[str]) -> None:
        for snapshot_id in snapshots:
            await asyncio.to_thread(self._shelf.remove, snapshot_id)

    async def sweep(self, kept: Iterable[str]) -> None:
        """Delete what builds have left that a killed server was at; before any begins.

        Args:
            kept: snapshots that builds use again.
        """
        known = {*kept, *self.tags.names()}
        for one in await asyncio.to_thread(self._shelf.all):
            if one.record.kind == SNAPSHOT and _is_of_build(one) and one.record.id not in known:
                await asyncio.to_thread(self._shelf.remove, one.record.id)

    def names(self) -> list[str]:
        """Return the names of those that are images."""
        images, _ = self.images.list()
        names = [name for image in images for name in image.names]
        names = [name for name in names if not private_images.is_private(name)]
        return list(dict.fromkeys([BASE, *self._config.templates, *names]))

    async def remove(self, name: str, key: Key) -> bool:
        """Delete a snapshot of a key, or a template that it has built; False if there is none.

        Args:
            name: of a template: with a tag that alone goes, without one all do.
        """
        plain, tag = split_tag(name)
        assigned = [one.tag for one in self.tags.of(key.id, plain)]
        if plain == name and assigned:
            await self.unassign(plain, assigned, key)
            return True
        if tag in assigned:
            await self.unassign(plain, [tag], key)
            return True
        return await asyncio.to_thread(self._remove, name.removesuffix(_DEFAULT_TAG), key)

    def _remove(self, name: str, key: Key) -> bool:
        found = self._snapshot(name, key)
        if found is None or _is_of_build(found):
            return False
        self._shelf.remove(found.record.id)
        return True


def _is_of_build(snapshot: Snapshot) -> bool:
    """Whether only builds know of it: it is found by tags, or is a step's."""
    mark = Mark.of(snapshot.record.sandbox.metadata)
    return mark is not None and mark.is_build


def left_by_build(snapshot: Snapshot) -> tuple[str, str]:
    """Return the user and the folder that a template's build ended with; "" for the image's."""
    mark = Mark.of(snapshot.record.sandbox.metadata)
    return ("", "") if mark is None else (mark.user, mark.workdir)


def owner_of(snapshot: Snapshot, key: Key) -> Mark | None:
    """Return the mark of a snapshot that a key may see."""
    mark = Mark.of(snapshot.record.sandbox.metadata)
    return mark if mark is not None and key.sees(mark.key_id) else None
