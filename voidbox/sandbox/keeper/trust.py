"""Puts a sandbox's own certificate into its guest's trust stores, by the agent."""

from __future__ import annotations

import io
import os

from voidbox.agent.call import RequestFailed
from voidbox.agent.client import AgentClient
from voidbox.errors import AgentError
from voidbox.named_tuple import NamedTuple
from voidbox.secrets.guest_paths import BUNDLE_PATH, CERTIFICATE_PATH

BUNDLE_BYTES_MAX = 4 << 20
_FIRST_LINE = b"# the voidbox sandbox's own\n"

# Where distributions have all certificates in one file, what they rebuild that file from, and by
# the hash of its name each alone.
BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora
    "/var/lib/ca-certificates/ca-bundle.pem",  # SUSE
)
_ANCHORS = {
    "/usr/local/share/ca-certificates": "voidbox.crt",  # Debian, Alpine
    "/etc/pki/ca-trust/source/anchors": "voidbox.pem",  # Fedora
    "/etc/pki/trust/anchors": "voidbox.pem",  # SUSE
}
_HASHED = "/etc/ssl/certs"


class Trusted(NamedTuple):
    """What a guest is to trust.

    Attributes:
        certificate: as PEM.
        subject_hash: what OpenSSL calls it by in a folder.
        bundle: of the host's, for a guest that has none.
    """

    certificate: bytes
    subject_hash: str
    bundle: bytes


def install(client: AgentClient, trusted: Trusted) -> None:
    """Have the guest trust a certificate, wherever its programs look.

    Raises:
        AgentError: it cannot be written there.
    """
    certificate = trusted.certificate
    try:
        bundle = _system_bundle(client, certificate) or trusted.bundle
        _write(client, CERTIFICATE_PATH, certificate)
        _write(client, BUNDLE_PATH, _with(bundle, certificate))
        for folder, name in _ANCHORS.items():
            if _is_folder(client, folder):
                _write(client, f"{folder}/{name}", certificate)
        if _is_folder(client, _HASHED):
            _write(client, f"{_HASHED}/{trusted.subject_hash}.0", certificate)
    except RequestFailed as error:
        raise AgentError(
            f"the guest cannot be made to trust the sandbox's certificate: {error}"
        ) from error


def _system_bundle(client: AgentClient, certificate: bytes) -> bytes:
    """Add the certificate to the guest's own bundle; return that, b"" if there is none."""
    for path in BUNDLES:
        bundle = _read(client, path)
        if bundle:
            if certificate not in bundle:
                _write(client, path, _with(bundle, certificate))
            return bundle
    return b""


def _with(bundle: bytes, certificate: bytes) -> bytes:
    if certificate in bundle:
        return bundle
    return bundle.rstrip(b"\n") + b"\n" + _FIRST_LINE + certificate


class _Bounded(io.BytesIO):
    """What a guest may send of a file."""

    def write(self, data: object) -> int:
        if self.tell() > BUNDLE_BYTES_MAX:
            raise AgentError("the guest's file of certificates has no end")
        return super().write(data)  # type: ignore[arg-type]


def _read(client: AgentClient, path: str) -> bytes:
    output = _Bounded()
    try:
        client.read_file(path, output, user="root")
    except RequestFailed:
        return b""
    return output.getvalue()


def _write(client: AgentClient, path: str, content: bytes) -> None:
    client.make_dir(os.path.dirname(path), user="root")
    client.write_file(path, io.BytesIO(content), user="root", mode=0o644)


def _is_folder(client: AgentClient, path: str) -> bool:
    try:
        return client.stat(path, user="root").get("type") == "folder"
    except RequestFailed:
        return False
