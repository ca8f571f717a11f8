"""Puts values in the place of placeholders, in a request's headers, query and body."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from urllib.parse import quote_from_bytes

from voidbox.secrets.vault import Held

Headers = list[tuple[bytes, bytes]]

# What says where a message goes and where it ends is not for secrets.
_NEVER = frozenset({
    b"host", b"content-length", b"transfer-encoding", b"connection", b"te", b"trailer", b"upgrade",
    b"expect", b"keep-alive", b"proxy-connection", b"http2-settings",
})  # fmt: skip
_BASIC = b"basic "


def into_headers(headers: Headers, held: Sequence[Held]) -> Headers:
    """Return headers with values in them."""
    return [
        (name, value if name.lower() in _NEVER else _into_header(value, held))
        for name, value in headers
    ]


def _into_header(value: bytes, held: Sequence[Held]) -> bytes:
    plain = _basic(value)
    if plain is not None:
        filled = _replace(plain, held)
        return value if filled == plain else value[: len(_BASIC)] + base64.b64encode(filled)
    return _replace(value, held)


def into_query(target: bytes, held: Sequence[Held]) -> bytes:
    """Return a target with values in its query, written as queries have them."""
    path, mark, query = target.partition(b"?")
    for one in held:
        if one.placeholder in query:
            query = query.replace(one.placeholder, quote_from_bytes(one.value, safe="").encode())
    return path + mark + query


def into_body(body: bytes, content_type: bytes, held: Sequence[Held]) -> bytes:
    """Return a body with values in it, written as its type has them."""
    kind = content_type.partition(b";")[0].strip().lower()
    for one in held:
        if one.placeholder in body:
            value = one.value
            if kind == b"application/json" or kind.endswith(b"+json"):
                value = json.dumps(value.decode())[1:-1].encode()
            elif kind == b"application/x-www-form-urlencoded":
                value = quote_from_bytes(value, safe="").encode()
            body = body.replace(one.placeholder, value)
    return body


def _replace(text: bytes, held: Sequence[Held]) -> bytes:
    for one in held:
        if one.placeholder in text:
            text = text.replace(one.placeholder, one.value)
    return text


def found_in(target: bytes, headers: Headers, held: Sequence[Held]) -> set[str]:
    """Return the names of secrets whose placeholders a request has."""
    texts = [target]
    for _, value in headers:
        plain = _basic(value)
        texts += [value] if plain is None else [value, plain]
    return {one.name for one in held if any(one.placeholder in text for text in texts)}


def _basic(value: bytes) -> bytes | None:
    """Return what a header of HTTP's Basic authentication says (RFC 7617); None for another."""
    if value[: len(_BASIC)].lower() != _BASIC:
        return None
    try:
        return base64.b64decode(value[len(_BASIC) :].strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
