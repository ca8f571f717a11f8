"""One file's way between host and guest, in pieces: each is checked, and sent again if need be.

A piece is held in memory until the other side has it and its checksum is right. So a transfer that
loses its connection connects again and goes on with the piece it was at; what is written on the
host has been checked.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeVar

from voidbox.agent import protocol
from voidbox.agent.aio import AsyncAgent, AsyncCall
from voidbox.agent.call import RequestFailed
from voidbox.agent.core import Data
from voidbox.errors import AgentError, HostError
from voidbox.sandbox.session import Session

PIECE_BYTES, _SERIAL_PIECE_BYTES = 8 << 20, 64 << 10
_WRITE_BYTES = 256 << 10
_LOSSES_MAX = 3  # of the connection, one after the other at the same piece

T = TypeVar("T")

# Told of bytes that have got somewhere; of fewer than none when they must go again.
OnBytes = Callable[[int], None]


class Writer(Protocol):
    """What a file is copied to."""

    def write(self, data: bytes, /) -> object:
        """Take all of it."""


class ConnectionLost(Exception):
    """The connection broke; `error` is what to raise if it does not come back."""

    def __init__(self, error: AgentError) -> None:
        self.error = error


class FileInfo(NamedTuple):
    """A file of the guest, by the guest's word.

    Attributes:
        name: its name; in a list relative to the folder.
        path: the whole path.
        type: "file", "folder", "link", "fifo", "socket", "block", "character".
        size: in bytes.
        mode: its permissions.
        mtime: when it was changed, in seconds since 1970.
        target: where a link leads; else "".
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

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.type == "folder"


class ReadInfo(NamedTuple):
    """What the guest said of a file that was read."""

    size: int
    mode: int
    mtime_ns: int
    file: int


def checksum_of(data: bytes) -> bytes:
    """Return the checksum that goes with a piece."""
    return hashlib.blake2b(data, digest_size=protocol.CHECKSUM_BYTES).digest()


async def again(agent: AsyncAgent, attempt: Callable[[], Awaitable[T]], limit_s: float) -> T:
    """Await `attempt()`, again with a new connection while it loses the one it had.

    Raises:
        AgentError: the guest is gone, or the connection is lost again and again.
    """
    for losses in range(1, _LOSSES_MAX + 1):
        try:
            return await attempt()
        except ConnectionLost as lost:
            if losses == _LOSSES_MAX:
                raise lost.error from None
            await agent.link(limit_s)  # says so if the guest is gone
    raise AssertionError("unreachable")


def piece_bytes(agent: AsyncAgent) -> int:
    """Return how long pieces should be now."""
    return PIECE_BYTES if agent.carrier == "vsock" else _SERIAL_PIECE_BYTES


# From the guest.


async def receive(
    session: Session,
    values: dict[str, Any],
    output: Writer,
    *,
    size: int | None,
    limit_s: float,
    bytes_max: int,
    on_bytes: OnBytes = lambda count: None,
) -> ReadInfo:
    """Copy a file of the guest to `output`.

    Args:
        values: of FILE_READ, without offset and length.
        size: how much to copy; None for all of it.
        bytes_max: more than this is an error.
    Raises:
        RequestFailed, AgentError, SandboxTimeout, HostError.
    """
    agent, path = session.agent, values["path"]
    offset, first, writing = 0, None, None
    try:
        while True:
            length = piece_bytes(agent)
            if size is not None:
                length = min(length, size - offset)
            data, info = await again(
                agent,
                partial(
                    _receive_piece,
                    agent,
                    {**values, "offset": offset, "length": length},
                    limit_s,
                    on_bytes,
                ),
                limit_s,
            )
            if first is not None and info.file != first.file:
                raise AgentError(f"{path}: it was replaced while it was read: read it again")
            first = first or info
            offset += len(data)
            if offset > bytes_max:
                raise AgentError(f"{path}: more than {bytes_max} bytes: use files.download()")
            if writing is not None:
                await writing
            writing = asyncio.create_task(asyncio.to_thread(_write, output, data))
            if len(data) < length or offset == size:
                break
        await writing
    except BaseException:
        if writing is not None and not writing.done():
            await asyncio.wait([writing])  # whoever closes `output` must not do it below a write
        raise
    if size is not None and offset < size:
        raise AgentError(f"{path}: it shrank while it was read: read it again")
    return ReadInfo(offset, info.mode, info.mtime_ns, info.file)


def _write(output: Writer, data: bytes) -> None:
    try:
        output.write(data)
    except OSError as error:
        name = getattr(output, "name", "the output")
        raise HostError(f"cannot write {name}: {error.strerror}", error.errno or 0) from error


async def _receive_piece(
    agent: AsyncAgent, values: dict[str, Any], limit_s: float, on_bytes: OnBytes
) -> tuple[bytes, ReadInfo]:
    call = await agent.call(protocol.FILE_READ, values, f"read {values['path']}", limit_s)
    with call:
        return await finish_read(call, values, limit_s, on_bytes)


async def finish_read(
    call: AsyncCall,
    values: dict[str, Any],
    limit_s: float,
    on_bytes: OnBytes = lambda count: None,
) -> tuple[bytes, ReadInfo]:
    """Wait for what a FILE_READ brings, and check it.

    Raises:
        ConnectionLost: it is to be asked for again.
    """
    path, length = values["path"], values["length"]
    parts: list[bytes] = []
    came = 0
    try:
        while events := await call.batch(limit_s):
            batch = [event.data for event in events if isinstance(event, Data)]
            count = sum(map(len, batch))
            parts += batch
            came += count
            if came > length:
                raise AgentError(f"{path}: the guest's agent sent more than was asked for")
            on_bytes(count)
        answer = await call.result()
    except AgentError as error:
        on_bytes(-came)
        if call.is_lost:
            raise ConnectionLost(error) from error
        raise
    data = b"".join(parts)
    checksum = await asyncio.to_thread(checksum_of, data) if came > _WRITE_BYTES else None
    if answer.get("checksum") != (checksum or checksum_of(data)):
        raise AgentError(f"{path}: what arrived has another checksum")
    return data, _read_info(answer)


def _read_info(answer: dict[str, Any]) -> ReadInfo:
    numbers = [answer.get(name, 0) for name in ReadInfo._fields]
    if not all(isinstance(number, int) for number in numbers):
        raise AgentError("the guest's agent described a file without sense")
    return ReadInfo(*numbers)


# To the guest.


async def send(
    session: Session,
    values: dict[str, Any],
    source: BinaryIO,
    *,
    limit_s: float,
    on_bytes: OnBytes = lambda count: None,
) -> int:
    """Copy `source` to a file of the guest, which gets its name when all is there; return its size.

    Args:
        values: of FILE_WRITE, without part and offset.
    Raises:
        RequestFailed, AgentError, SandboxTimeout, HostError.
    """
    counted = 0

    def count(number: int) -> None:
        nonlocal counted
        counted += number
        on_bytes(number)

    try:
        return await _send(session.agent, values, source, limit_s, count)
    except RequestFailed as error:
        # The guest forgot the beginning, or has the whole but its answer was lost.
        if error.code != protocol.GONE or not source.seekable():
            raise
        count(-counted)
        source.seek(0)
        return await _send(session.agent, values, source, limit_s, count)


async def _send(
    agent: AsyncAgent, values: dict[str, Any], source: BinaryIO, limit_s: float, on_bytes: OnBytes
) -> int:
    token = os.urandom(16).hex()
    offset = 0
    reading = _start_read(source, agent)
    try:
        while True:
            piece = await reading
            if not piece.is_last:
                if not offset:
                    await _require_parts(agent, limit_s)
                reading = _start_read(source, agent)
            end: dict[str, Any] = {"checksum": piece.checksum}
            request = values
            if offset or not piece.is_last:
                request = {**values, "part": token, "offset": offset}
                end["more"] = not piece.is_last
            size: int = await again(
                agent,
                partial(_send_piece, agent, request, piece.data, end, limit_s, on_bytes),
                limit_s,
            )
            offset += len(piece.data)
            if piece.is_last:
                return size
    except BaseException:
        if not reading.done():
            await asyncio.wait([reading])  # whoever closes `source` must not do it below a read
        if offset:
            await _give_up(agent, {**values, "part": token, "offset": offset})
        raise


async def _require_parts(agent: AsyncAgent, limit_s: float) -> None:
    if protocol.CAN_RESUME not in (await agent.link(limit_s)).capabilities:
        raise AgentError("the agent in the guest's image is older than voidbox: build it again")


class _Piece(NamedTuple):
    data: bytes
    checksum: bytes
    is_last: bool


def _start_read(source: BinaryIO, agent: AsyncAgent) -> asyncio.Task[_Piece]:
    return asyncio.create_task(asyncio.to_thread(_read, source, piece_bytes(agent)))


def _read(source: BinaryIO, size: int) -> _Piece:
    """Return the next piece; only the last one is shorter than asked for, perhaps empty."""
    parts: list[bytes] = []
    try:
        while size and (data := source.read(size)):
            parts.append(data)
            size -= len(data)
    except OSError as error:
        name = getattr(source, "name", "the source")
        raise HostError(f"cannot read {name}: {error.strerror}", error.errno or 0) from error
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    return _Piece(data, checksum_of(data), size > 0)


async def _send_piece(
    agent: AsyncAgent,
    values: dict[str, Any],
    data: bytes,
    end: dict[str, Any],
    limit_s: float,
    on_bytes: OnBytes,
) -> int:
    call = await agent.call(protocol.FILE_WRITE, values, f"write {values['path']}", limit_s)
    with call:
        sent = 0
        try:
            for start in range(0, len(data), _WRITE_BYTES):
                if call.is_over:
                    break
                part = data[start : start + _WRITE_BYTES]
                await call.write(part, limit_s)
                sent += len(part)
                on_bytes(len(part))
            call.end_input(end)
            return await finish_write(call, limit_s)
        except BaseException:
            on_bytes(-sent)
            raise


async def finish_write(call: AsyncCall, limit_s: float) -> int:
    """Wait for the end of a FILE_WRITE whose input has ended; return the file's size.

    Raises:
        ConnectionLost: it is to be sent again.
    """
    try:
        answer = await call.result(limit_s)
    except AgentError as error:
        if call.is_lost:
            raise ConnectionLost(error) from error
        raise
    size = answer.get("size")
    if not isinstance(size, int):
        raise AgentError("the guest's agent gave no size")
    return size


async def _give_up(agent: AsyncAgent, values: dict[str, Any]) -> None:
    """Have the guest forget what came of a file, if it can still be told."""
    try:
        call = await agent.call(protocol.FILE_WRITE, values, "give up a file", 1.0)
    except (AgentError, TimeoutError):
        return  # it forgets by itself after a while
    call.cancel()
