"""What was asked of guarded hosts: a line of JSON a request, without bodies, queries or headers."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time

FILE = "http.log"
BYTES_MAX = 32 << 20  # then it is set aside as http.log.1
_PATH_BYTES_MAX = 1024
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


class Entry:
    """One request, or a connection that came to none. Thread: the connection's.

    Attributes:
        status: what the guest was answered; 0 if nothing.
        sent, received: bytes of bodies, from the guest and to it.
        refused: why it did not pass; "" if it did.
        secrets: the names of those that were put in.
        leaks: the names of those whose placeholders were on the way to somebody else.
        error: what broke it off.
    """

    def __init__(self, host: str, method: bytes = b"", path: bytes = b"") -> None:
        self._start_s, self._began = time.time(), time.monotonic()
        self.host = host
        self.method = method
        self.path = path
        self.status = 0
        self.sent = self.received = 0
        self.refused = self.error = ""
        self.secrets: list[str] = []
        self.leaks: list[str] = []

    def to_json(self, sandbox: str) -> dict[str, object]:
        """Return what is written of it."""
        values: dict[str, object] = {
            "time": round(self._start_s, 3),
            "sandbox": sandbox,
            "host": self.host,
            "method": self.method[:32].decode("latin-1"),
            "path": self.path[:_PATH_BYTES_MAX].decode("latin-1"),
            "status": self.status,
            "bytes_sent": self.sent,
            "bytes_received": self.received,
            "seconds": round(time.monotonic() - self._began, 3),
        }
        for key in ("refused", "error", "secrets", "leaks"):
            if value := getattr(self, key):
                values[key] = value
        return values


class AuditLog:
    """Thread: any.

    Args:
        folder: the sandbox's; None writes nothing.
    """

    def __init__(self, folder: str | None, sandbox: str) -> None:
        self._path = f"{folder}/{FILE}" if folder is not None else None
        self._sandbox = sandbox
        self._lock = threading.Lock()

    def add(self, entry: Entry) -> None:
        """Write a line. What a full disk does not take is lost."""
        if self._path is None:
            return
        line = json.dumps(entry.to_json(self._sandbox)).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):
            fd = os.open(self._path, _FLAGS, 0o600)
            try:
                os.write(fd, line)
                is_long = os.fstat(fd).st_size > BYTES_MAX
            finally:
                os.close(fd)
            if is_long:
                os.replace(self._path, f"{self._path}.1")
