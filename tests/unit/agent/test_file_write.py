"""Files that come to the guest in several requests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.agent.conftest import USER
from tests.unit.agent.test_files import folder, leftovers
from voidbox.agent import protocol
from voidbox.agent.call import Call, RequestFailed
from voidbox.agent.client import AgentClient

__all__ = ["folder"]

Connect = Callable[[], AgentClient]


def begin(client: AgentClient, path: Path, data: bytes, **values: Any) -> Call:
    request = {"path": str(path), "user": USER, "part": "t" + path.name, **values}
    call = client.link.call(protocol.FILE_WRITE, request, "write")
    call.write(data)
    return call


def end(call: Call, data: bytes, **values: Any) -> int:
    call.end_input({"checksum": hashlib.blake2b(data, digest_size=32).digest(), **values})
    return int(call.result(20)["size"])


def write(client: AgentClient, path: Path, data: bytes, *, more: bool, **values: Any) -> int:
    return end(begin(client, path, data, **values), data, more=more)


def test_a_file_in_pieces(client: AgentClient, folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"old")
    assert write(client, path, b"one ", more=True, mode=0o640, mtime_ns=10**18) == 4
    assert write(client, path, b"two ", more=True, offset=4) == 8
    assert path.read_bytes() == b"old"
    assert write(client, path, b"three", more=False, offset=8) == 13
    assert path.read_bytes() == b"one two three" and not leftovers(folder)
    status = path.stat()
    assert (status.st_mode & 0o777, status.st_mtime_ns) == (0o640, 10**18)


def test_it_goes_on_after_the_client_was_gone(connect: Connect, folder: Path) -> None:
    path, client = folder / "f", connect()
    write(client, path, b"one ", more=True)
    begin(client, path, b"lost", offset=4)
    client.metrics()
    client.close()
    client = connect()
    assert write(client, path, b"two", more=False, offset=4) == 7
    assert path.read_bytes() == b"one two" and not leftovers(folder)


def test_a_piece_is_taken_over_from_a_client_that_is_gone_unnoticed(
    connect: Connect, folder: Path
) -> None:
    path, client, other = folder / "f", connect(), connect()
    write(client, path, b"one ", more=True)
    stale = begin(client, path, b"stale", offset=4)
    client.metrics()
    assert write(other, path, b"two", more=False, offset=4) == 7
    with pytest.raises(RequestFailed, match="goes on"):
        stale.result(20)
    assert path.read_bytes() == b"one two"


@pytest.mark.parametrize("offset", [1, 5, 1 << 40])
def test_what_has_not_come_cannot_be_gone_on_from(
    client: AgentClient, folder: Path, offset: int
) -> None:
    path = folder / "f"
    if offset > 1:
        write(client, path, b"four", more=True)
    with pytest.raises(RequestFailed) as caught:
        write(client, path, b"x", more=False, offset=offset)
    assert caught.value.code == protocol.GONE
    client.metrics()
    assert not path.exists() and not leftovers(folder)


def test_beginning_again_forgets_what_came(client: AgentClient, folder: Path) -> None:
    path = folder / "f"
    write(client, path, b"wrong", more=True)
    assert write(client, path, b"right", more=True) == 5
    assert len(leftovers(folder)) == 1
    write(client, path, b"", more=False, offset=5)
    assert path.read_bytes() == b"right" and not leftovers(folder)


def test_whoever_cancels_leaves_nothing(client: AgentClient, folder: Path) -> None:
    path = folder / "f"
    write(client, path, b"one ", more=True)
    begin(client, path, b"two", offset=4).cancel()
    client.metrics()
    assert not leftovers(folder)


def test_too_many_beginnings_are_forgotten(client: AgentClient, folder: Path) -> None:
    for number in range(protocol.PARTS_MAX + 1):
        write(client, folder / f"f{number}", b"x", more=True)
    assert len(leftovers(folder)) == protocol.PARTS_MAX
    with pytest.raises(RequestFailed):
        write(client, folder / "f0", b"", more=False, offset=1)
    for number in range(1, protocol.PARTS_MAX + 1):
        write(client, folder / f"f{number}", b"", more=False, offset=1)
    assert not leftovers(folder)


def test_links(client: AgentClient, folder: Path) -> None:
    def link(name: str, target: str) -> None:
        values = {"path": str(folder / name), "target": target, "user": USER}
        client.request(protocol.FILE_LINK, values, "link")

    link("l", "nowhere")
    link("l", "somewhere")
    assert os.readlink(folder / "l") == "somewhere"
    (folder / "d").mkdir()
    with pytest.raises(RequestFailed):
        link("d", "x")
    assert not leftovers(folder)
