"""The parser of forms, fed whole, bytewise, in random pieces, and with what is no form."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox.serve.envd.multipart import (
    Begin,
    End,
    MultipartError,
    MultipartParser,
    boundary_of,
)

pytestmark = pytest.mark.slow

BOUNDARY = b"xYz"
HEAD = b'Content-Disposition: form-data; name="file"; filename="%b"\r\n\r\n'


def form(*files: tuple[bytes, bytes]) -> bytes:
    parts = [b"--xYz\r\n" + HEAD % name + data + b"\r\n" for name, data in files]
    return b"".join(parts) + b"--xYz--\r\n"


def parse(pieces: list[bytes]) -> tuple[list[tuple[str, bytes]], bool]:
    parser = MultipartParser(BOUNDARY)
    found: list[tuple[str, bytes]] = []
    is_open = False
    for piece in pieces:
        for event in parser.feed(piece):
            if isinstance(event, Begin):
                assert not is_open and event.name == "file"
                found.append((event.filename, b""))
            elif not isinstance(event, End):
                assert event
                found[-1] = found[-1][0], found[-1][1] + event
            is_open = not isinstance(event, End)
    return found, parser.is_over


CONTENT = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from([b"\r\n", b"--", b"xYz", b"\r\n--xY", b"-", b"\r"])).map(b"".join),
).filter(lambda data: b"\r\n--xYz" not in b"\r\n" + data)


@given(st.lists(CONTENT, max_size=4), st.data())
def test_what_goes_in_comes_out(contents: list[bytes], data: st.DataObject) -> None:
    body = form(*((b"f%d" % n, content) for n, content in enumerate(contents)))
    wanted = [(f"f{n}", content) for n, content in enumerate(contents)], True
    assert parse([body]) == wanted
    assert parse([body[i : i + 1] for i in range(len(body))]) == wanted
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    assert parse([body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]) == wanted


def test_before_the_first_and_after_the_last() -> None:
    body = b"preamble\r\n" + form((b"f", b"x")) + b"epilogue --xYz"
    assert parse([body]) == ([("f", b"x")], True)


def test_a_form_that_is_cut_off_is_not_over() -> None:
    body = form((b"f", b"x" * 100))
    for end in range(len(body) - 4):
        assert parse([body[:end]])[1] is False


@pytest.mark.parametrize(
    "body",
    [
        b"--xYzno\r\n",
        b"--xYz\r\nX: y\r\n\r\n",
        b"--xYz\r\n" + b"a" * 20_000,
        b"--xYz\r\n" + b"a" * 20_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_form(body: bytes) -> None:
    with pytest.raises(MultipartError):
        parse([body])


@given(st.binary(max_size=300))
def test_any_bytes_are_a_form_or_an_error(body: bytes) -> None:
    with contextlib.suppress(MultipartError):
        parse([body])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (b"a%22b", 'a"b'), (b'a\\"b', 'a"b'), ("ü".encode(), "ü"), (b"/etc/x y", "/etc/x y"),
        (b"", ""), (b"\xff", "\ufffd"),
    ],
)  # fmt: skip
def test_names(name: bytes, wanted: str) -> None:
    assert parse([form((name, b""))])[0] == [(wanted, b"")]


def test_names_in_other_encodings() -> None:
    head = b"Content-Disposition: form-data; name=\"file\"; filename*=UTF-8''%C3%BC\r\n\r\n"
    assert parse([b"--xYz\r\n" + head + b"\r\n--xYz--"])[0] == [("ü", b"")]


def test_boundaries() -> None:
    assert boundary_of('multipart/form-data; boundary="a b"') == b"a b"
    assert boundary_of("multipart/form-data; charset=x; boundary=ab-c") == b"ab-c"
    for wrong in ("", "multipart/form-data", "multipart/form-data; boundary="):
        with pytest.raises(MultipartError):
            boundary_of(wrong)
