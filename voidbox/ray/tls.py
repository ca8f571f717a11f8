"""TLS between a node and who uses its sandboxes: a certificate a node, made at its start.

Clients get it over Ray, and trust no other. A TLS connection is not a descriptor that others could
read: a thread moves its data to a socket pair, whose end everything else uses as if it were plain.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import tempfile
import threading
from datetime import UTC, datetime, timedelta

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple

_VALID = timedelta(days=3650)
_BYTES = 128 << 10
_HANDSHAKE_S = 10.0
_NAME = "voidbox-node"


class Certificate(NamedTuple):
    """A node's certificate and its key, as PEM."""

    certificate: str
    key: str


def make_certificate() -> Certificate:
    """Return a new one, signed by itself.

    Raises:
        ConfigError: the package for it is missing.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise ConfigError("tls=True needs cryptography: pip install 'voidbox-kvm[ray]'") from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _NAME)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + _VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return Certificate(
        made.public_bytes(pem).decode(),
        key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    )


def server_context(certificate: Certificate) -> ssl.SSLContext:
    """Return what a node serves with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:  # of mode 0600
        file.write(certificate.key + certificate.certificate)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def client_context(certificate: str) -> ssl.SSLContext:
    """Return what trusts this node's certificate alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # there is but one that is trusted
    context.load_verify_locations(cadata=certificate)
    return context


def unwrapped(sock: socket.socket, context: ssl.SSLContext, is_server: bool) -> socket.socket:
    """Shake hands on a connection; return a socket with the data of it. Thread: any; it blocks.

    Raises:
        OSError: the handshake failed. `sock` is closed then.
    """
    try:
        sock.settimeout(_HANDSHAKE_S)
        secured = context.wrap_socket(sock, server_side=is_server)
    except BaseException:
        sock.close()
        raise
    ours, theirs = socket.socketpair()
    secured.setblocking(False)
    ours.setblocking(False)
    threading.Thread(target=_Pump(secured, ours).run, name="voidbox-tls", daemon=True).start()
    return theirs


class _Pump:
    """Moves data between a TLS connection and a socket, until either ends. Thread: its own.

    Each way has one buffer: who does not read holds up who sends.
    """

    def __init__(self, secured: ssl.SSLSocket, plain: socket.socket) -> None:
        self._secured, self._plain = secured, plain
        self._inward = memoryview(b"")  # from the connection, to the socket
        self._outward = memoryview(b"")
        self._wants_write = False  # TLS itself has something to say before it can go on

    def run(self) -> None:
        """Move it."""
        try:
            while self._wait() and self._take() and self._give():
                pass
        except OSError:
            pass  # the connection is lost
        finally:
            for sock in (self._plain, self._secured):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def _wait(self) -> bool:
        poll = select.poll()
        reads_secured = not self._inward
        if reads_secured and self._secured.pending():
            return True
        outer = (select.POLLIN if reads_secured else 0) | (
            select.POLLOUT if self._outward or self._wants_write else 0
        )
        inner = (0 if self._outward else select.POLLIN) | (select.POLLOUT if self._inward else 0)
        for sock, events in ((self._secured, outer), (self._plain, inner)):
            if events:  # else the end of a connection that is to wait would be told again and again
                poll.register(sock.fileno(), events)
        poll.poll()
        return True

    def _take(self) -> bool:
        """Read what there is; False at the end of either."""
        if not self._inward:
            try:
                data = self._secured.recv(_BYTES)
                self._wants_write = False
                if not data:
                    return False
                self._inward = memoryview(data)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLWantWriteError:
                self._wants_write = True
        if not self._outward:
            try:
                data = self._plain.recv(_BYTES)
                if not data:
                    return False
                self._outward = memoryview(data)
            except BlockingIOError:
                pass
        return True

    def _give(self) -> bool:
        if self._inward:
            with contextlib.suppress(BlockingIOError):
                self._inward = self._inward[self._plain.send(self._inward) :]
        if self._outward:
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self._outward = self._outward[self._secured.send(self._outward) :]
        return True


def is_wanted_by_ray() -> bool:
    """Whether Ray's own traffic is to be secured, as its documentation has it."""
    return os.environ.get("RAY_USE_TLS", "0").lower() not in ("", "0", "false")
