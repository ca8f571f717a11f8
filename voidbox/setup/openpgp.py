"""Signatures of clear-signed documents, as archives of packages have them: RSA with SHA-2 only.

RFC 9580, OpenPGP. Only what that takes: version 4 keys and signatures, PKCS #1 v1.5 (RFC 8017,
8.2.2). Everything else counts as no signature; so does one by a key that had expired or was
revoked. The keys come from a file that is trusted as a whole: how they certify each other is not
looked at.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from voidbox.named_tuple import NamedTuple
from voidbox.setup.errors import SetupError

DOCUMENT_BYTES_MAX = 8 << 20
_SIGNATURES_MAX = 32

# Packet types (RFC 9580, 5) and signature types (5.2.1)
_SIGNATURE, _PUBLIC_KEY, _PUBLIC_SUBKEY = 2, 6, 14
_TEXT, _CERTIFICATIONS, _SUBKEY_BINDING = 0x01, (0x10, 0x11, 0x12, 0x13), 0x18
_REVOCATIONS = (0x20, 0x28)
# Signature subpackets (5.2.3)
_CREATED, _EXPIRES, _KEY_EXPIRES, _ISSUER, _KEY_FLAGS, _ISSUER_FINGERPRINT = 2, 3, 9, 16, 27, 33
_HARMLESS = frozenset((_CREATED, _EXPIRES, _KEY_EXPIRES, _ISSUER, _KEY_FLAGS, _ISSUER_FINGERPRINT))
_IS_CRITICAL = 0x80
_MAY_SIGN = 0x02
_RSA = (1, 3)  # RSA (Encrypt or Sign), RSA Sign-Only
_RSA_BITS_MIN = 2048

# Hash algorithms (9.5), and what stands before their digests (RFC 8017, 9.2, note 1)
_HASHES = {
    8: ("sha256", bytes.fromhex("3031300d060960864801650304020105000420")),
    9: ("sha384", bytes.fromhex("3041300d060960864801650304020205000430")),
    10: ("sha512", bytes.fromhex("3051300d060960864801650304020305000440")),
}

_BEGIN, _BEGIN_SIGNATURE, _END_SIGNATURE = (
    b"-----BEGIN PGP SIGNED MESSAGE-----",
    b"-----BEGIN PGP SIGNATURE-----",
    b"-----END PGP SIGNATURE-----",
)
_ARMORED_KEYS = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL
)


class NotSigned(SetupError):
    """A document carries no signature in a form that is known here."""


class BadSignature(SetupError):
    """None of a document's signatures is a good one by a key that is trusted."""


class NotYet(SetupError):
    """A good signature was made in the future: this machine's clock is behind."""


@dataclass(slots=True)
class Key:
    """A public key that may sign.

    Attributes:
        fingerprint: in capital hexadecimal digits.
        modulus, exponent: RSA's.
        created_s: since 1970; `expires_s` too, None for never.
        is_revoked: by its owner.
    """

    fingerprint: str
    modulus: int
    exponent: int
    created_s: int
    expires_s: int | None = None
    is_revoked: bool = False
    may_sign: bool = True

    @property
    def id(self) -> str:
        """The key's ID: the end of its fingerprint."""
        return self.fingerprint[-16:]


class Signed(NamedTuple):
    """A document whose signature is good.

    Attributes:
        text: what was signed, and nothing of what stood around it.
        fingerprint: of the key.
        signed_s: when, in seconds since 1970.
    """

    text: bytes
    fingerprint: str
    signed_s: int


class _Signature(NamedTuple):
    """A version 4 signature packet, taken apart."""

    kind: int
    algorithm: int
    hash_id: int
    hashed: bytes  # what of the packet goes into the hash
    start: bytes  # the first two bytes of the digest
    value: int
    subpackets: dict[int, bytes]
    has_unknown_critical: bool

    @property
    def created_s(self) -> int:
        return int.from_bytes(self.subpackets.get(_CREATED, b""), "big")

    @property
    def issuer(self) -> str:
        """The ID of the key that claims to have made it; "" if it does not say."""
        fingerprint = self.subpackets.get(_ISSUER_FINGERPRINT, b"")
        return (fingerprint[1:] or self.subpackets.get(_ISSUER, b""))[-8:].hex().upper()


def read_keyring(data: bytes) -> list[Key]:
    """Return the keys of a keyring that can be used here, as binary packets or armored.

    Raises:
        SetupError: it is no keyring.
    """
    armored = _ARMORED_KEYS.findall(data)
    try:
        blocks = [_dearmor(block) for block in armored] if armored else [data]
        return [key for block in blocks for key in _keys(block)]
    except (ValueError, IndexError) as error:
        raise SetupError(f"it is no OpenPGP keyring ({error})") from error


def verify_clearsigned(
    document: bytes, keys: Sequence[Key], *, now_s: float | None = None
) -> Signed:
    """Return what a document says, if one of the keys has signed it.

    Raises:
        NotSigned: it has another form.
        BadSignature: no signature is a good one by one of the keys.
        NotYet: one would be, were it not of the future.
    """
    now = time.time() if now_s is None else now_s
    text, armor = _split(document)
    try:
        signatures = list(_signatures(_dearmor(armor)))
    except (ValueError, IndexError) as error:
        raise NotSigned(f"its signature is damaged ({error})") from error
    if len(signatures) > _SIGNATURES_MAX:
        raise NotSigned(f"it has more than {_SIGNATURES_MAX} signatures")
    canonical = b"\r\n".join(text)
    reasons = []
    late: NotYet | None = None
    for signature in signatures:
        why = _refusal(signature, keys, canonical, now)
        if isinstance(why, Key):
            return Signed(b"\n".join(text) + b"\n", why.fingerprint, signature.created_s)
        if isinstance(why, NotYet):
            late = why
        else:
            reasons.append(why)
    if late is not None:
        raise late
    raise BadSignature("; ".join(dict.fromkeys(reasons)) or "it has no signature")


def _refusal(
    signature: _Signature, keys: Sequence[Key], canonical: bytes, now: float
) -> Key | NotYet | str:
    """Return the key that made a signature, or why it does not count."""
    found = [key for key in keys if not signature.issuer or key.id == signature.issuer]
    if not found:
        return f"signed by the key {signature.issuer}, which is not trusted here"
    if signature.kind != _TEXT or signature.algorithm not in _RSA:
        return f"signed by {signature.issuer} in a way that is not known here"
    if signature.hash_id not in _HASHES or signature.has_unknown_critical:
        return f"signed by {signature.issuer} in a way that is not known here"
    key = next((key for key in found if _is_by(signature, key, canonical)), None)
    if key is None:
        return f"the signature by {signature.issuer} is wrong: the text was changed on its way"
    created = signature.created_s
    life_s = int.from_bytes(signature.subpackets.get(_EXPIRES, b""), "big")
    if key.is_revoked or not key.may_sign:
        return f"the key {key.id} may not sign any more"
    if not created or created < key.created_s:
        return f"the signature by {key.id} is older than the key"
    if created > now:
        return NotYet(f"it was signed on {_day(created)}, and here it is {_day(now)}")
    if key.expires_s is not None and max(now, created) >= key.expires_s:
        return f"the key {key.id} expired on {_day(key.expires_s)}"
    if life_s and created + life_s <= now:
        return f"the signature by {key.id} expired on {_day(created + life_s)}"
    return key


def _is_by(signature: _Signature, key: Key, canonical: bytes) -> bool:
    """Whether a key has made a signature of this text (RFC 8017, 8.2.2)."""
    name, prefix = _HASHES[signature.hash_id]
    trailer = b"\x04\xff" + len(signature.hashed).to_bytes(4, "big")
    digest = hashlib.new(name, canonical + signature.hashed + trailer).digest()
    size = (key.modulus.bit_length() + 7) // 8
    if digest[:2] != signature.start or not 0 < signature.value < key.modulus:
        return False
    tail = b"\0" + prefix + digest
    expected = b"\0\1" + b"\xff" * (size - len(tail) - 2) + tail
    return pow(signature.value, key.exponent, key.modulus).to_bytes(size, "big") == expected


def _day(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(time_s))


def _split(document: bytes) -> tuple[list[bytes], bytes]:
    """Return a document's lines as they are signed, and its armored signatures (RFC 9580, 7)."""
    if len(document) > DOCUMENT_BYTES_MAX:
        raise NotSigned(f"it has more than {DOCUMENT_BYTES_MAX} bytes")
    lines = [line.rstrip(b" \t\r") for line in document.split(b"\n")]
    if lines[0] != _BEGIN:
        raise NotSigned("it does not begin as a signed document does")
    try:
        start = lines.index(b"") + 1
        middle = lines.index(_BEGIN_SIGNATURE, start)
        end = lines.index(_END_SIGNATURE, middle)
    except ValueError:
        raise NotSigned("it is cut short") from None
    # Anything else there would be taken for signed by the next one who reads the file.
    if any(lines[end + 1 :]) or not all(
        line.startswith(b"Hash: ") for line in lines[1 : start - 1]
    ):
        raise NotSigned("something that is not signed stands beside the signed text")
    text = [line.removeprefix(b"- ") for line in lines[start:middle]]
    return text, b"\n".join(lines[middle + 1 : end])


def _dearmor(block: bytes) -> bytes:
    """Return what an armored block holds; its checksum, if any, is not looked at (6.1)."""
    lines = [line.strip() for line in block.strip(b"\n").split(b"\n")]
    if b"" in lines:
        lines = lines[lines.index(b"") + 1 :]
    text = b"".join(line for line in lines if not line.startswith(b"="))
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type, body) of packets (4.2)."""
    at = 0
    while at < len(data):
        head = data[at]
        if not head & 0x80:
            raise ValueError("no packet")
        if head & 0x40:
            kind = head & 0x3F
            length, at = _new_length(data, at + 1)
        else:
            kind, size = head >> 2 & 0x0F, 1 << (head & 3)
            if size == 8:
                raise ValueError("a packet without an end")
            length = int.from_bytes(data[at + 1 : at + 1 + size], "big")
            at += 1 + size
        if at + length > len(data):
            raise ValueError("cut short")
        yield kind, data[at : at + length]
        at += length


def _new_length(data: bytes, at: int) -> tuple[int, int]:
    """Return a length as packets and subpackets have it, and what comes after (4.2.1, 5.2.3.7)."""
    first = data[at]
    if first < 192:
        return first, at + 1
    if first < 224:
        return (first - 192 << 8) + data[at + 1] + 192, at + 2
    if first == 255:
        return int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
    raise ValueError("a packet in parts")


def _mpi(data: bytes, at: int) -> tuple[int, int]:
    """Return a multiprecision integer, and what comes after it (3.2)."""
    size = (int.from_bytes(data[at : at + 2], "big") + 7) // 8
    if at + 2 + size > len(data):
        raise ValueError("cut short")
    return int.from_bytes(data[at + 2 : at + 2 + size], "big"), at + 2 + size


def _keys(data: bytes) -> Iterator[Key]:
    """Yield a keyring's keys; those of other kinds than RSA are left out (5.5.2)."""
    primary, current = "", None
    found: list[Key] = []
    for kind, body in _packets(data):
        if kind in (_PUBLIC_KEY, _PUBLIC_SUBKEY):
            fingerprint = hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest()
            if kind == _PUBLIC_KEY:
                primary = fingerprint[-16:].upper()
            current = _key(body, fingerprint.upper())
            if current is not None:
                found.append(current)
        elif kind == _SIGNATURE and current is not None:
            signature = _signature(body)
            if signature is not None and signature.issuer == primary:
                _apply(signature, current)
    yield from found


def _key(body: bytes, fingerprint: str) -> Key | None:
    if body[0] != 4 or body[5] not in _RSA:
        return None
    modulus, at = _mpi(body, 6)
    exponent, _ = _mpi(body, at)
    if modulus.bit_length() < _RSA_BITS_MIN:
        return None
    return Key(fingerprint, modulus, exponent, int.from_bytes(body[1:5], "big"))


def _apply(signature: _Signature, key: Key) -> None:
    """Note what its owner says of a key; what is said last stands last in a keyring."""
    if signature.kind in _REVOCATIONS:
        key.is_revoked = True
    if signature.kind in (*_CERTIFICATIONS, _SUBKEY_BINDING):
        life_s = int.from_bytes(signature.subpackets.get(_KEY_EXPIRES, b""), "big")
        key.expires_s = key.created_s + life_s if life_s else None
        flags = signature.subpackets.get(_KEY_FLAGS)
        key.may_sign = flags is None or bool(flags[:1] and flags[0] & _MAY_SIGN)


def _signatures(data: bytes) -> Iterator[_Signature]:
    for kind, body in _packets(data):
        signature = _signature(body) if kind == _SIGNATURE else None
        if signature is not None:
            yield signature


def _signature(body: bytes) -> _Signature | None:
    """Take a signature packet apart; None for other versions (5.2.3)."""
    if body[0] != 4:
        return None
    hashed_end = 6 + int.from_bytes(body[4:6], "big")
    unhashed_end = hashed_end + 2 + int.from_bytes(body[hashed_end : hashed_end + 2], "big")
    subpackets: dict[int, bytes] = {}
    has_unknown = False
    # Who made it may stand where it is not signed; all else has to be.
    for kind, content in _subpackets(body[hashed_end + 2 : unhashed_end]):
        if kind & ~_IS_CRITICAL == _ISSUER:
            subpackets[_ISSUER] = content
    for kind, content in _subpackets(body[6:hashed_end]):
        subpackets[kind & ~_IS_CRITICAL] = content
        has_unknown |= bool(kind & _IS_CRITICAL) and kind & ~_IS_CRITICAL not in _HARMLESS
    start = body[unhashed_end : unhashed_end + 2]
    value = _mpi(body, unhashed_end + 2)[0] if body[2] in _RSA else 0
    return _Signature(
        body[1], body[2], body[3], body[:hashed_end], start, value, subpackets, has_unknown
    )


def _subpackets(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        first = data[at]
        if first < 192:
            length, at = first, at + 1
        elif first < 255:
            length, at = (first - 192 << 8) + data[at + 1] + 192, at + 2
        else:
            length, at = int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
        if not length or at + length > len(data):
            raise ValueError("a damaged signature")
        yield data[at], data[at + 1 : at + length]
        at += length
