from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from voidbox.buffers import Cursor, clip, first_bytes, skip, write_bytes


@given(st.lists(st.binary(max_size=20), max_size=6), st.integers(0, 130))
def test_buffers_are_their_concatenation(parts: list[bytes], count: int) -> None:
    buffers = [memoryview(part) for part in parts]
    data = b"".join(parts)
    assert b"".join(skip(buffers, count)) == data[count:]
    assert b"".join(clip(buffers, count)) == data[:count]
    assert first_bytes(buffers, count) == data[:count]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.data())
def test_writing_fills_the_first_bytes_alone(sizes: list[int], data: st.DataObject) -> None:
    buffers = [memoryview(bytearray(b"\xee" * size)) for size in sizes]
    new = data.draw(st.binary(max_size=sum(sizes)).filter(lambda new: 0xEE not in new))
    write_bytes(buffers, new)
    assert b"".join(buffers) == new + b"\xee" * (sum(sizes) - len(new))


@given(st.lists(st.binary(max_size=20), max_size=6), st.lists(st.integers(0, 30), max_size=9))
def test_a_cursor_takes_all_in_order(parts: list[bytes], counts: list[int]) -> None:
    cursor = Cursor([memoryview(part) for part in parts])
    data = b"".join(parts)
    for count in counts:
        assert b"".join(cursor.take(count)) == data[:count]
        data = data[count:]
