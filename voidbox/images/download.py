"""One file on its way from a server into a file of ours, checked while it comes.

It is gone on from where an earlier attempt, or process, has stopped.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable

from voidbox.images.flock import OwnedFile
from voidbox.images.transport import Answer, Lost, RegistryError

ATTEMPTS = 5
_CHUNK_BYTES = 1 << 20
_PROGRESS_BYTES_MIN = 1 << 20  # what makes an attempt worth another
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-[0-9]{1,19}/(?:[0-9]{1,19}|\*)")

OnBytes = Callable[[int], object]
OpenFrom = Callable[[int], tuple[Answer, int]]
Wait = Callable[[int, Lost], object]


def range_from(offset: int) -> dict[str, str]:
    """Return the headers that ask for what comes after an offset."""
    return {"Range": f"bytes={offset}-"} if offset else {}


def check_range(answer: Answer, offset: int) -> None:
    """Raises Lost if a 206 answer begins elsewhere."""
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    if match is None or int(match[1]) != offset:
        raise Lost(f"{answer.host} sends another range than it was asked for")


class Download:
    """A file that is to have a size and a digest.

    Args:
        file: ours to write; what it has already is the beginning.
        what: the file is, for messages.
        sha256: in hexadecimal digits.
        on_bytes: told how much more there is; less than 0 takes some back.
    """

    def __init__(
        self, file: OwnedFile, what: str, size_bytes: int, sha256: str, on_bytes: OnBytes
    ) -> None:
        self._file = file
        self._what = what
        self._size_bytes = size_bytes
        self._sha256 = sha256
        self._on_bytes = on_bytes
        self._hash = hashlib.sha256()
        self._count = 0

    def run(self, server: str, open_from: OpenFrom, wait: Wait) -> None:
        """Have the file be what it should.

        Args:
            server: its name, for messages.
            open_from: asks for what comes after an offset; returns an answer, and the offset at
                which it begins.
            wait: called with the number of failures and the last one; raises that for no more.
        Raises:
            RegistryError: the server fails or lies.
            OSError: writing failed. Either way, what the file has stays if it helps.
        """
        kept = self._read_kept()
        self._complete(server, open_from, wait)
        if self._hash.hexdigest() != self._sha256 and kept:
            self._truncate()  # perhaps what was kept is to blame
            self._complete(server, open_from, wait)
        if self._hash.hexdigest() != self._sha256:
            self._refuse(server, f"is sha256:{self._hash.hexdigest()}")

    def _complete(self, server: str, open_from: OpenFrom, wait: Wait) -> None:
        """Read on until all is there, over as many connections as it takes."""
        failures = 0
        while self._count < self._size_bytes or not self._count:
            before = self._count
            try:
                self._read_some(server, open_from)
                if self._count >= self._size_bytes:
                    return
                raise Lost(
                    f"{server} sent {self._count:,} of {self._size_bytes:,} bytes of {self._what}"
                )
            except Lost as error:
                if self._count - before >= _PROGRESS_BYTES_MIN:
                    failures = 0
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                wait(failures, error)

    def _read_some(self, server: str, open_from: OpenFrom) -> None:
        """Read what one connection gives."""
        answer, offset = open_from(self._count)
        with answer:
            if offset != self._count:  # it cannot go on where it was
                self._truncate()
            for data in answer.chunks():
                if self._count + len(data) > self._size_bytes:
                    self._refuse(server, f"has more than the {self._size_bytes:,} bytes it says")
                view = memoryview(data)
                while view:
                    view = view[os.write(self._file.fd, view) :]
                self._hash.update(data)
                self._count += len(data)
                self._on_bytes(len(data))

    def _read_kept(self) -> int:
        """Hash what an earlier attempt has left; returns how much."""
        if os.fstat(self._file.fd).st_size > self._size_bytes:
            self._truncate()
        while data := os.read(self._file.fd, _CHUNK_BYTES):
            self._hash.update(data)
            self._count += len(data)
        self._on_bytes(self._count)
        return self._count

    def _truncate(self) -> None:
        os.ftruncate(self._file.fd, 0)
        os.lseek(self._file.fd, 0, os.SEEK_SET)
        self._on_bytes(-self._count)
        self._hash = hashlib.sha256()
        self._count = 0

    def _refuse(self, server: str, why: str) -> None:
        self._file.delete()
        raise RegistryError(f"{server} does not tell the truth: {self._what} {why}")
