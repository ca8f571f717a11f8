"""What the server keeps beside the sandboxes' records: keys, a secret, ends, tags, an audit."""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
import uuid
from collections.abc import Sequence
from typing import Any

from voidbox.errors import ConfigError

_NAME = "serve.sqlite"
_VERSION = 3
_WITHOUT_TAGS = 2
_AUDIT_MAX = 10_000  # lines
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, name TEXT UNIQUE NOT NULL, hash BLOB UNIQUE NOT NULL,
    scopes TEXT NOT NULL, created_at REAL NOT NULL, last_used_at REAL);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS ends (sandbox TEXT PRIMARY KEY, end_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS audit (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, key TEXT NOT NULL, action TEXT NOT NULL,
    sandbox TEXT NOT NULL, detail TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tags (
    key TEXT NOT NULL, name TEXT NOT NULL, tag TEXT NOT NULL, snapshot TEXT NOT NULL,
    build TEXT NOT NULL, assigned_at REAL NOT NULL, PRIMARY KEY (key, name, tag));
CREATE TABLE IF NOT EXISTS layers (
    id TEXT PRIMARY KEY, snapshot TEXT NOT NULL, bytes INTEGER NOT NULL, used_at REAL NOT NULL);
"""


class Database:
    """One file in the state folder. Thread: one; processes: any number, the key commands' too.

    Args:
        folder: the state folder, which must be there.
    Raises:
        ConfigError: it cannot be read, or is a newer voidbox's.
    """

    def __init__(self, folder: str) -> None:
        path = os.path.join(folder, _NAME)
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(path, timeout=10, isolation_level=None)
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"cannot use {path}: {error}") from error

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute("BEGIN IMMEDIATE")
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            self._connection.execute("ROLLBACK")
            raise ConfigError(f"{_NAME} was written by a newer voidbox: use that one")
        if version < _VERSION:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self._connection.execute(statement)
            if version == _WITHOUT_TAGS:
                self._tag_all()
            self._connection.execute(f"PRAGMA user_version={_VERSION}")
        self._connection.execute("COMMIT")

    def _tag_all(self) -> None:
        """Give the templates of an older voidbox the tag that means them still."""
        for key, name, snapshot in self.rows("SELECT key, name, snapshot FROM templates"):
            self.run(
                "INSERT INTO tags VALUES (?, ?, 'default', ?, ?, ?)",
                (key, name, snapshot, str(uuid.uuid4()), time.time()),
            )
        self.run("DROP TABLE templates")

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._connection.close()

    def run(self, statement: str, values: Sequence[object] = ()) -> int:
        """Execute a statement; return how many rows it changed.

        Raises:
            sqlite3.IntegrityError: what must be unique is there already.
        """
        return self._connection.execute(statement, values).rowcount

    def rows(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        """Return a query's rows."""
        return self._connection.execute(statement, values).fetchall()

    def secret(self) -> bytes:
        """Return the server's own secret, which is made once: tokens are computed with it."""
        self.run("INSERT OR IGNORE INTO settings VALUES ('secret', ?)", (secrets.token_bytes(32),))
        value: bytes = self.rows("SELECT value FROM settings WHERE name = 'secret'")[0][0]
        return value

    # Ends of sandboxes that are to be paused, not killed: those the server sees to itself.

    def ends(self) -> dict[str, float]:
        """Return when which sandbox is to be paused, in seconds since 1970."""
        return dict(self.rows("SELECT sandbox, end_at FROM ends"))

    def set_end(self, sandbox_id: str, end_at: float | None) -> None:
        """Note when a sandbox is to be paused; None for never."""
        if end_at is None:
            self.run("DELETE FROM ends WHERE sandbox = ?", (sandbox_id,))
        else:
            self.run("INSERT OR REPLACE INTO ends VALUES (?, ?)", (sandbox_id, end_at))

    # Who did what.

    def audit(self, key: str, action: str, sandbox_id: str = "", detail: str = "") -> None:
        """Write a line of the audit; the oldest ones go."""
        self.run(
            "INSERT INTO audit (at, key, action, sandbox, detail) VALUES (?, ?, ?, ?, ?)",
            (time.time(), key, action, sandbox_id, detail[:1000]),
        )
        self.run("DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?", (_AUDIT_MAX,))

    def audit_lines(self, count: int) -> list[tuple[float, str, str, str, str]]:
        """Return the newest lines: when, key's name, action, sandbox, detail."""
        return self.rows(
            "SELECT at, key, action, sandbox, detail FROM audit ORDER BY id DESC LIMIT ?", (count,)
        )
