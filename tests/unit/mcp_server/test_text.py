"""What a model is shown of a file."""

from __future__ import annotations

import re

import pytest

from voidbox.mcp_server.text import page

pytestmark = pytest.mark.slow

MORE = re.compile(r"\n\[(.*): read on with offset=(\d+)\]\Z")


@pytest.mark.parametrize("bytes_max", [4, 5, 6, 7, 100])
@pytest.mark.parametrize("text", ["", "x" * 100, "€" * 33, "aé€😀" * 9, "é\n[1: read on]\n" * 5])
def test_the_pages_together_are_the_file(text: str, bytes_max: int) -> None:
    data = text.encode()
    found, offset = "", 0
    for _ in range(len(data) + 1):
        part = data[offset : offset + bytes_max + 1]
        shown = page(part, offset, bytes_max, len(data))
        more = MORE.search(shown)
        if more is None:
            assert found + shown == text
            return
        found += shown[: more.start()]
        offset = int(more[2])
        assert more[1] == f"{len(data) - offset} more bytes"
    pytest.fail("it has no end")


def test_bytes_that_are_no_text_do_not_stop_it() -> None:
    shown = page(b"\xff" * 9 + b"\xe2", 0, 9, 10)
    assert shown == "�" * 9 + "\n[1 more bytes: read on with offset=9]"
    assert page(b"\xe2\x82", 0, 9, 2) == "�"


def test_a_file_that_says_it_has_no_size() -> None:
    assert page(b"abcdef", 0, 5, 0) == "abcde\n[there is more: read on with offset=5]"
    with pytest.raises(ValueError, match="nothing at 9"):
        page(b"", 9, 5, 0)
