"""Every Ethernet frame of the captures that tcpdump is tested with, many found by fuzzing it."""

from __future__ import annotations

import struct
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.net.world import (
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    World,
    assert_served,
    repaired,
)

FETCH = Path(__file__).with_name("fetch_captures.sh")
_MAGICS = {b"\xd4\xc3\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">", b"\x4d\x3c\xb2\xa1": "<",
           b"\xa1\xb2\x3c\x4d": ">"}  # fmt: skip
_LINKTYPE_ETHERNET = 1


@pytest.fixture(scope="session")
def archive() -> Path:
    try:
        done = subprocess.run([FETCH], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(
            "fetching tcpdump's source took two minutes: run tests/unit/net/fetch_captures.sh"
        )
    if done.returncode:
        pytest.skip(f"no captures: {done.stderr.strip()}")
    return Path(done.stdout.strip())


def frames_of(data: bytes) -> Iterator[bytes]:
    """The frames of a classic capture file of Ethernet; none of another kind."""
    order = _MAGICS.get(data[:4])
    if order is None or len(data) < 24:
        return
    (linktype,) = struct.unpack_from(order + "I", data, 20)
    if linktype & 0xFFFF != _LINKTYPE_ETHERNET:
        return
    at = 24
    while at + 16 <= len(data):
        (size,) = struct.unpack_from(order + "I", data, at + 8)
        frame = data[at + 16 : at + 16 + size]
        at += 16 + size
        if 14 <= len(frame) <= 65549:
            yield frame


def from_the_guest(frame: bytes, has_guest_ip: bool) -> bytes:
    """The same frame with addresses that get it further into the stack."""
    frame = GATEWAY_MAC + GUEST_MAC + frame[12:]
    if has_guest_ip and len(frame) >= 34:
        frame = frame[:26] + struct.pack("!I", GUEST) + frame[30:]
    return repaired(frame)


def shortened(frame: bytes, size: int) -> bytes:
    """The frame cut off after `size` bytes, its IPv4 length and checksum as if that were all."""
    frame = from_the_guest(frame[:size], True)
    if len(frame) >= 34 and frame[12:14] == b"\x08\x00":
        frame = frame[:16] + struct.pack("!H", len(frame) - 14) + frame[18:]
    return repaired(frame)


def test_every_frame_of_tcpdumps_captures(archive: Path) -> None:
    count = 0
    world = World()
    world.rx.checks = False
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".pcap") else None
            if file is None:
                continue
            for frame in frames_of(file.read()):
                count += 1
                world.send(frame)
                world.send(from_the_guest(frame, False), cuts=(14, 34, 42, 60))
                world.send(from_the_guest(frame, True), needs_csum=True)
                for size in (14 + count % 30, 34 + count % 50):
                    world.send(shortened(frame, size), needs_csum=True, cuts=(14, 34))
                    world.send(shortened(frame, size))
            world.take()
            world.check()
            world.wait(0.5)
    assert count > 5000, f"only {count} frames"
    statistics = world.stack.statistics()
    assert statistics.frames_from_guest == 7 * count
    assert statistics.tcp_opened > 10 and world.host.opened > 100  # some got through
    assert_served(world)
    world.wait(8000)
    assert not world.flows and not world.host.streams and not world.host.datagrams
