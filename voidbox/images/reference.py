"""What images are called, as docker has it: [REGISTRY[:PORT]/]REPOSITORY[:TAG][@DIGEST].

The grammar is that of github.com/distribution/reference. `python` means
docker.io/library/python:latest. The first part names a registry if it has a dot or a colon, or is
localhost.
"""

from __future__ import annotations

import re

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple

DEFAULT_REGISTRY, DEFAULT_TAG = "docker.io", "latest"
_LIBRARY = "library/"  # where docker.io has the repositories that are nobody's own
_REPOSITORY_CHARACTERS_MAX = 255

_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_PART = "[a-z0-9]+(?:(?:[.]|__?|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(f"{_PART}(?:/{_PART})*")
_LABEL = "(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]{0,62}[A-Za-z0-9])"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?")


class Reference(NamedTuple):
    """An image's name, complete.

    Attributes:
        registry: a host with a port or none, such as docker.io or localhost:5000.
        repository: such as library/python.
        tag: "" where the digest alone tells.
        digest: "sha256:…" of the manifest, or "".
    """

    registry: str
    repository: str
    tag: str = DEFAULT_TAG
    digest: str = ""

    @property
    def name(self) -> str:
        """The complete name, by which the store knows it."""
        return self._with(f"{self.registry}/{self.repository}")

    @property
    def familiar(self) -> str:
        """The name as people write it: python:3.12."""
        if self.registry != DEFAULT_REGISTRY:
            return self.name
        return self._with(self.repository.removeprefix(_LIBRARY))

    def _with(self, repository: str) -> str:
        return f"{repository}@{self.digest}" if self.digest else f"{repository}:{self.tag}"


def parse_reference(text: str) -> Reference:
    """Return what an image's name means. A tag beside a digest says nothing more, and is dropped.

    Raises:
        ConfigError: it is none; the message says what is wrong with it.
    """
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise _refusal(text, "a digest is sha256: and 64 hexadecimal digits")
    registry, rest = _split_registry(rest)
    repository, colon, tag = rest.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _refusal(text, "a tag has up to 128 letters, digits, '_', '-' and '.'")
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = _LIBRARY + repository
    _check(text, registry, repository)
    return Reference(registry, repository, "" if digest else tag or DEFAULT_TAG, digest)


def parse_new_name(text: str) -> Reference:
    """Return what the name of an image that is made here means: a digest is a registry's word.

    Raises:
        ConfigError: it is none, or has a digest.
    """
    reference = parse_reference(text)
    if reference.digest:
        raise _refusal(text, "a digest comes from a registry, not with an image that is made here")
    return reference


def is_digest(text: str) -> bool:
    """Whether a text is a digest, of the one kind that is in use. Safe as a file's name then."""
    return _DIGEST.fullmatch(text) is not None


def _split_registry(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if slash and (first == "localhost" or first.lower() != first or set(first) & set(".:[")):
        return first.lower(), rest
    return DEFAULT_REGISTRY, text


def _check(text: str, registry: str, repository: str) -> None:
    host, _, port = registry.rpartition(":")
    is_port = port.isdecimal() and host
    if not _REGISTRY.fullmatch(registry) or (is_port and not 0 < int(port) < 65536):
        raise _refusal(text, f"{registry!r} is no registry's host and port")
    if not repository.removeprefix(_LIBRARY):
        raise _refusal(text, "it names no repository")
    if repository != repository.lower():
        raise _refusal(text, "a repository has small letters only")
    if not _REPOSITORY.fullmatch(repository):
        raise _refusal(
            text,
            "a repository has letters and digits, with single '.', '-' or '_' and '/' in between",
        )
    if len(repository) > _REPOSITORY_CHARACTERS_MAX:
        raise _refusal(text, f"a repository has up to {_REPOSITORY_CHARACTERS_MAX} characters")


def _refusal(text: str, why: str) -> ConfigError:
    shown = text if len(text) <= 80 else f"{text[:80]}…"
    return ConfigError(f"{shown!r} is no image's name: {why}")
