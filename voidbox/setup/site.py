"""One place that has an archive: a server, or a folder laid out as one."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Mapping
from typing import BinaryIO, NoReturn, Protocol
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from voidbox.images.download import ATTEMPTS, Download, OnBytes, check_range, range_from
from voidbox.images.flock import OwnedFile
from voidbox.images.transport import Answer, Lost, RegistryError, Transport, Unreachable
from voidbox.setup.errors import SetupError
from voidbox.setup.release import Digest

BACKOFF_S = 1.0  # before a second attempt; twice as long before each further one
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_GONE = (404, 410)
_CHUNK_BYTES = 1 << 20


class Absent(SetupError):
    """The place answers, but does not have the file."""


class Unreached(SetupError):
    """The place does not answer: no network, say."""


class Site(Protocol):
    """A place. Thread: any."""

    def read(self, path: str, limit_bytes: int) -> bytes:
        """Return a small file.

        Raises:
            Absent: there is none.
            Unreached: nobody answers.
            SetupError: it cannot be had.
        """

    def fetch(self, path: str, file: OwnedFile, digest: Digest, on_bytes: OnBytes) -> None:
        """Have a file of ours be that file; what it has already is gone on from.

        Raises:
            as read(); OSError: writing failed.
        """

    def stop(self) -> None:
        """End what other threads read of it."""

    def close(self) -> None:
        """Let go of it. Idempotent."""


def open_site(uri: str, proxies: Mapping[str, str]) -> Site:
    """Return the site of an address: http, https or file."""
    if uri.startswith("file:"):
        return FolderSite(unquote(urlsplit(uri).path))
    return HttpSite(uri, proxies)


class HttpSite:
    """A mirror. It may be asked by plain http: signatures and digests tell what comes.

    Args:
        uri: of the archive; may hold a name and a password.
        proxies: what apt has, where the environment names none.
    """

    def __init__(self, uri: str, proxies: Mapping[str, str]) -> None:
        parts = urlsplit(uri)
        self._authorization = ""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._authorization = f"Basic {base64.b64encode(pair.encode()).decode()}"
        host = parts.netloc.rpartition("@")[2]
        self._uri = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        self._host = parts.hostname or host
        self._stop = threading.Event()
        self._transport = Transport(is_plain_allowed=True, proxies=proxies)

    def read(self, path: str, limit_bytes: int) -> bytes:
        """See Site."""
        for number in range(1, ATTEMPTS + 1):
            try:
                with self._get(path, 0) as answer:
                    return answer.read(limit_bytes, path.rpartition("/")[2])
            except Lost as error:
                if number == ATTEMPTS:
                    raise Unreached(str(error)) from error
                self._wait(number, error)
            except RegistryError as error:
                _refuse(error)
        raise AssertionError("not reached")

    def fetch(self, path: str, file: OwnedFile, digest: Digest, on_bytes: OnBytes) -> None:
        """See Site."""
        what = path.rpartition("/")[2]
        download = Download(file, what, digest.size_bytes, digest.sha256, on_bytes)

        def open_from(offset: int) -> tuple[Answer, int]:
            answer = self._get(path, offset)
            return answer, offset if answer.status == 206 else 0

        try:
            download.run(self._host, open_from, self._wait)
        except RegistryError as error:
            _refuse(error)

    def _get(self, path: str, offset: int) -> Answer:
        url = f"{self._uri}/{quote(path, safe='/+~:')}"
        answer = self._transport.get(url, range_from(offset), self._authorization)
        try:
            if answer.status == 206:
                check_range(answer, offset)
                return answer
            if answer.status == 416 and offset:
                answer.close()
                return self._get(path, 0)
            if answer.status in _BUSY:
                raise Lost(f"{self._host} is busy (status {answer.status})")
            if answer.status in _GONE:
                raise Absent(f"{url} is not there")
            if answer.status != 200:
                raise SetupError(f"{url} is refused (status {answer.status})")
        except BaseException:
            answer.close()
            raise
        return answer

    def _wait(self, number: int, error: Lost) -> None:
        if self._stop.wait(2 ** (number - 1) * BACKOFF_S):
            raise error

    def stop(self) -> None:
        """See Site."""
        self._stop.set()
        self._transport.cut()

    def close(self) -> None:
        """See Site."""
        self._transport.close()


def _refuse(error: RegistryError) -> NoReturn:
    if isinstance(error, Unreachable | Lost):
        raise Unreached(f"{error}: is there a network?") from error
    raise SetupError(str(error)) from error


class FolderSite:
    """A folder of this machine, laid out as a mirror.

    Args:
        path: of the folder that has dists/ and pool/.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self, path: str, limit_bytes: int) -> bytes:
        """See Site."""
        full = f"{self._path}/{path}"
        try:
            with open(full, "rb") as file:
                data = file.read(limit_bytes + 1)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Absent(f"{full} is not there") from error
        except OSError as error:
            raise SetupError(f"cannot read {full}: {error.strerror}") from error
        if len(data) > limit_bytes:
            raise SetupError(f"{full} has more than {limit_bytes:,} bytes")
        return data

    def fetch(self, path: str, file: OwnedFile, digest: Digest, on_bytes: OnBytes) -> None:
        """See Site."""
        try:
            with open(f"{self._path}/{path}", "rb") as source:
                hashed = _copy(source, file, digest.size_bytes, on_bytes)
        except FileNotFoundError as error:
            raise Absent(f"{self._path}/{path} is not there") from error
        if hashed != digest.sha256:
            file.delete()
            raise SetupError(
                f"{self._path}/{path} is not what the archive's list says: its digest is another"
            )

    def stop(self) -> None:
        """See Site."""

    def close(self) -> None:
        """See Site."""


def _copy(source: BinaryIO, file: OwnedFile, size_bytes: int, on_bytes: OnBytes) -> str:
    """Copy, and return the digest; a file that is too long is not copied to its end."""
    os.ftruncate(file.fd, 0)
    hashed = hashlib.sha256()
    left = size_bytes + 1
    while left and (data := source.read(min(left, _CHUNK_BYTES))):
        view = memoryview(data)
        while view:
            view = view[os.write(file.fd, view) :]
        hashed.update(data)
        left -= len(data)
        on_bytes(len(data))
    return hashed.hexdigest()
