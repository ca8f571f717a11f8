"""A name server that answers 127.0.0.1 for every name, so that a domain has all of its names.

python -m tests.unit.serve.names
"""

from __future__ import annotations

import socket
import struct

_HEADER = struct.Struct("!6H")  # RFC 1035 §4.1.1: id, flags, and four counts
_A, _ANSWER_FLAGS = 1, 0x8180
_POINTER_TO_NAME, _IN, _TTL_S = 0xC00C, 1, 60


def answer(query: bytes) -> bytes:
    """Return the answer to a query of one question."""
    number = _HEADER.unpack_from(query)[0]
    end = query.index(b"\0", _HEADER.size) + 5
    question = query[_HEADER.size : end]
    is_known = struct.unpack("!H", question[-4:-2])[0] == _A
    head = _HEADER.pack(number, _ANSWER_FLAGS, 1, int(is_known), 0, 0)
    record = struct.pack("!HHHIH4s", _POINTER_TO_NAME, _A, _IN, _TTL_S, 4, b"\x7f\0\0\x01")
    return head + question + (record if is_known else b"")


def main() -> None:
    """Answer for ever."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 53))
        print("ready", flush=True)
        while True:
            query, client = sock.recvfrom(4096)
            sock.sendto(answer(query), client)


if __name__ == "__main__":
    main()
