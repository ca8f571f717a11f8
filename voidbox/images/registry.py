"""A registry, by the OCI distribution specification: manifests and blobs of one repository."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

from voidbox.images import manifest
from voidbox.images.authorization import Authorizer
from voidbox.images.credentials import Credentials
from voidbox.images.download import ATTEMPTS, check_range, range_from
from voidbox.images.manifest import Descriptor, Index, Manifest, Platform
from voidbox.images.reference import DEFAULT_REGISTRY, Reference
from voidbox.images.transport import (
    Answer,
    Lost,
    RegistryError,
    Transport,
    Unreachable,
    is_loopback,
    parse_url,
    shown,
)
from voidbox.named_tuple import NamedTuple

BACKOFF_S = 1.0  # before a second attempt; twice as long before each further one
_BACKOFF_MAX = 30.0  # times that, where the registry says how long
_DOCKER_IO_HOST = "registry-1.docker.io"
_BUSY = (408, 425, 429, 500, 502, 503, 504)

_T = TypeVar("_T")


class Resolved(NamedTuple):
    """What a name stands for in a registry, on one platform.

    Attributes:
        platform: that an index has it for; None where there is no index.
    """

    digest: str
    manifest: Manifest
    platform: Platform | None = None


class Registry:
    """One repository of a registry. Thread: any.

    Args:
        reference: names the registry and the repository.
        is_insecure: http, or certificates that nobody vouches for, will do.
        timeout_s: for any sign of life.
        stop: once it is set, nothing is tried again.
        credentials: who asks; what the user has written down by default.
    """

    def __init__(
        self,
        reference: Reference,
        *,
        is_insecure: bool = False,
        timeout_s: float = 30.0,
        stop: threading.Event | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.name = reference.registry
        self._repository = reference.repository
        self._stop = stop or threading.Event()
        self._transport = Transport(is_insecure=is_insecure, timeout_s=timeout_s)
        host = _DOCKER_IO_HOST if self.name == DEFAULT_REGISTRY else self.name
        is_local = is_loopback(parse_url(f"https://{host}").host)
        # Plain first on this machine, where a server without TLS may wait for more of a hello.
        schemes = ["http", "https"] if is_local else ["https", "http"] if is_insecure else ["https"]
        self._bases = [f"{scheme}://{host}/v2/{self._repository}" for scheme in schemes]
        self._authorizer = Authorizer(self._transport, self.name, self._repository, credentials)
        self._authorization = ""
        self._lock = threading.Lock()  # for whoever gets a token

    def cut(self) -> None:
        """End all that others read of it just now: Lost. It cannot be asked any more."""
        self._transport.cut()

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._transport.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def resolve(self, reference: Reference, platform: Platform) -> Resolved:
        """Return the manifest that a name stands for on a platform, its digest checked.

        Raises:
            RegistryError: there is none, or the registry fails or lies.
            ImageError: it is not for the platform, or cannot be used.
        """
        digest, found = self._manifest(reference.digest or reference.tag, reference.digest)
        chosen = None
        for _ in range(4):
            if isinstance(found, Manifest):
                return Resolved(digest, found, chosen.platform if chosen is not None else None)
            chosen = manifest.choose(found, platform)
            digest, found = self._manifest(chosen.digest, chosen.digest, chosen.size_bytes)
        raise RegistryError(f"{self.name} has indexes in indexes without end")

    def document(self, descriptor: Descriptor, what: str) -> bytes:
        """Return a small blob, checked.

        Raises:
            RegistryError: there is none, or the registry fails or lies.
        """
        if descriptor.size_bytes > manifest.DOCUMENT_BYTES_MAX:
            raise RegistryError(f"{self.name} has a {what} of {descriptor.size_bytes:,} bytes")
        path = f"blobs/{descriptor.digest}"
        content, _ = self.retrying(lambda: self._read(path, what, {}))
        if len(content) != descriptor.size_bytes:
            raise RegistryError(
                f"{self.name} does not tell the truth: a {what} of {len(content):,} bytes instead "
                f"of {descriptor.size_bytes:,}"
            )
        self._check(content, descriptor.digest, what)
        return content

    def open_blob(self, digest: str, offset: int) -> tuple[Answer, int]:
        """Ask for a blob from an offset on; returns the answer, and where it begins indeed.

        Raises:
            Lost: try again.
            RegistryError: there is none.
        """
        answer = self._get(f"blobs/{digest}", range_from(offset))
        try:
            if answer.status == 206:
                check_range(answer, offset)
                return answer, offset
            if answer.status == 416 and offset:
                answer.close()
                return self.open_blob(digest, 0)
            self._expect(answer, "layer")
        except BaseException:
            answer.close()
            raise
        return answer, 0

    def retrying(self, attempt: Callable[[], _T]) -> _T:
        """Return what an attempt gives; one that is lost is made again, some times, after a while.

        Raises:
            Lost: the last one was.
        """
        for number in range(1, ATTEMPTS):
            try:
                return attempt()
            except Lost as error:
                self.wait(number, error)
        return attempt()

    def wait(self, number: int, error: Lost) -> None:
        """Wait before another attempt.

        Raises:
            Lost: the error given, if there is to be none.
        """
        after_s = max(2 ** (number - 1), min(error.after_s, _BACKOFF_MAX))
        if self._stop.wait(after_s * BACKOFF_S):
            raise error

    def _manifest(
        self, which: str, expected: str, size_bytes: int | None = None
    ) -> tuple[str, Manifest | Index]:
        headers = {"Accept": ", ".join(manifest.ACCEPTED)}
        content, answer = self.retrying(
            lambda: self._read(f"manifests/{which}", "manifest", headers)
        )
        stated = answer.headers.get("Docker-Content-Digest", "")
        if expected:
            self._check(content, expected, "manifest")
        elif stated.startswith("sha256:"):
            self._check(content, stated, "manifest")
        if size_bytes not in (None, len(content)):
            raise RegistryError(
                f"{self.name} does not tell the truth: a manifest of {len(content):,} bytes "
                f"instead of {size_bytes:,}"
            )
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        return digest, manifest.parse_manifest(content, answer.headers.get("Content-Type", ""))

    def _check(self, content: bytes, digest: str, what: str) -> None:
        found = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if found != digest:
            raise RegistryError(
                f"{self.name} does not tell the truth: the {what} it calls {shown(digest)} is "
                f"{found}"
            )

    def _read(self, path: str, what: str, headers: Mapping[str, str]) -> tuple[bytes, Answer]:
        with self._get(path, headers) as answer:
            self._expect(answer, what)
            return answer.read(manifest.DOCUMENT_BYTES_MAX, what), answer

    def _get(self, path: str, headers: Mapping[str, str]) -> Answer:
        """Ask the registry, with what authorization it wants."""
        authorization = self._authorization
        answer = self._ask(path, headers, authorization)
        if answer.status != 401:
            return answer
        with answer:
            challenge = answer.headers.get("WWW-Authenticate", "")
        with self._lock:
            if self._authorization == authorization:  # else another thread has a new one
                if not challenge:
                    raise RegistryError(f"{self.name} refuses, and does not say what it wants")
                self._authorization = self.retrying(lambda: self._authorizer.answer(challenge))
        return self._ask(path, headers, self._authorization)

    def _ask(self, path: str, headers: Mapping[str, str], authorization: str) -> Answer:
        failure: RegistryError | None = None
        refusal: RegistryError | None = None
        for base in self._bases:
            try:
                answer = self._transport.get(f"{base}/{path}", headers, authorization)
            except (Unreachable, Lost) as error:
                failure = failure or error
                continue
            if answer.status == 400 and base is not self._bases[-1]:
                answer.close()  # as servers that want TLS answer what is plain
                refusal = RegistryError(f"{answer.host} answers with status 400")
                continue
            self._bases = [base]
            return answer
        raise failure or refusal or RegistryError(f"{self.name} cannot be asked")

    def _expect(self, answer: Answer, what: str) -> None:
        """Refuse whatever is no success."""
        status = answer.status
        if status == 200:
            return
        if status in _BUSY:
            error = Lost(f"{answer.host} is busy or broken: status {status}")
            after = answer.headers.get("Retry-After", "")
            error.after_s = float(after) if after.isdecimal() and len(after) < 10 else 0.0
            raise error
        if status == 404:
            raise RegistryError(f"{self.name} has no such {what} of {self._repository}")
        if status in (401, 403):
            raise RegistryError(
                f"{self.name} refuses: there is no {self._repository}, or it is not for you "
                f"(docker login {self.name} tells who you are)"
            )
        raise RegistryError(f"{answer.host} answers with status {status}")
