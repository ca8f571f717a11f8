"""A sandbox's certificate authority: made at its first start, kept in its folder and its snapshots.

It stays the same for all that goes on from a snapshot, since programs that run in there have read
its certificate. It is worth nothing to anybody but this guest: see voidbox.secrets.authority.
"""

from __future__ import annotations

import io
import json
import logging
import os
import ssl
from typing import TYPE_CHECKING

from voidbox.agent.call import RequestFailed
from voidbox.agent.client import AgentClient
from voidbox.errors import AgentError, ConfigError
from voidbox.secrets.authority import Authority, make_authority, subject_hash
from voidbox.secrets.guard import Guard
from voidbox.secrets.guarded import BUNDLE_PATH, CERTIFICATE_PATH, Guarded
from voidbox.storage import durable

if TYPE_CHECKING:
    from voidbox.sandbox.state.records import SandboxRecord

FILE = "ca.json"
_BYTES_MAX = 64 << 10
_BUNDLE_BYTES_MAX = 4 << 20
_FIRST_LINE = b"# the voidbox sandbox's own\n"

# Where distributions have all certificates in one file, what they rebuild that file from, and by
# the hash of its name each alone.
_BUNDLES = (
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

log = logging.getLogger(__name__)


def make_guard(
    guarded: Guarded, record: SandboxRecord, folder: str, source_folder: str | None
) -> tuple[Guard, Authority]:
    """Return what looks at a sandbox's connections, without a value yet, and its authority.

    Args:
        folder: the sandbox's.
        source_folder: of the snapshot that it goes on from, or None.
    Raises:
        ConfigError: see Guard.
        HostError: the authority cannot be kept.
    """
    authority = _find(folder) or (source_folder and _find(source_folder)) or None
    if not authority:
        authority = make_authority(place.host for place in guarded.places())
    durable.write_file(f"{folder}/{FILE}", encode(authority))
    guard = Guard(
        guarded.secrets, {}, guarded.http, authority, folder, record.name,
        lambda line: log.info("%s", line),
    )  # fmt: skip
    return guard, authority


def encode(authority: Authority) -> bytes:
    """Return the file's content."""
    return json.dumps(authority.to_json()).encode()


def _find(folder: str) -> Authority | None:
    try:
        with open(f"{folder}/{FILE}", "rb") as file:
            values = json.loads(file.read(_BYTES_MAX))
        return Authority(str(values["certificate"]), str(values["key"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder}/{FILE} cannot be read: {error}") from error


def install(client: AgentClient, authority: Authority) -> None:
    """Have the guest trust the authority, wherever its programs look.

    Raises:
        AgentError: it cannot be written there.
    """
    certificate = authority.certificate.encode()
    try:
        bundle = _system_bundle(client, certificate) or _host_bundle()
        _write(client, CERTIFICATE_PATH, certificate)
        _write(client, BUNDLE_PATH, _with(bundle, certificate))
        for folder, name in _ANCHORS.items():
            if _is_folder(client, folder):
                _write(client, f"{folder}/{name}", certificate)
        if _is_folder(client, _HASHED):
            _write(client, f"{_HASHED}/{subject_hash(authority.certificate)}.0", certificate)
    except RequestFailed as error:
        raise AgentError(
            f"the guest cannot be made to trust the sandbox's certificate: {error}"
        ) from error


def _system_bundle(client: AgentClient, certificate: bytes) -> bytes:
    """Add the certificate to the guest's own bundle; return that, b"" if there is none."""
    for path in _BUNDLES:
        bundle = _read(client, path)
        if bundle:
            if certificate not in bundle:
                _write(client, path, _with(bundle, certificate))
            return bundle
    return b""


def _host_bundle() -> bytes:
    """Return what this host trusts, for a guest that has no bundle of its own."""
    for path in (ssl.get_default_verify_paths().cafile, *_BUNDLES):
        try:
            if path:
                with open(path, "rb") as file:
                    return file.read(_BUNDLE_BYTES_MAX)
        except OSError:
            continue
    return b""


def _with(bundle: bytes, certificate: bytes) -> bytes:
    if certificate in bundle:
        return bundle
    return bundle.rstrip(b"\n") + b"\n" + _FIRST_LINE + certificate


class _Bounded(io.BytesIO):
    """What a guest may send of a file."""

    def write(self, data: object) -> int:
        if self.tell() > _BUNDLE_BYTES_MAX:
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
