"""EntryInfo: a file of the guest as envd describes it."""

from __future__ import annotations

import posixpath
import stat
from datetime import UTC, datetime
from typing import Any

from voidbox.agent.client import REQUEST_TIMEOUT_S
from voidbox.errors import AgentError
from voidbox.sandbox.transfer.listing import describe, info_of, read_list
from voidbox.serve.envd.users import GuestUser
from voidbox.serve.served import Served

Entry = dict[str, Any]

# The namespace of attributes that clients give files, within that of users.
METADATA = "e2b."
_ENTRIES_MAX = 100_000  # in one answer
_FILE, _FOLDER, _LINK = "FILE_TYPE_FILE", "FILE_TYPE_DIRECTORY", "FILE_TYPE_SYMLINK"
_TYPES = {"file": _FILE, "folder": _FOLDER, "link": _LINK}
_MODES = {"file": stat.S_IFREG, "folder": stat.S_IFDIR, "link": stat.S_IFLNK}
_NS = 10**9


async def entry_at(served: Served, user: GuestUser, path: str) -> Entry:
    """Describe one file, of an absolute path.

    Raises:
        RequestFailed: there is none, say.
    """
    values = _values(user, path, follow=False)
    item = await describe(served.session.agent, values, REQUEST_TIMEOUT_S)
    return await _entry(served, item, path)


async def entries_in(served: Served, user: GuestUser, path: str, depth: int) -> list[Entry]:
    """Describe what is in a folder, and so many levels below it.

    Raises:
        RequestFailed: there is no such folder, say.
    """
    found: list[dict[str, Any]] = []

    def take(item: dict[str, Any]) -> None:
        if len(found) >= _ENTRIES_MAX:
            raise AgentError(f"{path}: more than {_ENTRIES_MAX} files: list a part of it")
        found.append(item)

    values = _values(user, path, depth=depth)
    await read_list(served.session.agent, values, REQUEST_TIMEOUT_S, take)
    return [
        await _entry(served, item, posixpath.join(path, str(item.get("name")))) for item in found
    ]


def _values(user: GuestUser, path: str, **others: object) -> dict[str, Any]:
    return {"path": path, "user": str(user.uid), "details": True, **others}


async def _entry(served: Served, item: dict[str, Any], path: str) -> Entry:
    itself = info_of(item, "")
    followed = item.get("followed")
    # A link is shown with what it leads to, which symlinkTarget says; see envd's own EntryInfo.
    info = info_of({**followed, "name": itself.name}, "") if isinstance(followed, dict) else itself
    entry: Entry = {
        "name": posixpath.basename(path) or "/",
        "type": _TYPES.get(info.type, "FILE_TYPE_UNSPECIFIED"),
        "path": path,
        "size": info.size,
        "mode": info.mode & 0o777,
        "permissions": stat.filemode(_MODES.get(info.type, 0) | info.mode),
        "owner": await served.users.owner(info.uid),
        "group": await served.users.group(info.gid),
        "modifiedTime": _time(info.mtime),
    }
    if itself.type == "link":
        entry["symlinkTarget"] = str(item.get("resolved", itself.target))
    metadata = _metadata(item.get("attributes"))
    if metadata:
        entry["metadata"] = metadata
    return entry


def _metadata(attributes: object) -> dict[str, str]:
    if not isinstance(attributes, dict):
        return {}
    return {
        name.removeprefix(METADATA): str(value)
        for name, value in attributes.items()
        if isinstance(name, str) and name.startswith(METADATA)
    }


def _time(seconds: float) -> str:
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):  # a guest may set any time
        moment = datetime.fromtimestamp(0, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
