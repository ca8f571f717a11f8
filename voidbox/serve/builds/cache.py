"""What steps of builds have left, so that the same step after the same ones is not run again.

A layer is the whole sandbox after a RUN or a COPY: a snapshot. It is found by a hash of all that it
came from: the key, the image or template at the bottom, and each step's words and files, in order.
Those that were used longest ago go when all together are too large.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Sequence

from voidbox.errors import ConfigError, VoidboxError
from voidbox.sandbox.snapshots.shelf import Shelf, Snapshot
from voidbox.serve.builds.plan import Step
from voidbox.serve.database import Database

# What changes more than the words of later commands, which every build has to know anyhow.
KINDS = frozenset(("RUN", "COPY"))

_logger = logging.getLogger("voidbox.serve")


def chain(base: str, steps: Sequence[Step]) -> list[str]:
    """Return the hash of what there is after each step.

    Args:
        base: says all of what there is before them, and whose it is.
    """
    found, so_far = [], hashlib.sha256(base.encode()).hexdigest()
    for step in steps:
        text = json.dumps([so_far, step.kind, step.args, step.files_hash])
        so_far = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        found.append(so_far)
    return found


def reusable(steps: Sequence[Step]) -> int:
    """Return how many of the first steps need not be run again if that was done: none is forced."""
    return next((number for number, step in enumerate(steps) if step.is_forced), len(steps))


class Cache:
    """The layers of all builds. Thread: the event loop's.

    Args:
        folder: the state folder.
        bytes_max: of all of them, on the disk; 0: none is kept.
    """

    def __init__(self, folder: str, database: Database, bytes_max: int) -> None:
        self._shelf = Shelf(folder)
        self._database = database
        self._bytes_max = bytes_max

    @property
    def is_on(self) -> bool:
        """Whether anything is kept."""
        return self._bytes_max > 0

    def snapshots(self) -> list[str]:
        """Return the IDs of the snapshots that are layers."""
        return [str(row[0]) for row in self._database.rows("SELECT snapshot FROM layers")]

    async def find(self, layer: str) -> Snapshot | None:
        """Return a layer, which counts as used now; None if there is none, or it is gone."""
        rows = self._database.rows("SELECT snapshot FROM layers WHERE id = ?", (layer,))
        if not rows:
            return None
        try:
            found = await asyncio.to_thread(self._shelf.find, str(rows[0][0]))
        except ConfigError:  # somebody has removed it, or the disk has lost it
            await self.drop(layer)
            return None
        self._database.run("UPDATE layers SET used_at = ? WHERE id = ?", (time.time(), layer))
        return found

    async def keep(self, layer: str, snapshot_id: str) -> None:
        """Have a snapshot be a layer, in place of an older one of the same steps."""
        found = await asyncio.to_thread(self._shelf.find, snapshot_id)
        await self.drop(layer)
        self._database.run(
            "INSERT OR REPLACE INTO layers VALUES (?, ?, ?, ?)",
            (layer, snapshot_id, found.sizes.disk_bytes, time.time()),
        )
        await self.trim()

    async def drop(self, layer: str, of: str = "") -> None:
        """Delete a layer. Sandboxes that were made of it go on.

        Args:
            of: only if it is this snapshot: another build may have put another one in its place.
        """
        rows = self._database.rows("SELECT snapshot FROM layers WHERE id = ?", (layer,))
        for (snapshot_id,) in rows:
            if of and snapshot_id != of:
                continue
            self._database.run("DELETE FROM layers WHERE id = ?", (layer,))
            try:
                await asyncio.to_thread(self._shelf.remove, str(snapshot_id))
            except VoidboxError as error:
                _logger.warning("a build's layer cannot be deleted: %s", error)

    async def trim(self) -> None:
        """Delete those that were used longest ago, as far as they are too much."""
        total = 0
        for layer, size in self._database.rows(
            "SELECT id, bytes FROM layers ORDER BY used_at DESC"
        ):
            total += size
            if total > self._bytes_max:
                await self.drop(layer)
