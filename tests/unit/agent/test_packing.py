"""MessagePack: round trips, the msgpack package as a second opinion, and hostile bytes."""

from __future__ import annotations

import os
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voidbox.agent.packing import DEPTH_MAX, PackingError, pack, unpack

INTEGERS = st.integers(-(1 << 63), (1 << 64) - 1)
# What a file name may be: any bytes, those that are no UTF-8 as surrogate escapes.
NAMES = st.binary(max_size=20).map(os.fsdecode) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=20
)


def values(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[str]) -> Any:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=6) | st.dictionaries(keys, inner, max_size=6),
        max_leaves=12,
    )


SCALARS = st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False) | st.binary(max_size=20)
VALUES = values(SCALARS | NAMES, NAMES)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PORTABLE_VALUES = values(SCALARS | TEXT, TEXT)


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth, inner), default=0) if isinstance(value, (dict, list)) else 0


@settings(max_examples=50)
@given(VALUES.filter(lambda value: depth(value) <= DEPTH_MAX))
def test_round_trip(value: Any) -> None:
    back = unpack(pack(value))
    assert back == value and repr(back) == repr(value)  # 1, 1.0 and True are equal


@settings(max_examples=50)
@given(PORTABLE_VALUES)
def test_what_is_packed_here_msgpack_reads(value: Any) -> None:
    assert repr(msgpack.unpackb(pack(value))) == repr(value)


@settings(max_examples=50)
@given(PORTABLE_VALUES.filter(lambda value: depth(value) <= DEPTH_MAX))
def test_what_msgpack_packs_is_read_here(value: Any) -> None:
    assert repr(unpack(msgpack.packb(value))) == repr(value)


@pytest.mark.parametrize("number", [0, 1, -1, 0.5, float("inf"), 2.0**-126])
def test_single_precision_is_read(number: float) -> None:
    assert unpack(msgpack.packb(float(number), use_single_float=True)) == number


@pytest.mark.parametrize("size", [0, 15, 16, 31, 32, 255, 256, 65535, 65536, 70000])
@pytest.mark.parametrize("kind", [str, bytes, list, dict])
def test_every_width_of_a_length(size: int, kind: type) -> None:
    value: Any = {
        str: "x" * size,
        bytes: bytes(size),
        list: [1] * size,
        dict: dict.fromkeys(map(str, range(size)), 1),
    }[kind]
    assert unpack(pack(value)) == msgpack.unpackb(pack(value)) == value
    assert unpack(msgpack.packb(value)) == value


def test_values_of_other_kinds_that_are_as_good() -> None:
    assert unpack(pack((1, [bytearray(b"a"), memoryview(b"b")]))) == [1, [b"a", b"b"]]
    assert unpack(pack(memoryview(struct.pack("2I", 1, 2)).cast("I"))) == struct.pack("2I", 1, 2)


@settings(max_examples=50)
@given(VALUES.filter(lambda value: depth(value) <= DEPTH_MAX), st.data())
def test_every_cut_is_an_error(value: Any, data: st.DataObject) -> None:
    packed = pack(value)
    end = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(PackingError):
        unpack(packed[:end])


@settings(max_examples=50)
@given(VALUES.filter(lambda value: depth(value) <= DEPTH_MAX), st.binary(min_size=1, max_size=9))
def test_trailing_bytes_are_an_error(value: Any, rest: bytes) -> None:
    with pytest.raises(PackingError, match="bytes too many"):
        unpack(pack(value) + rest)


@given(st.binary(max_size=200))
def test_random_bytes_are_a_value_or_an_error(data: bytes) -> None:
    try:
        value = unpack(data)
    except PackingError:
        return
    assert repr(unpack(pack(value))) == repr(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",  # never used
        b"\xc7\x01\x05x",  # ext 8
        b"\xd4\x05x",  # fixext 1
        b"\x91" * 100_000 + b"\xc0",  # a tower of lists
        b"\x81\xa1a" * 100_000 + b"\xc0",  # and one of maps
        b"\xdd\xff\xff\xff\xff",  # 4 billion items announced, none there
        b"\xdd\xff\xff\xff\xff" * 5,
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff" + bytes(100),
        b"\xdb\xff\xff\xff\xff" + bytes(100),
        b"\x81\x01\x01",  # a key that is a number
        b"\x81\x90\x01",  # a key that cannot be hashed
        b"\x82\xa1a\x01\xa1a\x02",  # the same key twice
    ],
)
def test_hostile_bytes(data: bytes) -> None:
    with pytest.raises(PackingError):
        unpack(data)


def test_an_error_stays_short_whatever_it_is_about() -> None:
    key = b"\xdb\x00\x08\x00\x00" + b"k" * 0x80000
    with pytest.raises(PackingError) as error:
        unpack(b"\x82" + (key + b"\x01") * 2)
    assert len(str(error.value)) < 200


def test_depth_is_the_same_for_lists_and_maps() -> None:
    value: Any = 1
    for _ in range(DEPTH_MAX // 2):
        value = {"a": [value]}
    assert unpack(pack(value)) == value
    with pytest.raises(PackingError, match="deep"):
        unpack(pack([value]))


@pytest.mark.parametrize("number", [1 << 64, -(1 << 63) - 1, 1 << 1000])
def test_integers_beyond_64_bits_are_refused(number: int) -> None:
    with pytest.raises(OverflowError):
        pack(number)


@pytest.mark.parametrize("value", [object(), {1: 2}, {b"a": 1}, 1j, {"a": {1, 2}}])
def test_kinds_that_the_protocol_does_not_carry(value: Any) -> None:
    with pytest.raises(TypeError):
        pack(value)


def test_surrogates_that_stand_for_no_byte_are_refused() -> None:
    assert unpack(pack("\udc80\udcff")) == "\udc80\udcff"
    assert pack("\udcff") == b"\xa1\xff"
    for text in ("\ud800", "\udc7f", "\udfff"):
        with pytest.raises(ValueError):
            pack(text)
    # The three bytes that would be a surrogate's, were they allowed, stay three bytes.
    assert unpack(b"\xa3\xed\xb2\x80").encode("utf-8", "surrogateescape") == b"\xed\xb2\x80"
