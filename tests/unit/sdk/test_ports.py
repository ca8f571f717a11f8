"""Ports as programs see them: typed, and waited for. The guest is this machine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.sandbox.conftest import Box, in_event_loop
from voidbox.errors import AgentError, ConfigError, SandboxTimeout
from voidbox.sandbox.ports import Listeners, PublishedPort, parse_published
from voidbox.sdk.ports import AsyncPorts

# /proc/net/tcp and tcp6 of a guest: the header, then one line a socket.
TABLE = b"""\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0
   2: 0F02000A:1F91 0202000A:C350 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0
   3: 0F02000A:1F92 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1 0
"""
TABLE6 = b"""\
   0: 00000000000000000000000001000000:1F93 %s:0000 0A 00000000:00000000 00:00000000 00000000
   1: 00000000000000000000000000000000:1F94 %s:0000 0A 00000000:00000000 00:00000000 00000000
   2: 0000000000000000FFFF00000100007F:1F95 %s:0000 0A 00000000:00000000 00:00000000 00000000
""" % ((b"0" * 32,) * 3)


@pytest.mark.parametrize(
    ("port", "is_there", "is_reached"),
    [
        (0x1F90, True, False),  # loopback
        (80, True, True),
        (0x1F91, False, False),  # a connection, no listener
        (0x1F92, True, True),
        (0x1F93, True, False),  # ::1
        (0x1F94, True, True),
        (0x1F95, True, False),  # ::ffff:127.0.0.1
        (81, False, False),
    ],
)
def test_who_listens(port: int, is_there: bool, is_reached: bool) -> None:
    found = Listeners(port)
    found.take(TABLE)
    found.take(TABLE6)
    assert (found.is_there, found.is_reached) == (is_there, is_reached)


@pytest.mark.parametrize("table", [b"", b"\n\n", b"\xff" * 5000, TABLE[:-40], b"0: :1F90 0A"])
def test_a_table_that_makes_no_sense(table: bytes) -> None:
    found = Listeners(0x1F99)
    found.take(table)
    assert not found.is_there


def test_what_is_published_is_typed() -> None:
    port = parse_published("127.0.0.1:8080:80/tcp")
    assert port == PublishedPort("127.0.0.1", 8080, 80, "tcp")
    assert str(port) == "127.0.0.1:8080:80/tcp"
    assert parse_published("0.0.0.0:9000:53/udp").protocol == "udp"
    for wrong in (None, 7, "", "8080:80", "127.0.0.1:8080:80", "x:1:2/tcp"):
        with pytest.raises(AgentError, match="nothing of sense about its ports"):
            parse_published(wrong)


@pytest.fixture
def free_port() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def ports_of(box: Box, *published: str) -> AsyncPorts:
    async def control(op: str, *arguments: Any, **values: Any) -> dict[str, object]:
        assert op == "port_list"
        return {"forwards": list(published)}

    return AsyncPorts(control, box.session, box.files)


@in_event_loop
async def test_waiting_for_a_port(box: Box, free_port: int) -> None:
    ports = ports_of(box)
    waiting = asyncio.create_task(ports.wait_for(free_port, timeout=50))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.1", 0))  # another one
        port = server.getsockname()[1]
        server.listen()
        await ports.wait_for(port)
        # One that is published is to be reached.
        published = ports_of(box, f"127.0.0.1:9000:{port}/tcp")
        with pytest.raises(SandboxTimeout, match="loopback alone.*listen on 0.0.0.0, after 0.2 s"):
            await published.wait_for(port, 0.2)
        await ports_of(box, f"127.0.0.1:9000:{port}/udp").wait_for(port)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@in_event_loop
async def test_nobody_listens(box: Box, free_port: int) -> None:
    ports = ports_of(box)
    with pytest.raises(SandboxTimeout, match=f"nothing listens on port {free_port} of .*0.2 s"):
        await ports.wait_for(free_port, timeout=0.2)
    for wrong in (0, -1, 65536, "80", True, None):
        with pytest.raises(ConfigError, match="give a number from 1 to 65535"):
            await ports.wait_for(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="timeout"):
        await ports.wait_for(80, timeout=0)


@in_event_loop
async def test_listing(box: Box) -> None:
    assert await ports_of(box, "127.0.0.1:9000:80/tcp").list() == [
        PublishedPort("127.0.0.1", 9000, 80, "tcp")
    ]
    with pytest.raises(AgentError, match="nothing of sense"):
        await ports_of(box, "nonsense").list()
