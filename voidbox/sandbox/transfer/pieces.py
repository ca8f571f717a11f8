"""One file's way between host and guest, in pieces: each is checked, and sent again if need be.

A piece is held in memory until the other side has it and its checksum is right. So a transfer that
loses its connection connects again and goes on with the piece it was at; what is written on the
host has been checked.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeVar

from voidbox.agent import protocol
from voidbox.agent.aio import AsyncAgent, AsyncCall
from voidbox.agent.call import RequestFailed
from voidbox.agent.core import Data, printable
from voidbox.errors import AgentError, ConfigError, HostError, SandboxTimeout
from voidbox.sandbox.session import Session
from voidbox.sandbox.transfer import threads
from voidbox.sandbox.transfer.again import again, lost_or
from voidbox.sandbox.transfer.listing import numbers_of
from voidbox.sandbox.transfer.steady import Changed, ReadInfo

PIECE_BYTES, _SERIAL_PIECE_BYTES = 8 << 20, 64 << 10
_WRITE_BYTES = 256 << 10
_ENDLESS_BYTES_MAX = 1 << 30  # of a file that says it has none, as those of /proc do

T = TypeVar("T")

# Told of bytes that have got somewhere; of fewer than none when they must go again.
OnBytes = Callable[[int], None]


class Writer(Protocol):
    """What a file is copied to."""

    def write(self, data: bytes, /) -> object:
        """Take all of it."""


def checksum_of(data: bytes) -> bytes:
    """Return the checksum that goes with a piece."""
    return hashlib.blake2b(data, digest_size=protocol.CHECKSUM_BYTES).digest()


def piece_bytes(agent: AsyncAgent) -> int:
    """Return how long pieces should be now."""
    return PIECE_BYTES if agent.carrier == "vsock" else _SERIAL_PIECE_BYTES


# From the guest.


async def receive(
    session: Session,
    values: dict[str, Any],
    output: Writer,
    *,
    limit_s: float,
    bytes_max: int | None = None,
    on_bytes: OnBytes = lambda count: None,
    takes_growth: bool = False,
) -> ReadInfo:
    """Copy a file of the guest to `output`, all of it; see steady().

    Args:
        values: of FILE_READ, without offset and length.
        bytes_max: more than this is an error.
    Raises:
        Changed: to be read again, from the beginning.
        RequestFailed, AgentError, SandboxTimeout, HostError.
    """
    counted = 0

    def count(number: int) -> None:
        nonlocal counted
        counted += number
        on_bytes(number)

    try:
        return await _receive(
            session.agent, values, output, limit_s, bytes_max, count, takes_growth
        )
    except Changed:
        on_bytes(-counted)
        raise


async def _receive(
    agent: AsyncAgent,
    values: dict[str, Any],
    output: Writer,
    limit_s: float,
    bytes_max: int | None,
    on_bytes: OnBytes,
    takes_growth: bool,
) -> ReadInfo:
    path = values["path"]
    offset, first = 0, None
    writing: asyncio.Future[None] | None = None
    try:
        while True:
            length = piece_bytes(agent)
            request = {**values, "offset": offset, "length": length}
            attempt = partial(_receive_piece, agent, request, limit_s, on_bytes)
            data, info = await again(agent, attempt, limit_s)
            is_short = len(data) < length
            first = first or info
            has_size = first.size or info.end_size  # else it is empty, or one of the kernel's
            if has_size and not info.is_as(first):
                rest = data[: max(first.size - offset, 0)]
                is_whole = not is_short or offset + len(rest) == first.size
                if not (takes_growth and is_whole and info.is_grown(first)):
                    raise Changed(path)
                on_bytes(len(rest) - len(data))
                data = rest
            offset += len(data)
            limit = bytes_max or max(first.size, _ENDLESS_BYTES_MAX)
            if offset > limit:
                hint = ": use files.download()" if bytes_max else ""
                raise AgentError(f"{printable(path)}: more than {limit} bytes{hint}")
            if writing is not None:
                await threads.end(writing)
            writing = threads.start(_write, output, data)
            if is_short or offset == first.size:
                break
        await threads.end(writing)
    finally:
        if writing is not None:
            await threads.settle(writing)  # whoever closes `output` must not do it below a write
    return first


async def receive_part(agent: AsyncAgent, values: dict[str, Any], limit_s: float) -> bytes:
    """Return a part of a file of the guest.

    Args:
        values: of FILE_READ.
    Raises:
        RequestFailed, AgentError, SandboxTimeout.
    """
    attempt = partial(_receive_piece, agent, values, limit_s, lambda count: None)
    return (await again(agent, attempt, limit_s))[0]


def _write(output: Writer, data: bytes) -> None:
    try:
        output.write(data)
    except OSError as error:
        name = printable(str(getattr(output, "name", "the output")))
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
    path, length = printable(values["path"]), values["length"]
    parts: list[bytes] = []
    came = 0
    try:
        while events := await call.batch(limit_s):
            batch = [event.data for event in events if isinstance(event, Data)]
            count = sum(map(len, batch))
            parts += filter(None, batch)
            came += count
            if came > length:
                raise AgentError(f"{path}: the guest's agent sent more than was asked for")
            on_bytes(count)
        answer = await call.result()
    except AgentError as error:
        on_bytes(-came)
        raise lost_or(call, named(error, path)) from error
    data = b"".join(parts)
    checksum = await asyncio.to_thread(checksum_of, data) if came > _WRITE_BYTES else None
    if answer.get("checksum") != (checksum or checksum_of(data)):
        raise AgentError(f"{path}: what arrived has another checksum")
    return data, _read_info(answer)


def named(error: AgentError, path: str) -> AgentError:
    """Return a request's error, which says what file it is about."""
    path = printable(path)
    if not isinstance(error, RequestFailed) or path in str(error):
        return error
    return RequestFailed(error.code, f"{path}: {error}")


def _read_info(answer: dict[str, Any]) -> ReadInfo:
    size, mode, mtime_ns, file = numbers_of(answer, *ReadInfo._fields[:4])
    if "end_size" not in answer:  # by an agent that is older than we are
        return ReadInfo(size, mode, mtime_ns, file, size, mtime_ns)
    return ReadInfo(size, mode, mtime_ns, file, *numbers_of(answer, *ReadInfo._fields[4:]))


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
    begin = source.tell() if _is_seekable(source) else None

    def count(number: int) -> None:
        nonlocal counted
        counted += number
        on_bytes(number)

    try:
        return await _send(session.agent, values, source, limit_s, count)
    except RequestFailed as error:
        # The guest forgot the beginning, or has the whole but its answer was lost.
        if error.code != protocol.GONE or begin is None:
            raise
        count(-counted)
        source.seek(begin)
        return await _send(session.agent, values, source, limit_s, count)


def _is_seekable(source: BinaryIO) -> bool:
    try:
        return source.seekable()
    except AttributeError:  # it has a read() and no more
        return False


async def _send(
    agent: AsyncAgent, values: dict[str, Any], source: BinaryIO, limit_s: float, on_bytes: OnBytes
) -> int:
    token = os.urandom(16).hex()
    offset = 0
    reading = _start_read(source, agent)
    try:
        while True:
            piece = await asyncio.shield(reading)
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
            # Not to be settled: a pipe may never end.
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


def _start_read(source: BinaryIO, agent: AsyncAgent) -> asyncio.Future[_Piece]:
    return threads.start(_read, source, piece_bytes(agent))


def _read(source: BinaryIO, size: int) -> _Piece:
    """Return the next piece; only the last one is shorter than asked for, perhaps empty."""
    parts: list[bytes] = []
    name = printable(str(getattr(source, "name", "the source")))
    try:
        while size and (data := source.read(size)) != b"":
            if not isinstance(data, bytes):
                why = (
                    "it has nothing yet and does not wait" if data is None else "it gives no bytes"
                )
                raise ConfigError(
                    f"cannot read {name}: {why}: open it for blocking, binary reading"
                )
            parts.append(data)
            size -= len(data)
    except OSError as error:
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
            return await finish_write(call, values["path"], limit_s)
        except BaseException:
            on_bytes(-sent)
            raise


async def finish_write(call: AsyncCall, path: str, limit_s: float) -> int:
    """Wait for the end of a FILE_WRITE whose input has ended; return the file's size.

    Raises:
        ConnectionLost: it is to be sent again.
    """
    try:
        answer = await call.result(limit_s)
    except AgentError as error:
        raise lost_or(call, named(error, path)) from error
    size = answer.get("size")
    if not isinstance(size, int):
        raise AgentError("the guest's agent gave no size")
    return size


async def _give_up(agent: AsyncAgent, values: dict[str, Any]) -> None:
    """Have the guest forget what came of a file, if it can still be told."""
    try:
        call = await agent.call(protocol.FILE_WRITE, values, "give up a file", 1.0)
        call.cancel()
        await call.result(1.0)
    except (AgentError, SandboxTimeout):
        pass  # it is given up, or the guest forgets it by itself after a while
