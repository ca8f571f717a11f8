"""The packages of an archive: an index of its lists, and one stanza taken apart when it is needed.

A list of Debian's has 60,000 stanzas in 50 MB. Only where each begins is looked for, in one pass.
deb822(5), deb-control(5), and Debian Policy, 7.1, for relations.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator

from voidbox.named_tuple import NamedTuple
from voidbox.setup import versions
from voidbox.setup.errors import SetupError
from voidbox.setup.release import Digest

ARCHITECTURE = "amd64"
_ARCHITECTURES = (ARCHITECTURE, "all")
_START = re.compile(rb"^Package: ([a-z0-9][a-z0-9+.-]*)[ \t]*$", re.MULTILINE)
_PROVIDES = re.compile(rb"^Provides: (.*)$", re.MULTILINE)
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")  # Debian Policy, 5.6.1
_RELATION = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9+.-]*)(?::(?P<architecture>[a-z0-9-]+))?\s*"
    r"(?:\(\s*(?P<relation><<|<=|=|>=|>>|<|>)\s*(?P<version>[^\s)]+)\s*\))?"
    r"(?:\s*\[[^\]]*\])?(?:\s*<[^>]*>)*"
)
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.~_:%/-]*\.deb")
_VERSION = re.compile(r"[0-9][A-Za-z0-9.+:~-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
PRIORITIES = ("required", "important", "standard", "optional", "extra")


class Wanted(NamedTuple):
    """One alternative of a dependency.

    Attributes:
        relation, version: "" for any version.
    """

    name: str
    relation: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.relation} {self.version})" if self.relation else self.name

    def is_met_by(self, version: str) -> bool:
        """Whether that version of the package will do."""
        return not self.relation or versions.is_satisfied(version, self.relation, self.version)


class Provided(NamedTuple):
    """A name that a package stands for; `version` is "" where it names none."""

    name: str
    version: str


class Package(NamedTuple):
    """A package that can be had.

    Attributes:
        uri: of the archive; `path` of the file below it.
        digest: of the file.
        needs: its Pre-Depends and Depends: of each, one alternative has to be there.
        refuses: its Conflicts and Breaks.
        stanza: all that its archive says of it.
    """

    name: str
    version: str
    architecture: str
    uri: str
    path: str
    digest: Digest
    needs: tuple[tuple[Wanted, ...], ...]
    refuses: tuple[Wanted, ...]
    provides: tuple[Provided, ...]
    is_essential: bool
    priority: str
    stanza: str

    @property
    def file_name(self) -> str:
        """What the file is called in a cache, as apt calls it."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


def check_name(name: str) -> None:
    """Raises SetupError for what cannot be a package's name."""
    if not _NAME.fullmatch(name):
        raise SetupError(f"{name!r} is no name of a Debian package")


class PackageList:
    """One list, as an archive has it.

    Args:
        content: unpacked.
        uri: of the archive.
    """

    def __init__(self, content: bytes, uri: str) -> None:
        self._content = content
        self._uri = uri
        self._starts: list[int] = []
        self._names: list[str] = []
        for match in _START.finditer(content):
            self._starts.append(match.start())
            self._names.append(match[1].decode())
        self._by_name: dict[str, list[int]] = {}
        for idx, name in enumerate(self._names):
            self._by_name.setdefault(name, []).append(idx)
        self._providers: dict[str, list[int]] | None = None

    def named(self, name: str) -> Iterator[Package]:
        """Yield the packages of a name."""
        for idx in self._by_name.get(name, ()):
            yield self._package(idx)

    def providing(self, name: str) -> Iterator[Package]:
        """Yield the packages that stand for a name."""
        if self._providers is None:
            self._providers = {}
            for match in _PROVIDES.finditer(self._content):
                idx = bisect_right(self._starts, match.start()) - 1
                for provided in _relations(match[1].decode("utf-8", "replace")):
                    self._providers.setdefault(provided[0].name, []).append(idx)
        for idx in self._providers.get(name, ()):
            yield self._package(idx)

    def with_line(self, line: bytes) -> Iterator[Package]:
        """Yield the packages whose stanza has a line, such as b"Essential: yes"."""
        for match in re.finditer(rb"^%s[ \t]*$" % re.escape(line), self._content, re.MULTILINE):
            yield self._package(bisect_right(self._starts, match.start()) - 1)

    def _package(self, idx: int) -> Package:
        start = self._starts[idx]
        end = self._content.find(b"\n\n", start)
        text = self._content[start : end if end >= 0 else len(self._content)]
        return parse_package(text.decode("utf-8", "replace"), self._uri)


def parse_package(stanza: str, uri: str) -> Package:
    """Return what an archive says of a package.

    Raises:
        SetupError: nothing that could be used.
    """
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.split("\n"):
        if line[:1] in (" ", "\t"):
            fields[name] = f"{fields.get(name, '')} {line.strip()}"
        else:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    package, version = fields.get("Package", ""), fields.get("Version", "")
    path, sha256 = fields.get("Filename", ""), fields.get("SHA256", "")
    size, architecture = fields.get("Size", ""), fields.get("Architecture", "")
    if not (
        _VERSION.fullmatch(version)
        and _FILE.fullmatch(path)
        and ".." not in path
        and _SHA256.fullmatch(sha256)
        and re.fullmatch("[0-9]{1,12}", size)
        and re.fullmatch("[a-z0-9-]+", architecture)
    ):
        raise SetupError(f"the archive's list says nothing that can be used of {package}")
    needs = (*_relations(fields.get("Pre-Depends", "")), *_relations(fields.get("Depends", "")))
    refuses = (*_relations(fields.get("Conflicts", "")), *_relations(fields.get("Breaks", "")))
    return Package(
        package, version, architecture, uri, path, Digest(int(size), sha256),
        needs=needs,
        refuses=tuple(wanted for group in refuses for wanted in group),
        provides=tuple(
            Provided(wanted.name, wanted.version)
            for group in _relations(fields.get("Provides", ""))
            for wanted in group
        ),
        is_essential=fields.get("Essential") == "yes",
        priority=fields.get("Priority", "optional"),
        stanza=stanza,
    )  # fmt: skip


def is_for_us(package: Package) -> bool:
    """Whether a package runs on the machine that guests are."""
    return package.architecture in _ARCHITECTURES


def _relations(text: str) -> tuple[tuple[Wanted, ...], ...]:
    """Return a field's groups of alternatives."""
    groups = []
    for group in filter(str.strip, text.split(",")):
        alternatives = []
        for word in group.split("|"):
            match = _RELATION.fullmatch(word.strip())
            if match is not None:
                alternatives.append(
                    Wanted(match["name"], match["relation"] or "", match["version"] or "")
                )
        groups.append(tuple(alternatives))
    return tuple(groups)
