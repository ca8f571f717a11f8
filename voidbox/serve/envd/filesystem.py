"""The service filesystem.Filesystem."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from voidbox.agent.call import RequestFailed
from voidbox.errors import SandboxTimeout
from voidbox.sdk.watch import AsyncWatch, FileEvent
from voidbox.serve import bodies
from voidbox.serve.bodies import Fields
from voidbox.serve.envd import access, wire
from voidbox.serve.envd.entries import entries_in, entry_at
from voidbox.serve.envd.users import GuestUser
from voidbox.serve.errors import ConnectError
from voidbox.serve.served import Served

_DEPTH_MAX = 1000
_EVENT_TYPES = {
    "create": "EVENT_TYPE_CREATE",
    "write": "EVENT_TYPE_WRITE",
    "remove": "EVENT_TYPE_REMOVE",
    "rename": "EVENT_TYPE_RENAME",
    "chmod": "EVENT_TYPE_CHMOD",
}
_WITH_ENTRY = ("create", "write", "chmod")


def _path(fields: Fields, user: GuestUser, name: str = "path") -> str:
    return user.path(bodies.text(fields, name, ""))


async def _stat(served: Served, user: GuestUser, fields: Fields) -> Fields:
    return {"entry": await entry_at(served, user, _path(fields, user))}


async def _list_dir(served: Served, user: GuestUser, fields: Fields) -> Fields:
    path = _path(fields, user)
    depth = int(bodies.number(fields, "depth", 1, 0, _DEPTH_MAX)) or 1
    return {"entries": await entries_in(served, user, path, depth)}


async def _make_dir(served: Served, user: GuestUser, fields: Fields) -> Fields:
    path = _path(fields, user)
    try:
        is_new = await served.files.make_dir(path, user=str(user.uid))
    except RequestFailed as error:
        if error.code == "EEXIST":
            raise ConnectError("invalid_argument", f"{path} is no folder") from error
        raise
    if not is_new:
        raise ConnectError("already_exists", f"directory already exists: {path}")
    return {"entry": await entry_at(served, user, path)}


async def _move(served: Served, user: GuestUser, fields: Fields) -> Fields:
    source, target = _path(fields, user, "source"), _path(fields, user, "destination")
    await served.files.stat(source, follow=False, user=str(user.uid))
    await served.files.make_dir(posixpath.dirname(target), user=str(user.uid))
    await served.files.rename(source, target, user=str(user.uid))
    return {"entry": await entry_at(served, user, target)}


async def _remove(served: Served, user: GuestUser, fields: Fields) -> Fields:
    try:
        await served.files.remove(_path(fields, user), recursive=True, user=str(user.uid))
    except RequestFailed as error:
        if error.code != "ENOENT":
            raise
    return {}


async def _watch(served: Served, user: GuestUser, fields: Fields) -> AsyncWatch:
    path = _path(fields, user)
    info = await served.files.stat(path, user=str(user.uid))
    if not info.is_folder:
        raise ConnectError("invalid_argument", f"path {path} not a directory")
    is_recursive = bodies.flag(fields, "recursive")
    return await served.files.watch_dir(path, recursive=is_recursive, user=str(user.uid))


async def watch_dir(served: Served, request: Request) -> Response:
    """Follow what happens in a folder."""
    fields = await wire.one_message(request)
    user = await access.acting_user(served, request)
    watch = await _watch(served, user, fields)
    describe = _describer(served, user, fields)

    async def events() -> AsyncGenerator[dict[str, Any]]:
        try:
            yield {"start": {}}
            while True:
                try:
                    event = await watch.next(wire.keepalive_s(request))
                except SandboxTimeout:
                    yield {"keepalive": {}}
                    continue
                if event is None:
                    return
                yield {"filesystem": await describe(event)}
        finally:
            await watch.close()

    return await wire.StreamResponse.begun(events())


def _describer(
    served: Served, user: GuestUser, fields: Fields
) -> Callable[[FileEvent], Awaitable[Fields]]:
    """Return what makes a client's event of ours."""
    path, has_entry = _path(fields, user), bodies.flag(fields, "includeEntry")

    async def describe(event: FileEvent) -> Fields:
        kind = _EVENT_TYPES.get(event.kind)
        if kind is None:
            raise ConnectError("resource_exhausted", "more happened than could be told")
        found: Fields = {"name": event.name, "type": kind}
        if has_entry and event.kind in _WITH_ENTRY:
            with contextlib.suppress(RequestFailed):  # it is gone again
                found["entry"] = await entry_at(served, user, posixpath.join(path, event.name))
        return found

    return describe


async def _create_watcher(served: Served, user: GuestUser, fields: Fields) -> Fields:
    watch = await _watch(served, user, fields)
    return {"watcherId": await served.watchers.add(watch, _describer(served, user, fields))}


async def _get_watcher_events(served: Served, user: GuestUser, fields: Fields) -> Fields:
    return {"events": served.watchers.drain(bodies.text(fields, "watcherId"))}


async def _remove_watcher(served: Served, user: GuestUser, fields: Fields) -> Fields:
    await served.watchers.remove(bodies.text(fields, "watcherId"))
    return {}


STREAMS: dict[str, Callable[[Served, Request], Awaitable[Response]]] = {"WatchDir": watch_dir}
CALLS: dict[str, Callable[[Served, GuestUser, Fields], Awaitable[Fields]]] = {
    "Stat": _stat,
    "ListDir": _list_dir,
    "MakeDir": _make_dir,
    "Move": _move,
    "Remove": _remove,
    "CreateWatcher": _create_watcher,
    "GetWatcherEvents": _get_watcher_events,
    "RemoveWatcher": _remove_watcher,
}
