"""API keys: made by `voidbox serve key add`, shown once, kept as hashes."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import sqlite3
import time
from collections.abc import Iterable

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.serve.database import Database

# What some SDKs check that a key looks like: ^e2b_[0-9a-f]+$.
_PREFIX = "e2b_"
_SECRET_BYTES = 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,62}")
_KEY_CHARACTERS_MAX = 200
_LOOK_S = 1.0  # how soon a removed key is noticed
_USED_EVERY_S = 60.0  # how exact last_used_at is

# run: all with one's own sandboxes; read: only look at them; admin: at everybody's, and keys.
SCOPES = ("run", "read", "admin")


class Key(NamedTuple):
    """A key, without its secret.

    Attributes:
        scopes: of SCOPES.
        created_at, last_used_at: in seconds since 1970; the latter None if it never was.
    """

    id: str
    name: str
    scopes: tuple[str, ...]
    created_at: float
    last_used_at: float | None

    def may(self, scope: str) -> bool:
        """Whether it may do what needs this scope."""
        if "admin" in self.scopes:
            return True
        return scope in self.scopes or (scope == "read" and "run" in self.scopes)

    def sees(self, key_id: str) -> bool:
        """Whether it may see a sandbox of another key."""
        return key_id == self.id or "admin" in self.scopes


class Keys:
    """The keys of one server."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, name: str, scopes: Iterable[str] = ("run",)) -> tuple[Key, str]:
        """Make a key; return it and its secret, which nobody can be told again.

        Raises:
            ConfigError: the name is none or is taken, or there is no such scope.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} is no name for a key: up to 63 letters, digits, '_', '-', '.' and '@'"
            )
        wanted = tuple(dict.fromkeys(scopes))
        if not wanted or set(wanted) - set(SCOPES):
            raise ConfigError(f"scopes {','.join(wanted)!r}: choose of {', '.join(SCOPES)}")
        secret = _PREFIX + secrets.token_hex(_SECRET_BYTES)
        key = Key(secrets.token_hex(6), name, wanted, time.time(), None)
        try:
            self._database.run(
                "INSERT INTO keys VALUES (?, ?, ?, ?, ?, NULL)",
                (key.id, name, _hash(secret), ",".join(wanted), key.created_at),
            )
        except sqlite3.IntegrityError:
            raise ConfigError(
                f"there is a key called {name} already: choose another name"
            ) from None
        return key, secret

    def list(self) -> list[Key]:
        """Return all keys, the oldest first."""
        return [_key(row) for row in self._database.rows(f"{_SELECT} ORDER BY created_at")]

    def remove(self, name: str) -> None:
        """Have a key open nothing any more. Its sandboxes go on; an admin's key sees them.

        Raises:
            ConfigError: there is none.
        """
        if not self._database.run("DELETE FROM keys WHERE name = ?", (name,)):
            raise ConfigError(f"there is no key called {name}: voidbox serve key ls shows them")

    def find(self, secret: str) -> Key | None:
        """Return the key with this secret."""
        if not 0 < len(secret) <= _KEY_CHARACTERS_MAX:
            return None
        # By its hash: how long the index takes tells nothing of a secret.
        rows = self._database.rows(f"{_SELECT} WHERE hash = ?", (_hash(secret),))
        if not rows:
            return None
        key, now = _key(rows[0]), time.time()
        if key.last_used_at is None or now - key.last_used_at > _USED_EVERY_S:
            self._database.run("UPDATE keys SET last_used_at = ? WHERE id = ?", (now, key.id))
        return key

    def by_id(self, key_id: str) -> Key | None:
        """Return the key of an ID."""
        rows = self._database.rows(f"{_SELECT} WHERE id = ?", (key_id,))
        return _key(rows[0]) if rows else None

    async def until_removed(self, key: Key) -> None:
        """Return once a key is removed, by whatever process: what goes on for long ends with it."""
        while self.by_id(key.id) is not None:
            await asyncio.sleep(_LOOK_S)

    def name_of(self, key_id: str) -> str:
        """Return a key's name; its ID once it is removed."""
        rows = self._database.rows("SELECT name FROM keys WHERE id = ?", (key_id,))
        return str(rows[0][0]) if rows else key_id


_SELECT = "SELECT id, name, scopes, created_at, last_used_at FROM keys"


def _key(row: tuple[str, str, str, float, float | None]) -> Key:
    id, name, scopes, created_at, last_used_at = row
    return Key(id, name, tuple(scopes.split(",")), created_at, last_used_at)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
