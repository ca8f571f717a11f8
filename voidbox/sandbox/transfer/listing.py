"""What a guest says of its files: checked, and bounded, for it may be hostile."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from voidbox.agent import protocol
from voidbox.agent.aio import AsyncAgent
from voidbox.agent.core import Data, Event, printable
from voidbox.errors import AgentError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.transfer.again import again, lost_or

ENTRIES_MAX = 1_000_000  # in a folder
LISTED_BYTES_MAX = 1 << 30  # of our memory, about, for one list
_NAME_CHARACTERS_MAX = 4096 + 256  # the longest path that can be listed, and a name in it
_ERROR_CHARACTERS_MAX = 200
_EVENT_BYTES = 1 << 10
_PART_BYTES = 64  # what a part of a name costs beside its letters


class FileInfo(NamedTuple):
    """A file of the guest, by the guest's word.

    Attributes:
        name: its name; in a list relative to the folder.
        path: the whole path.
        type: "file", "folder", "link", "fifo", "socket", "block", "character"; "unknown" if it
            could not be described.
        size: in bytes.
        mode: its permissions.
        mtime: when it was changed, in seconds since 1970.
        target: where a link leads; else "".
        error: why it could not be described, or why what is in this folder is not in the list.
    """

    name: str
    path: str
    type: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime: float
    target: str = ""
    error: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.type == "folder"


def info_of(item: dict[str, Any], folder: str) -> FileInfo:
    """Return what the guest says of a file.

    Raises:
        AgentError: it says nothing of sense.
    """
    name, kind = item.get("name"), item.get("type")
    size, mode, uid, gid, mtime_ns = numbers_of(item, "size", "mode", "uid", "gid", "mtime_ns")
    if not isinstance(name, str) or not isinstance(kind, str):
        raise AgentError("the guest's agent described a file without sense")
    target = str(item.get("target", ""))
    path = f"{folder.rstrip('/')}/{name}"
    return FileInfo(
        name, path, printable(kind[:20]), size, mode, uid, gid, mtime_ns / 1e9, target,
        error_of(item),
    )  # fmt: skip


def numbers_of(item: dict[str, Any], *names: str) -> list[int]:
    """Return numbers of an answer.

    Raises:
        AgentError: there are none.
    """
    numbers = [item.get(name) for name in names]
    found = [n for n in numbers if isinstance(n, int) and n >= -(1 << 63)]
    if len(found) < len(numbers):
        raise AgentError("the guest's agent described a file without sense")
    return found


def error_of(item: dict[str, Any]) -> str:
    """Return why an entry could not be read, or ""."""
    return printable(str(item.get("error", ""))[:_ERROR_CHARACTERS_MAX])


async def describe(agent: AsyncAgent, values: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """Return what FILE_STAT answers, for info_of(); also over a new connection.

    Raises:
        RequestFailed, AgentError, SandboxTimeout.
    """
    path: str = values["path"]

    async def attempt() -> dict[str, Any]:
        with await agent.call(protocol.FILE_STAT, values, f"stat {path}", limit_s) as call:
            try:
                return await call.result(limit_s)
            except AgentError as error:
                raise lost_or(call, error) from error

    return await again(agent, attempt, limit_s)


async def read_list(
    agent: AsyncAgent,
    values: dict[str, Any],
    limit_s: float,
    take: Callable[[dict[str, Any]], None],
) -> None:
    """Call `take` for each entry of a FILE_LIST.

    Raises:
        ConnectionLost: it is to be asked for again.
        RequestFailed, AgentError, SandboxTimeout.
    """
    path = printable(values["path"])
    count = cost = 0
    with await agent.call(protocol.FILE_LIST, values, f"list {path}", limit_s) as call:
        try:
            while events := await call.batch(limit_s):
                cost += _EVENT_BYTES * len(events)  # one without entries costs something too
                if cost > LISTED_BYTES_MAX:
                    raise AgentError(f"{path}: more names than fit into memory")
                for item in (item for event in events for item in _entries(event)):
                    count += 1
                    cost += _cost(item)
                    if count > ENTRIES_MAX:
                        raise AgentError(f"{path}: more than {ENTRIES_MAX} files")
                    if cost > LISTED_BYTES_MAX:
                        raise AgentError(f"{path}: more names than fit into memory")
                    take(item)
        except AgentError as error:
            raise lost_or(call, error) from error


def _entries(event: Event | Data) -> Iterator[dict[str, Any]]:
    entries = None if isinstance(event, Data) else event.values.get("entries")
    if not isinstance(entries, list) or not all(isinstance(item, dict) for item in entries):
        raise AgentError("the guest's agent gave no list of entries")
    yield from entries


def _cost(item: dict[str, Any]) -> int:
    cost = 0
    for text in (item.get("name"), item.get("target")):
        if not isinstance(text, str):
            continue
        if len(text) > _NAME_CHARACTERS_MAX:
            raise AgentError(f"the guest's agent gave a name of {len(text)} characters: refused")
        letters = sys.getsizeof(text) * (1 if text.isprintable() else 5)  # as a message quotes it
        cost += letters + _PART_BYTES * (text.count("/") + 1)
    return cost
