"""machine.bin: what is not whole, ours and of this version is refused before it is decoded."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Annotated, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox.agent.packing import pack
from voidbox.errors import ConfigError, HostError
from voidbox.snapshot import format as machine_bin
from voidbox.snapshot.plain import from_plain, to_plain

VALUES = {"a": 1, "b": [b"x" * 300, None], "c": {"d": True}}


def test_what_was_encoded_is_decoded() -> None:
    assert machine_bin.decode(machine_bin.encode(VALUES), "x") == VALUES


@given(st.data())
def test_a_flipped_bit_is_found(data: st.DataObject) -> None:
    whole = bytearray(machine_bin.encode(VALUES))
    at = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[at // 8] ^= 1 << at % 8
    with pytest.raises(ConfigError) as caught:
        machine_bin.decode(bytes(whole), "snapshot x")
    assert "\n" not in str(caught.value)


def test_every_shorter_file_is_refused() -> None:
    whole = machine_bin.encode(VALUES)
    for length in range(len(whole)):
        with pytest.raises(ConfigError, match="cut short|no snapshot"):
            machine_bin.decode(whole[:length], "x")
    with pytest.raises(ConfigError, match="cut short|bytes of"):
        machine_bin.decode(whole + b"\0", "x")


def test_a_newer_version_is_called_newer_before_anything_is_decoded() -> None:
    newer = bytearray(machine_bin.encode(VALUES))
    newer[8:12] = struct.pack("<I", machine_bin.VERSION + 1)
    with pytest.raises(ConfigError, match="newer voidbox"):
        machine_bin.decode(bytes(newer[:60]), "x")


def test_a_right_checksum_over_what_is_no_machine() -> None:
    def sealed(payload: bytes) -> bytes:
        header = struct.pack(
            "<8sIQ32s",
            machine_bin.MAGIC,
            machine_bin.VERSION,
            len(payload),
            machine_bin._digest(payload),
        )
        return header + payload

    for payload in (b"", b"\xc1", pack([1]), b"\xdf\xff\xff\xff\xff", b"\x91" * 100):
        with pytest.raises(ConfigError, match="damaged"):
            machine_bin.decode(sealed(payload), "x")


def test_only_own_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / machine_bin.NAME
    path.write_bytes(machine_bin.encode(VALUES))
    path.chmod(0o400)
    assert machine_bin.read(str(tmp_path)) == VALUES
    path.chmod(0o622)
    with pytest.raises(ConfigError, match="others may write"):
        machine_bin.read(str(tmp_path))
    path.chmod(0o600)
    path.rename(tmp_path / "real")
    path.symlink_to("real")
    with pytest.raises(ConfigError):
        machine_bin.read(str(tmp_path))
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="no file"):
        machine_bin.read(str(tmp_path))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to own a file as somebody else")
def test_another_users_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / machine_bin.NAME
    path.write_bytes(machine_bin.encode(VALUES))
    os.chown(path, 12345, 12345)
    with pytest.raises(ConfigError, match="another user"):
        machine_bin.read(str(tmp_path))


def test_a_disk_that_does_not_give_it_is_told() -> None:
    with pytest.raises(HostError, match="cannot read /proc/self/mem: Input/output error"):
        machine_bin.read_file("/proc/self/mem")


class Inner(NamedTuple):
    data: bytes
    pair: tuple[int, str]


class Outer(NamedTuple):
    number: int
    flag: bool
    maybe: Inner | None
    many: tuple[Inner, ...]
    register: Annotated[int, 32] = 0


OUTER = Outer(1, True, None, (Inner(b"x", (1, "y")), Inner(b"", (2, ""))))


def test_named_tuples_come_back() -> None:
    largest = OUTER._replace(number=(1 << 64) - 1, register=(1 << 32) - 1)
    for outer in (OUTER, largest, OUTER._replace(maybe=Inner(b"z", (0, "a")), many=())):
        assert from_plain(Outer, to_plain(outer)) == outer


@pytest.mark.parametrize(
    "change",
    [
        {"number": True},
        {"number": -1},
        {"register": 1 << 32},
        {"register": "0"},
        {"number": 1.0},
        {"number": None},
        {"flag": 1},
        {"maybe": []},
        {"maybe": {"data": b"x"}},
        {"many": [{"data": b"x", "pair": [1]}]},
        {"many": [{"data": "x", "pair": [1, "y"]}]},
        {"many": {}},
        {"extra": 1},
    ],
)
def test_other_types_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="make it anew"):
        from_plain(Outer, {**to_plain(OUTER), **change})
    values = to_plain(OUTER)
    del values["flag"]
    with pytest.raises(ConfigError):
        from_plain(Outer, values)
