"""The bits of an overlay, against a list of booleans."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from voidbox.block.bitmap import PAGE_BYTES, Bitmap

BITS = 3 * 8 * PAGE_BYTES
EDGES = st.sampled_from([0, 1, 7, 8, 9, 8 * PAGE_BYTES - 1, 8 * PAGE_BYTES, BITS - 1, BITS])
SPANS = st.tuples(EDGES | st.integers(0, BITS), st.integers(0, 200)).map(
    lambda span: (max(0, min(span[0], BITS - span[1])), span[1])
)


@settings(deadline=None)
@given(st.lists(SPANS, max_size=8), SPANS)
def test_it_is_a_list_of_booleans(sets: list[tuple[int, int]], look: tuple[int, int]) -> None:
    bitmap = Bitmap(bytearray(BITS // 8))
    model = set()
    for first, count in sets:
        if count:
            bitmap.set(first, first + count)
            model |= set(range(first, first + count))
    first, count = look
    end = first + count
    assert bitmap.are_set(first, end) == (set(range(first, end)) <= model)
    found = []
    at = first
    for is_set, run_end in bitmap.runs(first, end):
        assert run_end > at
        found += [is_set] * (run_end - at)
        at = run_end
    assert found == [idx in model for idx in range(first, end)]
    for idx in range(first, min(end, first + 20)):
        assert bitmap.is_set(idx) == (idx in model)
    pages = dict(bitmap.take_dirty())
    assert set(pages) == {idx // 8 // PAGE_BYTES * PAGE_BYTES for idx in model}
    bits = b"".join(pages.get(at, bytes(PAGE_BYTES)) for at in range(0, BITS // 8, PAGE_BYTES))
    assert int.from_bytes(bits, "little") == sum(1 << idx for idx in model)
    assert not bitmap.is_dirty
    bitmap.mark_dirty(pages)
    assert bitmap.take_dirty() == sorted(pages.items())
