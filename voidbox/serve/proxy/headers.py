"""Which headers a proxy passes on."""

from __future__ import annotations

from collections.abc import Iterable

from voidbox.serve.served import Served

Headers = list[tuple[bytes, bytes]]

TRAFFIC_TOKEN = b"e2b-traffic-access-token"
# RFC 9110 §7.6.1, and what is between the client and us.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer"
    b" transfer-encoding upgrade".split()
)
_OURS = frozenset((TRAFFIC_TOKEN, b"x-api-key", b"expect"))


def passed_on(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the headers that go on to the other side."""
    found = [(name.lower(), value) for name, value in headers]
    named = {
        word.strip().lower()
        for name, value in found
        if name == b"connection"
        for word in value.split(b",")
    }
    return [
        (name, value)
        for name, value in found
        if name not in _HOP_BY_HOP and name not in _OURS and name not in named
    ]


def masked(headers: Headers, served: Served, port: int) -> Headers:
    """Return the headers with the Host that the sandbox's owner wants its servers to see."""
    mask = str(served.mark.network.get("maskRequestHost") or "")
    if not mask:
        return headers
    host = mask.replace("${PORT}", str(port)).encode("latin-1", "replace")
    return [(b"host", host), *((name, value) for name, value in headers if name != b"host")]


def value_of(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> str:
    """Return a header; "" if there is none."""
    return next((v.decode("latin-1") for name, v in headers if name.lower() == wanted), "")
