"""Debian's docker-registry on loopback, and pushing to it."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.unit.images.oci import OciImage
from voidbox.defaults import cache_folder

PROGRAM = Path(cache_folder()) / "registry/current/docker-registry"
# "me" with the password "secret", by bcrypt: the one kind that this registry takes.
HTPASSWD = "me:$2b$04$yLFzeLcmXwQcj2Cukz65buFbuOMoNtxgrfxBy7exnFleZIuw6pfqi\n"
LOGIN = {"Authorization": "Basic bWU6c2VjcmV0"}
_START_S = 20.0


class Running(NamedTuple):
    """A registry that runs.

    Attributes:
        address: 127.0.0.1 and its port.
        headers: for whoever pushes.
        log: what it says: each request is a line.
    """

    address: str
    headers: dict[str, str]
    log: Path

    def push(self, image: OciImage, *tags: str, repository: str = "team/app") -> None:
        """Have it hold an image."""
        for content in image.blobs.values():
            self._push_blob(repository, content)
        for tag in tags or ("latest",):
            self.push_manifest(image.manifest, image.media_type, tag, repository)

    def push_manifest(
        self, content: bytes, media_type: str, tag: str, repository: str = "team/app"
    ) -> None:
        self._request("PUT", f"/v2/{repository}/manifests/{tag}", content, media_type)

    def _push_blob(self, repository: str, content: bytes) -> None:
        answer = self._request("POST", f"/v2/{repository}/blobs/uploads/", b"", "")
        place = answer.headers["Location"]
        place = "/" + place.split("/", 3)[3] if "://" in place else place
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        glue = "&" if "?" in place else "?"
        self._request("PUT", f"{place}{glue}digest={digest}", content, "application/octet-stream")

    def _request(
        self, method: str, path: str, content: bytes, media_type: str
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.address, timeout=60)
        try:
            headers = {**self.headers, **({"Content-Type": media_type} if media_type else {})}
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status in (200, 201, 202), (answer.status, said)
            return answer
        finally:
            connection.close()


@contextmanager
def real_registry(
    folder: Path, *, auth: object = None, tls: object = None, headers: dict[str, str] | None = None
) -> Iterator[Running]:
    """Run a registry with its files in a folder until the context ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = {
        "version": "0.1",
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": address, **({"tls": tls} if tls else {})},
        **({"auth": auth} if auth else {}),
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [PROGRAM, "serve", folder / "config.yml"], stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        _wait(process, address, log)
        yield Running(address, headers or {}, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def registry_with_password(folder: Path) -> Iterator[Running]:
    """Run one for HTPASSWD's user alone."""
    folder.mkdir(exist_ok=True)
    (folder / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    with real_registry(folder, auth=auth, headers=LOGIN) as registry:
        yield registry


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    host, port = address.split(":")
    deadline = time.monotonic() + _START_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            time.sleep(0.01)  # it tells nobody when it is ready


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return a key and a certificate of its own, for 127.0.0.1."""
    folder.mkdir(exist_ok=True)
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-keyout", key, "-out",
         certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


def make_token(key: Path, certificate: Path, service: str, repository: str, *does: str) -> str:
    """Return a token for a repository, signed with RS256 (RFC 7515, 7519)."""
    now = int(time.time())
    der = "".join(certificate.read_text().split("\n")[1:-2])
    header = {"typ": "JWT", "alg": "RS256", "x5c": [der]}
    claims = {
        "iss": "tests", "sub": "me", "aud": service, "exp": now + 60, "nbf": now - 60, "iat": now,
        "jti": "1", "access": [{"type": "repository", "name": repository, "actions": list(does)}],
    }  # fmt: skip
    signed = ".".join(_encode(json.dumps(part).encode()) for part in (header, claims))
    signature = subprocess.run(
        ["openssl", "dgst", "-sha256", "-sign", key], input=signed.encode(), check=True,
        capture_output=True,
    ).stdout  # fmt: skip
    return f"{signed}.{_encode(signature)}"


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
