"""Whom a guest's TLS connection is for, read by OpenSSL from the beginning of it. Sans I/O."""

from __future__ import annotations

import ssl
import threading

from voidbox.named_tuple import NamedTuple

HELLO_BYTES_MAX = 64 << 10


class Hello(NamedTuple):
    """What a connection begins with.

    Attributes:
        server_name: SNI, folded; None where there is none, or it is no TLS.
        takes_http2: it offers HTTP/2 by ALPN.
        is_tls: whether it is TLS at all.
    """

    server_name: str | None = None
    takes_http2: bool = False
    is_tls: bool = True


NO_TLS = Hello(is_tls=False)


class HelloReader:
    """Thread: any; one at a time.

    Args:
        context: a server's, which would take HTTP/2 first. Nothing else uses it.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._names: list[str | None] = []
        context.sni_callback = self._note

    def _note(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        self._names.append(name)

    def read(self, data: bytes) -> Hello | None:
        """Return what a connection's first bytes say; None if there have to be more of them.

        Nothing of what OpenSSL would answer is used: this only reads.
        """
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        incoming.write(data)
        with self._lock:
            self._names.clear()
            reader = self._context.wrap_bio(incoming, outgoing, server_side=True)
            try:
                reader.do_handshake()
            except ssl.SSLWantReadError:
                if not self._names:
                    return None if len(data) < HELLO_BYTES_MAX else NO_TLS
            except (ssl.SSLError, ValueError):
                if not self._names:
                    return NO_TLS
            name = self._names[0]
        folded = name.lower().rstrip(".") if name else None
        return Hello(folded, reader.selected_alpn_protocol() == "h2")
