"""Templates: what a client's `templateID` names. An image, or a snapshot."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from voidbox.errors import ConfigError, VoidboxError
from voidbox.images.store import ImageStore
from voidbox.sandbox.image_choice import DEFAULT
from voidbox.sandbox.snapshots.record import SNAPSHOT
from voidbox.sandbox.snapshots.shelf import Shelf, Snapshot
from voidbox.serve.config import ServeConfig
from voidbox.serve.database import Database
from voidbox.serve.errors import ApiError
from voidbox.serve.keys import Key
from voidbox.serve.marks import Mark

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
    """

    def __init__(self, config: ServeConfig, folder: str, database: Database) -> None:
        self._config = config
        self._database = database
        self.images = ImageStore(folder)
        self._shelf = Shelf(folder)

    async def find(self, name: str, key: Key) -> Template:
        """Return the template of a name, as far as a key may use it.

        Raises:
            ApiError: 404.
        """
        built = self._database.template(key.id, name.removesuffix(_DEFAULT_TAG))
        return await asyncio.to_thread(self._find, name, key, built)

    def _find(self, name: str, key: Key, built: str | None) -> Template:
        plain = name.removesuffix(_DEFAULT_TAG)
        snapshot = None if self.is_given(plain) else self._snapshot(built or plain, key)
        if snapshot is not None:
            return Template(plain, {"snapshot": snapshot.record.id}, snapshot)
        image = self.image(plain)
        if image is None:
            more = " (a template of E2B's cloud)" if plain in _CLOUDS_OWN else ""
            raise ApiError(
                404,
                f"template {name!r} not found{more}: it is the name of an image (voidbox image "
                "ls), a snapshot of this key, or given by voidbox serve --template",
            )
        return Template(plain, {"image": image})

    def is_given(self, name: str) -> bool:
        """Whether the server's settings say what a name stands for."""
        return name in self._config.templates

    def image(self, name: str) -> str | None:
        """Return which image a template's name stands for; None for none."""
        if name in self._config.templates:
            return self._config.templates[name]
        try:
            self.images.find(name)
        except VoidboxError:
            return DEFAULT if name == BASE else None  # voidbox's own has bash, git, Python
        return name

    def _snapshot(self, name: str, key: Key) -> Snapshot | None:
        try:
            found = self._shelf.find(name)
        except ConfigError:
            return None
        return found if owner_of(found, key) is not None else None

    async def snapshots(self, key: Key) -> list[Snapshot]:
        """Return the snapshots that a key may use and that are no templates, the newest first."""
        built = self._database.templates()
        found = await asyncio.to_thread(self._snapshots, key)
        return [one for one in found if one.record.id not in built]

    async def built(self, key: Key) -> list[tuple[str, Snapshot]]:
        """Return the templates that were built and that a key may use, with their names."""
        built = self._database.templates()
        found = await asyncio.to_thread(self._snapshots, key)
        return [(built[one.record.id], one) for one in found if one.record.id in built]

    def _snapshots(self, key: Key) -> list[Snapshot]:
        found = [one for one in self._shelf.all() if one.record.kind == SNAPSHOT]
        return [one for one in reversed(found) if owner_of(one, key) is not None]

    async def set_built(self, name: str, snapshot_id: str, key: Key) -> None:
        """Have a snapshot be a key's template; what was that before goes."""
        old = self._database.template(key.id, name)
        self._database.set_template(key.id, name, snapshot_id)
        if old is not None:
            await asyncio.to_thread(self._remove, old, key)

    def names(self) -> list[str]:
        """Return the names of those that are images."""
        images, _ = self.images.list()
        names = [name for image in images for name in image.names]
        return list(dict.fromkeys([BASE, *self._config.templates, *names]))

    async def remove(self, name: str, key: Key) -> bool:
        """Delete a snapshot of a key, or a template that it has built; False if there is none."""
        plain = name.removesuffix(_DEFAULT_TAG)
        built = self._database.template(key.id, plain)
        if built is not None:
            self._database.set_template(key.id, plain, None)
        return await asyncio.to_thread(self._remove, built or plain, key) or built is not None

    def _remove(self, name: str, key: Key) -> bool:
        found = self._snapshot(name, key)
        if found is not None:
            self._shelf.remove(found.record.id)
        return found is not None


def owner_of(snapshot: Snapshot, key: Key) -> Mark | None:
    """Return the mark of a snapshot that a key may see."""
    mark = Mark.of(snapshot.record.sandbox.metadata)
    return mark if mark is not None and key.sees(mark.key_id) else None
