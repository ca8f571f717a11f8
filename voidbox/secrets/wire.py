"""One end of a connection: a socket, and TLS on it or not. Never blocks.

Facts it relies on: an SSLObject over memory takes and gives whole buffers, where an SSLSocket would
read a record's header and its body by a system call each.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl

READ_BYTES = 64 << 10  # what stays in the processor's cache, though it is copied some times
RECORD_BYTES = 16 << 10
# What waits to be written; then nothing more is read from the other end.
PENDING_BYTES_MAX = 512 << 10


class Wire:
    """Thread: the connection's.

    Args:
        first: bytes that were read from the socket already.

    Attributes:
        has_ended: the far end writes no more.
    """

    def __init__(self, sock: socket.socket, first: bytes = b"") -> None:
        self.has_ended = False
        self._socket = sock
        self._first = first
        self._tls: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._queue = bytearray()
        self._is_shut = False
        sock.setblocking(False)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    @property
    def pending(self) -> int:
        """How many bytes wait to be written."""
        return len(self._queue)

    # TLS.

    def start_tls(self, context: ssl.SSLContext, server_name: str | None = None) -> None:
        """Speak TLS from here on: as a client with a server name, else as a server."""
        self._tls = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_name is None,
            server_hostname=server_name,
        )
        if self._first:
            self._incoming.write(self._first)
            self._first = b""

    def shake_hands(self) -> bool:
        """Go on with the handshake; whether it is over.

        Raises:
            ssl.SSLError: it failed. What the far end is to hear of it is queued.
            OSError: the connection is gone.
        """
        assert self._tls is not None
        while True:
            try:
                self._tls.do_handshake()
                return True
            except ssl.SSLWantReadError:
                self._collect()
                self.flush()
                if not self._fill():
                    if self.has_ended:
                        raise ssl.SSLEOFError("it hung up in the handshake") from None
                    return False
            finally:
                self._collect()

    def protocol(self) -> str:
        """Return what ALPN has chosen."""
        chosen = self._tls.selected_alpn_protocol() if self._tls is not None else None
        return chosen or "http/1.1"

    # Data.

    def read(self) -> bytes | None:
        """Return what has come; b"" for its end; None if there is nothing now.

        Raises:
            OSError: the connection is gone, or TLS has been broken.
        """
        if self._tls is None:
            if self._first:
                data, self._first = self._first, b""
                return data
            return self._receive()
        while True:
            data = self._decrypt(self._tls)
            if data:
                return data
            if self.has_ended:
                return b""
            # Many end without TLS's goodbye. What is missing then is known by HTTP.
            if not self._fill():
                return b"" if self.has_ended else None

    def _decrypt(self, tls: ssl.SSLObject) -> bytes:
        parts = []
        try:
            while part := tls.read(RECORD_BYTES):
                parts.append(part)
            self.has_ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.has_ended = True
        finally:
            self._collect()  # an answer to the far end, such as to a new key
        return b"".join(parts) if len(parts) != 1 else parts[0]

    def _fill(self) -> bool:
        data = self._receive()
        if data:
            self._incoming.write(data)
        return bool(data)

    def _receive(self) -> bytes | None:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return None
        if not data:
            self.has_ended = True
        return data

    def write(self, data: bytes) -> None:
        """Queue bytes, and write what can be written.

        Raises:
            OSError: the connection is gone.
        """
        if not data:
            return
        if self._tls is not None:
            self._tls.write(data)
            data = self._outgoing.read()
        if self._queue:
            self._queue += data
            self.flush()
        elif (done := self._send(data)) < len(data):
            self._queue += memoryview(data)[done:]

    def _collect(self) -> None:
        if self._outgoing.pending:
            self._queue += self._outgoing.read()

    def flush(self) -> None:
        """Write what can be written. Raises OSError: the connection is gone."""
        while self._queue:
            with memoryview(self._queue) as view:
                done = self._send(view)
            if not done:
                return
            del self._queue[:done]

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0

    # Waiting.

    def events(self, is_wanted: bool) -> int:
        """Return what to poll for; `is_wanted`: whether data of the far end is."""
        mask = select.POLLOUT if self._queue else 0
        if is_wanted and not self.has_ended:
            mask |= select.POLLIN
        return mask

    # The end.

    def finish(self) -> None:
        """Say that no more is written. Idempotent."""
        if self._is_shut:
            return
        with contextlib.suppress(ssl.SSLError, OSError):
            if self._tls is not None:
                with contextlib.suppress(ssl.SSLWantReadError):
                    self._tls.unwrap()
                self._collect()
            self.flush()
        if not self._queue:
            self._is_shut = True
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()
