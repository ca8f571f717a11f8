"""Holes of files stay holes on their way, and cost nothing; by the real SDK on the real agent."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.sandbox.conftest import Box, in_event_loop
from tests.unit.sdk.test_files import leftovers
from tests.unit.sdk.test_hostile import Liar, liar, target
from voidbox.agent import protocol
from voidbox.agent.call import RequestFailed
from voidbox.errors import AgentError, HostError
from voidbox.sandbox.transfer import pieces
from voidbox.sdk import files as files_module

__all__ = ["liar", "target"]

BLOCK = 64 << 10
TERABYTE = 1 << 40
LAYOUTS = {
    "at the beginning": ([(5 * BLOCK, BLOCK)], 0),
    "at the end": ([(0, BLOCK)], 7 * BLOCK),
    "between": ([(0, BLOCK), (3 * BLOCK, 40 * BLOCK), (BLOCK, 1)], 0),
    "nothing else": ([], 9 * BLOCK),
    "many": ([(BLOCK, BLOCK)] * 40, BLOCK),
    "a terabyte": ([(0, 10), (TERABYTE, BLOCK), (TERABYTE, 10)], TERABYTE),
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 16 * BLOCK)


def make(path: Path, layout: str) -> None:
    extents, rest = LAYOUTS[layout]
    with path.open("wb") as file:
        for hole, data in extents:
            file.seek(hole, os.SEEK_CUR)
            file.write(os.urandom(data))
        file.truncate(file.tell() + rest)


def describe(path: Path) -> tuple[int, list[tuple[int, int, str]]]:
    """Return a file's size, and where it has data: begin, end, checksum."""
    size, found, at = path.stat().st_size, [], 0
    with path.open("rb", 0) as file:
        while at < size:
            try:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            data = os.pread(file.fileno(), at - begin, begin)
            found.append((begin, at, hashlib.sha256(data).hexdigest()))
    return size, found


@pytest.mark.parametrize("layout", LAYOUTS)
@in_event_loop
async def test_both_ways(box: Box, guest: Path, tmp_path: Path, layout: str) -> None:
    source = tmp_path / "source"
    make(source, layout)
    there = []
    result = await box.files.upload(source, "f", progress=lambda *done: there.append(done))
    size = source.stat().st_size
    assert describe(guest / "f") == describe(source) and result.bytes == size
    assert there[-1] == (size, size)
    back = []
    result = await box.files.download("f", tmp_path / "g", progress=lambda *d: back.append(d))
    assert describe(tmp_path / "g") == describe(source) and result.bytes == size
    assert back[-1] == (size, size)
    with source.open("rb") as file:  # buffered: as users open files
        assert await box.files.write("h", file) == size
    assert describe(guest / "h") == describe(source)
    assert not leftovers(guest) and not leftovers(tmp_path)


@in_event_loop
async def test_in_a_folder(box: Box, guest: Path, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in LAYOUTS:
        make(tmp_path / "d" / name, name)
    await box.files.upload(tmp_path / "d", "d")
    await box.files.download("d", tmp_path / "e")
    for name in LAYOUTS:
        described = describe(tmp_path / "d" / name)
        assert describe(guest / "d" / name) == describe(tmp_path / "e" / name) == described


@in_event_loop
async def test_more_holes_than_a_piece_may_have(
    box: Box, guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "EXTENTS_MAX", 7)
    make(tmp_path / "source", "many")
    await box.files.upload(tmp_path / "source", "f")
    assert describe(guest / "f") == describe(tmp_path / "source")


@in_event_loop
async def test_an_older_agent_gets_and_sends_zeros(
    box: Box, guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "CAN_HOLES", "not yet")
    make(tmp_path / "source", "between")
    await box.files.upload(tmp_path / "source", "f")
    assert (guest / "f").read_bytes() == (tmp_path / "source").read_bytes()
    assert (guest / "f").stat().st_blocks > (tmp_path / "source").stat().st_blocks


@in_event_loop
async def test_a_file_that_is_read_into_memory_has_its_zeros(
    box: Box, guest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "READ_BYTES_MAX", 8 << 20)
    make(guest / "f", "many")
    assert await box.files.read("f", "bytes") == (guest / "f").read_bytes()
    assert await box.files.read_part("f", 10, BLOCK) == (guest / "f").read_bytes()[10:][:BLOCK]
    make(guest / "g", "a terabyte")
    with pytest.raises(AgentError, match="more than 8388608 bytes"):
        await box.files.read("g")


@in_event_loop
async def test_a_file_that_is_read_from_its_middle_on(
    box: Box, guest: Path, tmp_path: Path
) -> None:
    make(tmp_path / "source", "between")
    with (tmp_path / "source").open("rb") as file:
        file.seek(100)
        await box.files.write("f", file)
    assert (guest / "f").read_bytes() == (tmp_path / "source").read_bytes()[100:]


@pytest.mark.parametrize(
    "extents",
    [
        [[0, 3]],
        [[0, 5]],
        [[-1, 4]],
        [[0, 4], [0, -1]],
        [[True, 4]],
        [[0, 4, 0]],
        [4],
        "much",
        [[1 << 63, 4]],
        [[(1 << 63) - 1, 4]],
        [[1, 0]] * 5000,
    ],
)
@in_event_loop
async def test_extents_of_a_hostile_guest_are_refused(
    liar: tuple[Liar, Box], target: Path, extents: Any
) -> None:
    agent, box = liar
    agent.entry("f", size=100_000)
    agent.result = {"extents": extents, "end_size": 4, "end_mtime_ns": 0}
    with pytest.raises(AgentError, match="extents"):
        await box.files.download("d", target)
    assert not os.listdir(target)


@in_event_loop
async def test_a_hole_that_is_longer_than_the_file_is_refused(
    liar: tuple[Liar, Box], target: Path
) -> None:
    agent, box = liar
    agent.entry("f", size=100_000)
    agent.result = {"extents": [[TERABYTE, 4]], "end_size": 4, "end_mtime_ns": 0}
    with pytest.raises(AgentError, match="more than 1073741824 bytes"):
        await box.files.download("d", target)
    assert not os.listdir(target)


@in_event_loop
async def test_a_hole_that_no_file_system_has_room_for(
    liar: tuple[Liar, Box], target: Path
) -> None:
    agent, box = liar
    size = (1 << 62) + 4
    agent.entry("f", size=size)
    extents = [[1 << 62, 4]]
    agent.result = {"extents": extents, "size": size, "end_size": size, "end_mtime_ns": 0}
    try:
        await box.files.download("d", target)
    except HostError as error:
        assert "File too large" in str(error)
        assert not os.listdir(target)
    else:  # some have, and it costs them nothing
        assert (target / "f").stat().st_blocks < 1000


@pytest.mark.parametrize(
    ("extents", "code"),
    [
        ([[0, 3]], "bad-request"),
        ([[0, 5]], "bad-request"),
        ([[0, 4], [1, 1]], "bad-request"),
        ([[-1, 4]], "bad-request"),
        ([[0, 4, 1]], "bad-request"),
        ([[1, 1]] * 5000, "bad-request"),
        ([[(1 << 63) - 1, 4]], "EFBIG|EINVAL"),  # the latter on a tmpfs
        ([[(1 << 63) - 1, 0], [1, 4]], "EFBIG|EINVAL"),
    ],
)
@in_event_loop
async def test_the_agent_refuses_extents_without_sense(
    box: Box, guest: Path, extents: Any, code: str
) -> None:
    values = box.session.values(None, path=str(guest / "f"), extents=extents)
    call = await box.agent.call(protocol.FILE_WRITE, values, "write")
    await call.write(b"four")
    call.end_input({"checksum": hashlib.blake2b(b"four", digest_size=32).digest()})
    with pytest.raises(RequestFailed) as caught:
        await call.result(20)
    assert caught.value.code in code.split("|")
    assert await box.files.list() == []  # asked of the agent: it cleans up after its answer
