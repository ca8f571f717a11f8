"""One file's way between host and guest, in pieces: each is checked, and sent again if need be.

A piece is held in memory until the other side has it and its checksum is right. So a transfer that
loses its connection connects again and goes on with the piece it was at; what is written on the
host has been checked.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO, Protocol, TypeVar

from voidbox.agent import protocol
from voidbox.agent.aio import AsyncAgent, AsyncCall
from voidbox.agent.call import RequestFailed
from voidbox.agent.core import Data, printable
from voidbox.errors import AgentError, HostError, SandboxTimeout
from voidbox.sandbox.session import Session
from voidbox.sandbox.transfer import threads
from voidbox.sandbox.transfer.again import again, lost_or
from voidbox.sandbox.transfer.extents import Holes, Piece, checked
from voidbox.sandbox.transfer.listing import numbers_of
from voidbox.sandbox.transfer.reading import SourcePiece, checksum_of, read_piece
from voidbox.sandbox.transfer.steady import Changed, ReadInfo

PIECE_BYTES, _SERIAL_PIECE_BYTES = 8 << 20, 64 << 10
_WRITE_BYTES = 256 << 10
_ENDLESS_BYTES_MAX = 1 << 30  # of a file that says it has none, as those of /proc do

T = TypeVar("T")

# Told of bytes that have got somewhere; of fewer than none when they must go again.
OnBytes = Callable[[int], None]


class Writer(Protocol):
    """What a file is copied to; it may also have skip(size), which leaves a hole."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Take all of it."""


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
            if hasattr(output, "skip"):
                request["holes"] = True
            attempt = partial(_receive_piece, agent, request, limit_s, on_bytes)
            piece, info = await again(agent, attempt, limit_s)
            is_short = len(piece.data) < length
            if piece.extents is not None:
                is_short = not piece.length or offset + piece.length >= info.end_size
            first = first or info
            has_size = first.size or info.end_size  # else it is empty, or one of the kernel's
            if has_size and not info.is_as(first):
                rest = piece.cut(max(first.size - offset, 0))
                is_whole = not is_short or offset + rest.length == first.size
                if not (takes_growth and is_whole and info.is_grown(first)):
                    raise Changed(path)
                on_bytes(rest.length - piece.length)
                piece = rest
            offset += piece.length
            limit = bytes_max or max(first.size, _ENDLESS_BYTES_MAX)
            if offset > limit:
                hint = ": use files.download()" if bytes_max else ""
                raise AgentError(f"{printable(path)}: more than {limit} bytes{hint}")
            if writing is not None:
                await threads.end(writing)
            writing = threads.start(_write, output, piece)
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
    return (await again(agent, attempt, limit_s))[0].data


def _write(output: Writer, piece: Piece) -> None:
    try:
        for hole, data in piece.parts():
            if hole:
                output.skip(hole)  # type: ignore[attr-defined]  # else there are none
            output.write(data)
    except OSError as error:
        name = printable(str(getattr(output, "name", "the output")))
        raise HostError(f"cannot write {name}: {error.strerror}", error.errno or 0) from error


async def _receive_piece(
    agent: AsyncAgent, values: dict[str, Any], limit_s: float, on_bytes: OnBytes
) -> tuple[Piece, ReadInfo]:
    call = await agent.call(protocol.FILE_READ, values, f"read {values['path']}", limit_s)
    with call:
        return await finish_read(call, values, limit_s, on_bytes)


async def finish_read(
    call: AsyncCall,
    values: dict[str, Any],
    limit_s: float,
    on_bytes: OnBytes = lambda count: None,
) -> tuple[Piece, ReadInfo]:
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
    piece = Piece(data, checked(answer.get("extents"), data, path))
    if piece.extents is not None and not values.get("holes"):
        raise AgentError(f"{path}: the guest's agent gave holes that nobody asked for")
    on_bytes(piece.hole_bytes)
    return piece, _read_info(answer)


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
    link = await agent.link(limit_s)
    holes = Holes.of(source) if protocol.CAN_HOLES in link.capabilities else None
    reading = _start_read(source, agent, holes)
    try:
        while True:
            piece, checksum, is_last = await asyncio.shield(reading)
            if not is_last:
                if not offset:
                    await _require_parts(agent, limit_s)
                reading = _start_read(source, agent, holes)
            end: dict[str, Any] = {"checksum": checksum}
            request = values
            if piece.extents is not None:
                request = {**values, "extents": piece.extents}
            if offset or not is_last:
                request = {**request, "part": token, "offset": offset}
                end["more"] = not is_last
            size: int = await again(
                agent,
                partial(_send_piece, agent, request, piece.data, end, limit_s, on_bytes),
                limit_s,
            )
            offset += piece.length
            on_bytes(piece.hole_bytes)
            if is_last:
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


def _start_read(
    source: BinaryIO, agent: AsyncAgent, holes: Holes | None
) -> asyncio.Future[SourcePiece]:
    return threads.start(read_piece, source, piece_bytes(agent), holes)


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
