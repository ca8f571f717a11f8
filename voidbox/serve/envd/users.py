"""Users of a guest, and where their paths begin: by its own /etc/passwd and /etc/group."""

from __future__ import annotations

import posixpath
import time

from voidbox.agent.call import RequestFailed
from voidbox.named_tuple import NamedTuple
from voidbox.sdk.files import AsyncFiles
from voidbox.serve.errors import ConnectError

# What E2B calls the user that is meant when none is named; so a guest without one has it too.
DEFAULT = "user"
_TABLE_BYTES_MAX = 1 << 20
_FRESH_S = 5.0
_PATH_CHARACTERS_MAX = 4096


class GuestUser(NamedTuple):
    """A user of a guest.

    Attributes:
        folder: where relative paths begin; "" for the home.
    """

    name: str
    uid: int
    home: str
    folder: str = ""

    def path(self, path: str) -> str:
        """Return an absolute path: relative ones begin in the user's folder, ~ in the home.

        Raises:
            ConnectError: it is no path.
        """
        if "\0" in path or len(path) > _PATH_CHARACTERS_MAX:
            raise ConnectError("invalid_argument", "that is no path")
        if path == "~" or path.startswith("~/"):
            return posixpath.normpath(posixpath.join(self.home, path[2:]))
        return posixpath.normpath(posixpath.join(self.folder or self.home, path))


class Users:
    """The users of one guest.

    Args:
        default: who is meant when nobody is named: a name or a uid.
        workdir: where everybody's relative paths begin; "" for each one's home.
    """

    def __init__(self, files: AsyncFiles, default: str, workdir: str = "") -> None:
        self._workdir = workdir
        self._files = files
        self._default = default
        self._users: dict[str, GuestUser] = {}  # by name, and by uid
        self._groups: dict[int, str] = {}
        self._read_at = 0.0

    async def find(self, name: str) -> GuestUser:
        """Return the user of a name; "" for the default one.

        Raises:
            ConnectError: there is none.
        """
        await self._refresh(name or self._default)
        found = self._users.get(name) if name else None
        if found is None and name in ("", DEFAULT):
            found = self._users.get(self._default)
        if found is None:
            shown = name[:80] or self._default
            raise ConnectError("unauthenticated", f"invalid username: '{shown}'")
        return found

    async def owner(self, uid: int) -> str:
        """Return a user's name; the number of one that has none."""
        await self._refresh(str(uid))
        found = self._users.get(str(uid))
        return found.name if found is not None else str(uid)

    async def group(self, gid: int) -> str:
        """Return a group's name; the number of one that has none."""
        await self._refresh("" if gid in self._groups else "?")
        return self._groups.get(gid, str(gid))

    async def _refresh(self, wanted: str) -> None:
        """Read the tables if they were never read, or do not know this one, lately."""
        age = time.monotonic() - self._read_at
        if self._read_at and (wanted in self._users or not wanted or age < _FRESH_S):
            return
        users: dict[str, GuestUser] = {}
        for name, _, uid, _, _, home, _ in await self._table("/etc/passwd", 7):
            if uid.isdecimal():
                user = GuestUser(name, int(uid), home or "/", self._workdir)
                users.setdefault(name, user)
                users.setdefault(uid, user)
        users.setdefault("root", GuestUser("root", 0, "/root"))
        users.setdefault("0", users["root"])
        groups = await self._table("/etc/group", 4)
        self._groups = {int(gid): name for name, _, gid, _ in reversed(groups) if gid.isdecimal()}
        self._users = users
        self._read_at = time.monotonic()

    async def _table(self, path: str, fields: int) -> list[list[str]]:
        """Return the lines of a table; none for an image without it."""
        try:
            text = await self._files.read_part(path, 0, _TABLE_BYTES_MAX, user="0")
        except RequestFailed:
            return []
        lines = (line.split(":") for line in text.decode("utf-8", "replace").split("\n"))
        return [words for words in lines if len(words) == fields]
