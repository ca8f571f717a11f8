"""Signatures: those that gpg makes are good, and nothing else is."""

from __future__ import annotations

import dataclasses
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.unit.setup.signer import BORN_S, Signer, subpacket
from voidbox.setup.archive import _read_keys
from voidbox.setup.errors import SetupError
from voidbox.setup.openpgp import (
    BadSignature,
    NotSigned,
    NotYet,
    read_keyring,
    verify_clearsigned,
)

TEXT = "Origin: Test\n- a dash\n\nend   \nlast\n"
READ = b"Origin: Test\n- a dash\n\nend\nlast\n"
ONE, OTHER = Signer(0), Signer(1)
KEYS = read_keyring(ONE.keyring())
DAY_S = 24 * 3600


def test_what_was_signed_is_returned_and_nothing_else() -> None:
    signed = verify_clearsigned(ONE.clearsign(TEXT), KEYS)
    assert signed.text == READ
    assert signed.fingerprint == ONE.fingerprint
    assert verify_clearsigned(ONE.clearsign(TEXT, hash_id=10), KEYS).text == READ


def test_lines_may_end_as_they_do_elsewhere() -> None:
    document = ONE.clearsign(TEXT).replace(b"\n", b"\r\n")
    assert verify_clearsigned(document, KEYS).text == READ


def test_one_good_signature_among_others_will_do() -> None:
    both = ONE.clearsign(TEXT)
    keys = read_keyring(OTHER.keyring() + ONE.keyring())
    assert [key.fingerprint for key in keys] == [OTHER.fingerprint, ONE.fingerprint]
    assert verify_clearsigned(both, keys).text == READ


@pytest.mark.parametrize("at", range(0, 400, 7))
def test_a_changed_byte_is_noticed(at: int) -> None:
    document = bytearray(ONE.clearsign(TEXT))
    start = document.index(b"Origin")
    document[start + at % (len(document) - start)] ^= 0x11
    with pytest.raises(SetupError):
        signed = verify_clearsigned(bytes(document), KEYS)
        assert signed.text != READ, "a change that changes nothing"
        pytest.fail("it was taken")


def test_a_key_that_is_not_trusted() -> None:
    with pytest.raises(BadSignature, match=f"the key {OTHER.fingerprint[-16:]}, which is not"):
        verify_clearsigned(OTHER.clearsign(TEXT), KEYS)


def test_another_key_that_says_to_be_a_trusted_one() -> None:
    """The issuer is only a hint: OTHER's signature under ONE's name."""
    document = OTHER.clearsign(TEXT)
    keys = [dataclasses.replace(key, fingerprint=OTHER.fingerprint) for key in KEYS]
    with pytest.raises(BadSignature, match="is wrong: the text was changed"):
        verify_clearsigned(document, keys)


@pytest.mark.parametrize(
    ("signer", "options", "words"),
    [
        (Signer(0), {"hash_id": 2}, "in a way that is not known"),  # SHA-1
        (Signer(0), {"kind": 0}, "in a way that is not known"),
        (Signer(0), {"more": subpacket(0x80 | 99, b"x")}, "in a way that is not known"),
        (Signer(0), {"at_s": BORN_S - 1}, "older than the key"),
        (Signer(0), {"hashed": b""}, "older than the key"),
        (Signer(0, life_s=DAY_S), {}, "the key [0-9A-F]{16} expired on 2020-09-14"),
        (Signer(0, is_revoked=True), {}, "may not sign any more"),
        (Signer(0, flags=0x0C), {}, "may not sign any more"),
        (Signer(0), {"more": subpacket(3, (5).to_bytes(4, "big"))}, "by [0-9A-F]{16} expired on"),
    ],
)
def test_signatures_that_do_not_count(
    signer: Signer, options: dict[str, object], words: str
) -> None:
    with pytest.raises(BadSignature, match=words):
        verify_clearsigned(signer.clearsign(TEXT, **options), read_keyring(signer.keyring()))


def test_a_clock_that_is_behind() -> None:
    with pytest.raises(NotYet, match="and here it is 2020-09-13"):
        verify_clearsigned(ONE.clearsign(TEXT), KEYS, now_s=BORN_S + 1)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<html>log in</html>",
        b"Origin: Test\n",
        ONE.clearsign(TEXT)[:-40],
        b"before\n" + ONE.clearsign(TEXT),
        ONE.clearsign(TEXT) + b"after\n",
        ONE.clearsign(TEXT).replace(b"Hash: SHA256\n", b"Origin: Other\n"),
        ONE.clearsign(TEXT).replace(b"=\n-----END", b"!\n-----END"),
    ],
)
def test_other_forms_are_no_signed_documents(document: bytes) -> None:
    with pytest.raises(NotSigned):
        verify_clearsigned(document, KEYS)


def test_damaged_keyrings_and_documents_never_do_worse() -> None:
    """Random damage ends in a SetupError, or in the same text."""
    chance = random.Random(7)
    ring, document = ONE.keyring(), ONE.clearsign(TEXT)
    for _ in range(300):
        bad = bytearray(ring)
        bad[chance.randrange(len(bad))] = chance.randrange(256)
        try:
            keys = read_keyring(bytes(bad[: chance.randrange(1, len(bad) + 1)]))
        except SetupError:
            continue
        assert all(key.modulus.bit_length() >= 2048 for key in keys)
    for _ in range(300):
        bad = bytearray(document)
        bad[chance.randrange(len(bad))] = chance.randrange(256)
        try:
            assert verify_clearsigned(bytes(bad), KEYS).text == READ
        except SetupError:
            continue


def test_the_keys_that_are_shipped() -> None:
    """Those of Debian's archive for 12 and 13: four, each with a subkey that signs."""
    keys = _read_keys(None)
    assert len(keys) == 8
    assert all(key.modulus.bit_length() == 4096 and key.may_sign for key in keys)
    assert all(key.expires_s is not None and key.expires_s > time.time() for key in keys)


@pytest.mark.skipif(not shutil.which("gpg"), reason="needs gpg: apt-get install gnupg")
def test_what_gpg_makes(tmp_path: Path) -> None:
    home = tmp_path / "gnupg"
    home.mkdir(0o700)

    def gpg(*words: str, given: str = "") -> bytes:
        command = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode"]
        command += ["loopback", "--passphrase", "", *words]
        done = subprocess.run(command, input=given.encode(), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        gpg("--quick-generate-key", "A Test", "rsa2048", "sign", "1d")
        exported = gpg("--export")
        document = gpg("--clearsign", given=TEXT)
        armored = gpg("--armor", "--export")
    finally:
        gpgconf = ["gpgconf", "--homedir", str(home), "--kill", "all"]
        subprocess.run(gpgconf, check=False, capture_output=True)
    for ring in (exported, armored):
        assert verify_clearsigned(document, read_keyring(ring)).text == READ
    with pytest.raises(BadSignature, match="is wrong"):
        verify_clearsigned(document.replace(b"Test", b"Pest"), read_keyring(exported))
    with pytest.raises(BadSignature, match="expired on"):
        verify_clearsigned(document, read_keyring(exported), now_s=time.time() + 2 * DAY_S)
