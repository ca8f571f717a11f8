"""Templates that clients have built, by key, name and tag: which snapshot each is, of which build.

A snapshot stays as long as a tag is its own; the first of its tags gives it its name in lists.
"""

from __future__ import annotations

import re
import time

from voidbox.named_tuple import NamedTuple
from voidbox.serve.database import Database

DEFAULT = "default"
_TAG = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,127}")
_SELECT = "SELECT name, tag, snapshot, build, assigned_at FROM tags"


class Tag(NamedTuple):
    """A tag of a template.

    Attributes:
        build: the ID of the build that it stands for.
        assigned_at: in seconds since 1970.
    """

    name: str
    tag: str
    snapshot: str
    build: str
    assigned_at: float

    @property
    def title(self) -> str:
        """The template's name as create() takes it."""
        return self.name if self.tag == DEFAULT else f"{self.name}:{self.tag}"


def is_tag(text: str) -> bool:
    """Whether a text may be a tag."""
    return _TAG.fullmatch(text) is not None


def split_tag(name: str) -> tuple[str, str]:
    """Return a template's name and its tag: `default`, if it names none."""
    plain, _, tag = name.partition(":")
    return plain, tag or DEFAULT


class Tags:
    """The tags of all keys; each has its own names. Thread: the database's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, key_id: str, name: str) -> list[Tag]:
        """Return all tags of a key's template, the newest first; none if there is no such."""
        where = "WHERE key = ? AND name = ? ORDER BY assigned_at DESC, tag"
        return [Tag(*row) for row in self._database.rows(f"{_SELECT} {where}", (key_id, name))]

    def names(self) -> dict[str, Tag]:
        """Return one tag of each snapshot that has any, by the snapshots' IDs."""
        rows = self._database.rows(f"{_SELECT} ORDER BY assigned_at DESC, tag")
        return {row[2]: Tag(*row) for row in reversed(rows)}

    def assign(
        self, key_id: str, name: str, tags: list[str], snapshot: str, build: str
    ) -> set[str]:
        """Have tags stand for a snapshot; return the snapshots that have no tag any more."""
        before = {one.snapshot for one in self.of(key_id, name)}
        for tag in tags:
            self._database.run(
                "INSERT OR REPLACE INTO tags VALUES (?, ?, ?, ?, ?, ?)",
                (key_id, name, tag, snapshot, build, time.time()),
            )
        return before - {one.snapshot for one in self.of(key_id, name)}

    def remove(self, key_id: str, name: str, tags: list[str]) -> set[str]:
        """Delete tags; return the snapshots that have none any more."""
        before = {one.snapshot for one in self.of(key_id, name)}
        for tag in tags:
            self._database.run(
                "DELETE FROM tags WHERE key = ? AND name = ? AND tag = ?", (key_id, name, tag)
            )
        return before - {one.snapshot for one in self.of(key_id, name)}
