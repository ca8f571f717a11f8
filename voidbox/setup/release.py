"""A suite's InRelease: who signed it, how old it is, and the digests of its lists.

Debian's repository format, "Release" files. Nothing of it is believed before its signature was
checked; nor is a suite that calls itself by another name than it was asked for, which the same key
may have signed.
"""

from __future__ import annotations

import calendar
import email.utils
import re
import time
from collections.abc import Sequence

from voidbox.named_tuple import NamedTuple
from voidbox.setup import openpgp
from voidbox.setup.errors import SetupError

_FILES_MAX = 100_000
_LINE = re.compile(r" ([0-9a-f]{64}) +([0-9]{1,15}) (\S+)")
_CLOCK = "set this machine's clock (timedatectl set-ntp true)"


class Digest(NamedTuple):
    """What a file has to be."""

    size_bytes: int
    sha256: str


class Release(NamedTuple):
    """A suite, as its signed list of lists tells it.

    Attributes:
        suite: as it was asked for.
        date_s: when it was made; `valid_until_s`: None where it does not expire.
        has_by_hash: whether lists lie under their digests, too (Acquire-By-Hash).
        files: by path below the suite's folder.
    """

    suite: str
    date_s: int
    valid_until_s: int | None
    has_by_hash: bool
    files: dict[str, Digest]

    def is_expired(self, now_s: float) -> bool:
        """Whether it is past its time."""
        return self.valid_until_s is not None and now_s > self.valid_until_s


def read_release(
    document: bytes,
    suite: str,
    keys: Sequence[openpgp.Key],
    *,
    where: str,
    now_s: float | None = None,
) -> Release:
    """Check an InRelease, and return what it says; whether it has expired is the caller's to ask.

    Args:
        suite: what was asked for.
        where: it came from; for messages.
    Raises:
        SetupError: it is not signed by one of the keys, is another suite, or comes from the future.
    """
    now = time.time() if now_s is None else now_s
    try:
        signed = openpgp.verify_clearsigned(document, keys, now_s=now)
    except openpgp.NotSigned as error:
        raise SetupError(f"{where} {_said_of(document)}: {error}") from error
    except openpgp.NotYet as error:
        raise SetupError(f"{where} comes from the future: {error}: {_CLOCK}") from error
    except openpgp.BadSignature as error:
        raise SetupError(
            f"{where} is not signed by Debian: {error}; nothing of it is used: try another "
            "--mirror, or name the archive's keys with --keyring FILE"
        ) from error
    release = _parse(signed.text, suite, where)
    if release.date_s > now:
        raise SetupError(
            f"{where} is of {shown_time(release.date_s)}, and here it is {shown_time(now)}: "
            f"{_CLOCK}"
        )
    return release


def shown_time(time_s: float) -> str:
    """Return a time as messages have it."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(time_s))


def _said_of(document: bytes) -> str:
    start = document[:1024].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page (does this network want a log-in in a browser first?)"
    return "is no signed list"


def _parse(text: bytes, suite: str, where: str) -> Release:
    fields: dict[str, str] = {}
    files: dict[str, Digest] = {}
    section = ""
    for line in text.decode("utf-8", "replace").split("\n"):
        if not line.startswith(" "):
            section, _, value = line.partition(":")
            fields[section] = value.strip()
        elif section == "SHA256":
            match = _LINE.fullmatch(line)
            if match is None or len(files) >= _FILES_MAX:
                raise SetupError(f"{where} is signed, but has a line that is no digest: {line!r}")
            files[match[3]] = Digest(int(match[2]), match[1])
    if suite not in (fields.get("Codename"), fields.get("Suite")):
        found = fields.get("Codename") or "another suite"
        raise SetupError(
            f"{where} is signed, but it is {found!r} and not {suite!r}: try another --mirror"
        )
    date_s = _time(fields.get("Date", ""))
    if date_s is None or not files:
        raise SetupError(f"{where} is signed, but names no date or no lists")
    until_s = _time(fields["Valid-Until"]) if "Valid-Until" in fields else None
    if "Valid-Until" in fields and until_s is None:
        raise SetupError(f"{where} is signed, but how long it is valid cannot be read")
    return Release(suite, date_s, until_s, fields.get("Acquire-By-Hash") == "yes", files)


def _time(text: str) -> int | None:
    parsed = email.utils.parsedate_tz(text)
    if parsed is None:
        return None
    try:
        return calendar.timegm(parsed[:9]) - (parsed[9] or 0)
    except (ValueError, OverflowError):
        return None
