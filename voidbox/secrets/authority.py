"""The sandbox's own certificate authority, and the certificates it gives the guarded hosts.

It is good for these hosts alone (name constraints, RFC 5280 §4.2.1.10): whoever steals its key can
lie to this one guest about them, and about nothing else.
"""

from __future__ import annotations

import contextlib
import datetime
import encodings.idna  # noqa: F401  # what a host's name goes through later, when no file is read
import hashlib
import os
import ssl
import tempfile
from collections.abc import Iterable
from typing import Any

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple

EXTRA = "pip install 'voidbox-kvm[secrets]'"
NAME = "voidbox sandbox CA"
_DAY = datetime.timedelta(days=1)
_CA_DAYS, _LEAF_DAYS = 3650, 397  # no client takes a longer leaf


class Authority(NamedTuple):
    """A certificate authority, as PEM.

    Attributes:
        certificate: what the guest is to trust.
    """

    certificate: str
    key: str

    def to_json(self) -> dict[str, str]:
        """Return it as JSON has it."""
        return self._asdict()


def check_extra() -> None:
    """Check that what ends TLS and reads HTTP is installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        import cryptography  # noqa: F401
        import h2  # noqa: F401
        import h11  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"secrets and rules for HTTP need {error.name}: {EXTRA}") from None


def make_authority(hosts: Iterable[str]) -> Authority:
    """Return a new authority that is good for some hosts."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    key = _new_key()
    name = _name(f"{NAME} {os.urandom(4).hex()}")
    permitted = [x509.DNSName(host) for host in sorted(set(hosts))]
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = (
        _builder(name, name, key.public_key(), _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.NameConstraints(permitted, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Authority(_pem(builder.sign(key, hashes.SHA256())), _key_pem(key))


def issue(authority: Authority, host: str) -> str:
    """Return a certificate for a host, its key and the authority's, as one PEM text."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import ExtendedKeyUsageOID

    ca = x509.load_pem_x509_certificate(authority.certificate.encode())
    ca_key: Any = serialization.load_pem_private_key(authority.key.encode(), None)
    key = _new_key()
    builder = (
        _builder(_name(host[:64]), ca.subject, key.public_key(), _LEAF_DAYS)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
    )
    return _pem(builder.sign(ca_key, hashes.SHA256())) + authority.certificate + _key_pem(key)


def server_contexts(authority: Authority, host: str) -> dict[str, ssl.SSLContext]:
    """Return what a host's connections are answered with: by protocol, as ALPN calls it."""
    pem = issue(authority, host)
    return {
        "h2": server_context(pem, ["h2"]),
        "http/1.1": server_context(pem, ["http/1.1"]),
        "any": server_context(pem, ["h2", "http/1.1"]),
    }


def server_context(pem: str, protocols: list[str]) -> ssl.SSLContext:
    """Return what serves by a certificate.

    Args:
        pem: what issue() returned.
        protocols: as ALPN has them, the best first.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # The library takes files alone. This one has no name, and no disk.
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_nameless())
        file.write(pem.encode())
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    context.set_alpn_protocols(protocols)
    return context


def _nameless() -> Any:
    try:
        return os.fdopen(os.memfd_create("certificate", os.MFD_CLOEXEC), "r+b")
    except OSError:
        return tempfile.TemporaryFile()


def client_contexts() -> dict[str, ssl.SSLContext]:
    """Return how hosts are talked to: the library's defaults, by whether HTTP/2 may be spoken."""
    contexts = {"any": ssl.create_default_context(), "http/1.1": ssl.create_default_context()}
    contexts["any"].set_alpn_protocols(["h2", "http/1.1"])
    contexts["http/1.1"].set_alpn_protocols(["http/1.1"])
    for context in contexts.values():
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    return contexts


def subject_hash(certificate: str) -> str:
    """Return what OpenSSL looks a certificate up by in a folder: NAME.0."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    name = x509.load_pem_x509_certificate(certificate.encode()).subject
    (common,) = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    # X509_NAME_hash(3): SHA-1 of the canonical form: UTF8String, in lower case, blanks as one,
    # without the outermost SEQUENCE.
    text = " ".join(str(common.value).lower().split()).encode()
    oid = bytes.fromhex("0603550403")
    value = b"\x0c" + bytes([len(text)]) + text
    pair = b"\x30" + bytes([len(oid + value)]) + oid + value
    digest = hashlib.sha1(b"\x31" + bytes([len(pair)]) + pair, usedforsecurity=False).digest()
    return f"{int.from_bytes(digest[:4], 'little'):08x}"


def _new_key() -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _name(text: str) -> Any:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: Any, issuer: Any, public_key: Any, days: int) -> Any:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)  # a guest's clock may be behind
        .not_valid_after(now + days * _DAY)
    )


def _usage(**wanted: bool) -> Any:
    from cryptography import x509

    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
        "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: wanted.get(name, False) for name in names})


def _pem(certificate: Any) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return str(certificate.public_bytes(Encoding.PEM).decode())


def _key_pem(key: Any) -> str:
    from cryptography.hazmat.primitives import serialization

    return str(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()
    )
