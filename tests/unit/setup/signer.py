"""An OpenPGP key of the tests', and clear-signed texts by it: RFC 9580, from the writing side."""

from __future__ import annotations

import base64
import hashlib
import time
from typing import NamedTuple

_PRIMES = (
    (
        "f6b6ff686fa3c08bdad44bcff64fc98ad93abfe4c52c6069bd5340c0844b51cec41890793b54c19ebdb245f6"
        "48a8cd85be0ae44bd62e65e4e80d45e62a59fd88238910596efc4dff2b00ae45c59d1ec1d2b98b94f32409a5"
        "eda8fe56cb30ff7b4675d932b7469eba5f1a2b5b7135093f54cad528dd45ae0af7e23f59fcb33daf",
        "b86c988e103f075e8fccb3d18b32ed93b473061e5818b319b8c31b52c7ebe7dd428a020a6dd4c268f909f371"
        "1b3d5879a871fa234b3cc208f591ba51975558a0c6291d0162f8ff0469c9ede8263f01bce6103ffd7e4fe084"
        "278179654c42c3a9b19ee99a5ab3a153e2db74ba0ab5c482247e051b55e6c1959d18a166ef193111",
    ),
    (
        "d56043ee13351226a00dfc8830d907eedd36803655cc18883751c6f4fc6113c73b7c759371ab51af640c00f9"
        "3c69a0a70f51eacf718719e43767559ddcaad4ec4fcd745243d41eb8c4874805b7df805dac01ac2b48463b76"
        "e6fc4d721052f94b5d4dd3560ce8ea77e18da7d8ea2736840fc375e833d475fb5d78f73b69cacf8b",
        "bdbadb143fcdcf442fba1e80670bec1d578d5e177bf7022edbf065191050c8cb7bbc772e8eaddb9c7275e721"
        "4671f8c38848ac91a18e73e656afba9ed8930be39954af726480ec3aa6da5b0d155633767254e8f47741f8e3"
        "04c4413e8f592850be6b92706199bf91b79585136e9ed87f639c27f5a6aff8d794b49c06b006ba1f",
    ),
)
_E = 65537
_PREFIXES = {
    8: ("sha256", "3031300d060960864801650304020105000420"),
    10: ("sha512", "3051300d060960864801650304020305000440"),
    2: ("sha1", "3021300906052b0e03021a05000414"),
}
BORN_S = 1_600_000_000


def mpi(number: int) -> bytes:
    size = number.bit_length()
    return size.to_bytes(2, "big") + number.to_bytes((size + 7) // 8, "big")


def packet(kind: int, body: bytes) -> bytes:
    """One packet, in the old format with a length of two bytes."""
    return bytes([0x80 | kind << 2 | 1]) + len(body).to_bytes(2, "big") + body


def subpacket(kind: int, content: bytes) -> bytes:
    return bytes([len(content) + 1, kind]) + content


class Signer(NamedTuple):
    """A key: number 0 or 1, and when it expires after its birth, in seconds; 0 for never."""

    number: int = 0
    life_s: int = 0
    is_revoked: bool = False
    flags: int = 0x02

    @property
    def _n(self) -> int:
        p, q = (int(prime, 16) for prime in _PRIMES[self.number])
        return p * q

    def _sign(self, digest: bytes, hash_id: int) -> int:
        p, q = (int(prime, 16) for prime in _PRIMES[self.number])
        tail = b"\0" + bytes.fromhex(_PREFIXES[hash_id][1]) + digest
        size = (self._n.bit_length() + 7) // 8
        block = b"\0\1" + b"\xff" * (size - len(tail) - 2) + tail
        return pow(int.from_bytes(block, "big"), pow(_E, -1, (p - 1) * (q - 1)), self._n)

    @property
    def _body(self) -> bytes:
        return b"\x04" + BORN_S.to_bytes(4, "big") + b"\x01" + mpi(self._n) + mpi(_E)

    @property
    def fingerprint(self) -> str:
        body = self._body
        return hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest().upper()

    def keyring(self) -> bytes:
        """The public key, as a keyring has it."""
        hashed = subpacket(2, BORN_S.to_bytes(4, "big")) + subpacket(27, bytes([self.flags]))
        if self.life_s:
            hashed += subpacket(9, self.life_s.to_bytes(4, "big"))
        parts = packet(6, self._body)
        if self.is_revoked:
            parts += packet(2, self.signature(b"", kind=0x20))
        parts += packet(13, b"A Test")
        return parts + packet(2, self.signature(b"", kind=0x13, hashed=hashed))

    def signature(
        self,
        text: bytes,
        *,
        kind: int = 1,
        hash_id: int = 8,
        at_s: int | None = None,
        hashed: bytes | None = None,
        more: bytes = b"",
    ) -> bytes:
        """A signature packet's body, of a text in its canonical form."""
        if hashed is None:
            created = int(time.time()) - 60 if at_s is None else at_s
            hashed = subpacket(2, created.to_bytes(4, "big")) + more
        issuer = subpacket(16, bytes.fromhex(self.fingerprint[-16:]))
        head = bytes([4, kind, 1, hash_id]) + len(hashed).to_bytes(2, "big") + hashed
        trailer = b"\x04\xff" + len(head).to_bytes(4, "big")
        digest = hashlib.new(_PREFIXES[hash_id][0], text + head + trailer).digest()
        unhashed = len(issuer).to_bytes(2, "big") + issuer
        return head + unhashed + digest[:2] + mpi(self._sign(digest, hash_id))

    def clearsign(self, text: str, **options: object) -> bytes:
        """A text with a signature."""
        lines = [line.rstrip(" \t") for line in text.removesuffix("\n").split("\n")]
        body = self.signature("\r\n".join(lines).encode(), **options)  # type: ignore[arg-type]
        shown = "".join(f"- {line}\n" if line.startswith("-") else f"{line}\n" for line in lines)
        armored = base64.encodebytes(packet(2, body)).decode()
        return (
            f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{shown}"
            f"-----BEGIN PGP SIGNATURE-----\n\n{armored}-----END PGP SIGNATURE-----\n"
        ).encode()
