"""Where the archive is: what this host's apt has, or the user's mirror.

sources.list(5): files of one line a source, and deb822 stanzas. Only what is Debian's counts: other
archives may well call a suite "bookworm", too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from voidbox.named_tuple import NamedTuple
from voidbox.setup.errors import SetupError

SUITES = ("bookworm", "trixie")
DEFAULT_SUITE = SUITES[0]
ETC = "/etc/apt"
_FILE_BYTES_MAX = 1 << 20
_MIRRORS_MAX = 16
_UPDATES, _SECURITY = "-updates", "-security"
_COMPONENTS = ("main", "contrib", "non-free", "non-free-firmware")
_SCHEMES = ("http", "https", "file")
_ONE_LINE = re.compile(
    r"deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<rest>.*)"
)
_SUITE = re.compile(r"[a-z][a-z0-9.-]{0,63}")
_MIRROR = re.compile(r"(https?://|file:/)[^\s\x00-\x1f]+")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")
_KEYRING = "debian-archive"
# Whose suites apt may have under the same address as ours. Any of them tells where Debian is.
_DEBIAN_SUITES = (
    "bullseye", "bookworm", "trixie", "forky", "sid", "unstable", "testing", "stable",
    "oldstable", "oldoldstable",
)  # fmt: skip


class Source(NamedTuple):
    """One suite at one address.

    Attributes:
        uri: without a slash at its end.
        suite: such as "bookworm-security".
        components: such as ("main",).
        is_needed: whether a mirror without it is none.
    """

    uri: str
    suite: str
    components: tuple[str, ...] = ("main",)
    is_needed: bool = True


def hide_credentials(text: str) -> str:
    """Return a text without the names and passwords of addresses in it."""
    return _CREDENTIALS.sub("", text)


def check_suite(suite: str) -> None:
    """Raises SetupError for what is no suite's name."""
    if not _SUITE.fullmatch(suite):
        raise SetupError(f"{suite!r} is no name of a Debian release: say {' or '.join(SUITES)}")


def mirror_sources(uri: str, suite: str) -> list[Source]:
    """Return the sources at a mirror that a user names; updates may be missing there.

    Raises:
        SetupError: no address, or no suite.
    """
    check_suite(suite)
    if not _MIRROR.fullmatch(uri):
        raise SetupError(
            f"the mirror {hide_credentials(uri)!r} is no address: write it as http://HOST/debian"
        )
    base = uri.rstrip("/")
    found = [Source(base, suite), Source(base, suite + _UPDATES, is_needed=False)]
    # Next to each other on all mirrors that have both.
    if base.endswith("/debian"):
        found.append(Source(base + _SECURITY, suite + _SECURITY, is_needed=False))
    return found


def folder_sources(folder: str, suite: str) -> list[Source]:
    """Return the sources in a folder laid out as a mirror: dists/ and pool/ of all suites.

    Raises:
        SetupError: no such folder, or nothing of the suite in it.
    """
    check_suite(suite)
    path = os.path.abspath(folder)
    if not os.path.isfile(f"{path}/dists/{suite}/InRelease"):
        raise SetupError(
            f"--offline {folder}: there is no dists/{suite}/InRelease in it: "
            "`voidbox setup --save DIR` makes such a folder where there is a network"
        )
    suites = [suite, suite + _UPDATES, suite + _SECURITY]
    return [
        Source(f"file:{path}", name, is_needed=name == suite)
        for name in suites
        if name == suite or os.path.isdir(f"{path}/dists/{name}")
    ]


def host_sources(suite: str, etc: str = ETC) -> list[Source]:
    """Return the host's own sources of a Debian suite.

    Where it has another suite of Debian's, the same mirror is asked for this one.

    Raises:
        SetupError: it has none.
    """
    check_suite(suite)
    entries = [entry for entry in _entries(etc) if _is_debian(entry)]
    exact = [entry for entry in entries if entry.suite in _family(suite)]
    if not any(entry.suite == suite for entry in exact):
        exact = [*_carried_over(entries, suite)]
    merged: dict[tuple[str, str], Source] = {}
    for entry in exact:
        there = merged.get(entry[:2])
        components = (*(there.components if there else ()), *entry.components)
        kept = tuple(dict.fromkeys(name for name in components if name in _COMPONENTS))
        merged[entry[:2]] = Source(entry.uri, entry.suite, kept, entry.suite == suite)
    if not merged:
        raise SetupError(
            f"this host's apt has no source of Debian's {suite}: name a mirror with --mirror URL"
        )
    return sorted(merged.values(), key=lambda source: _family(suite).index(source.suite))


def _family(suite: str) -> tuple[str, str, str]:
    return (suite, suite + _UPDATES, suite + _SECURITY)


def _carried_over(entries: Sequence[Source], suite: str) -> Iterator[Source]:
    """Yield this suite at the addresses that have another one."""
    for entry in entries:
        plain = entry.suite.removesuffix(_UPDATES).removesuffix(_SECURITY)
        if plain in _DEBIAN_SUITES:
            yield entry._replace(suite=suite + entry.suite.removeprefix(plain))


def _is_debian(entry: Source) -> bool:
    """Whether a source can be Debian's: by scheme, suite and component."""
    plain = entry.suite.removesuffix(_UPDATES).removesuffix(_SECURITY)
    is_known = plain in _DEBIAN_SUITES
    return is_known and "main" in entry.components and urlsplit(entry.uri).scheme in _SCHEMES


def _entries(etc: str) -> Iterator[Source]:
    """Yield all sources that apt has, each suite at each address."""
    for path in _files(etc):
        try:
            with open(path, "rb") as file:
                text = file.read(_FILE_BYTES_MAX).decode("utf-8", "replace")
        except OSError:
            continue
        found = _stanzas(text) if path.endswith(".sources") else _lines(text)
        for uri, suite, components in found:
            for address in _addresses(uri):
                yield Source(address.rstrip("/"), suite.rstrip("/"), components)


def _files(etc: str) -> list[str]:
    folder = f"{etc}/sources.list.d"
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        names = []
    kept = [name for name in names if name.endswith((".list", ".sources"))]
    return [f"{etc}/sources.list", *(f"{folder}/{name}" for name in kept)]


_Found = tuple[str, str, tuple[str, ...]]


def _lines(text: str) -> Iterator[_Found]:
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if match is None:
            continue
        options = dict(
            word.partition("=")[::2] for word in (match["options"] or "").split() if "=" in word
        )
        if _is_for_us(options.get("arch", "").split(","), options.get("signed-by", "")):
            yield match["uri"], match["suite"], tuple(match["rest"].split())


def _stanzas(text: str) -> Iterator[_Found]:
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields = _fields(stanza)
        if "deb" not in fields.get("types", "").split():
            continue
        if fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        architectures = fields.get("architectures", "").split()
        if not _is_for_us(architectures, fields.get("signed-by", "")):
            continue
        components = tuple(fields.get("components", "").split())
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield uri, suite, components


def _fields(stanza: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in (" ", "\t"):
            if name:
                fields[name] += f"\n{line.strip()}"
        else:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def _is_for_us(architectures: Sequence[str], signed_by: str) -> bool:
    named = [word for word in architectures if word]
    if named and "amd64" not in named:
        return False
    # Somebody else's archive has a key of its own; one that is written out is looked at later.
    return not signed_by or _KEYRING in signed_by or "BEGIN PGP" in signed_by


def _addresses(uri: str) -> Iterator[str]:
    """Yield the addresses that apt's own scheme for lists of mirrors stands for."""
    if not uri.startswith("mirror+file:"):
        yield uri
        return
    path = "/" + uri.removeprefix("mirror+file:").lstrip("/")
    try:
        with open(path, "rb") as file:
            lines = file.read(_FILE_BYTES_MAX).decode("utf-8", "replace").splitlines()
    except OSError:
        return
    found = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    yield from found[:_MIRRORS_MAX][:1]  # the first is the best; the others are its equals
