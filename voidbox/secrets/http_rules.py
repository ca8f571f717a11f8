"""Rules for what the guest may ask of a host by HTTP.

    GET api.github.com/repos/acme/*                   these paths, by GET
    GET,HEAD api.github.com/repos/acme/* 60/min       at most 60 requests a minute
    api.example.com 10M/min                           anything, 10 MiB a minute, both ways

A `*` in a path stands for anything, slashes too. A host that a rule speaks of answers what one of
its rules allows, and nothing else. The query is not part of a path.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.secrets.spec import Place, parse_place

RULES_MAX = 256
PERIOD_S = 60.0
PATH_BYTES_MAX = 8 << 10  # as servers have it

_METHODS = re.compile(r"\*|[A-Z][A-Z_-]{0,31}(,[A-Z][A-Z_-]{0,31})*")
_LIMIT = re.compile(r"([1-9][0-9]{0,11})([KMG]?)/min")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_DOTS = re.compile(rb"(?:^|[/\\])\.{1,2}(?:[/\\;]|$)")
_HOW = 'write "[METHODS] HOST[/PATH] [N/min] [SIZE/min]", as in "GET api.github.com/repos/acme/*"'


class HttpRule(NamedTuple):
    """One rule.

    Attributes:
        text: as the user wrote it.
        methods: empty for all of them.
        path: a pattern.
        requests, size_bytes: what passes in a minute; None for no limit.
    """

    text: str
    place: Place
    methods: frozenset[bytes]
    path: str
    requests: int | None = None
    size_bytes: int | None = None

    def matches_path(self, path: bytes) -> bool:
        """Whether it allows a path, as it is and as the server may read it."""
        return all(_fits(self.path.encode(), form) for form in (path, unquote_to_bytes(path)))


def parse_http_rule(text: str) -> HttpRule:
    """Return what a rule says.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(text, str):
        raise ConfigError(f"http rule {text!r}: a rule is a string, such as 'GET example.com/*'")
    words = text.split()
    limits: dict[str, int] = {}
    try:
        while words and words[-1].endswith("/min"):
            _parse_limit(words.pop(), limits)
        methods = words.pop(0) if len(words) == 2 else "*"
        if len(words) != 1:
            raise ConfigError(_HOW)
        if not _METHODS.fullmatch(methods):
            raise ConfigError(f"{methods!r} is no method: write GET, or GET,HEAD, or * for any")
        if "://" in words[0] or "?" in words[0] or "#" in words[0]:
            raise ConfigError(f"a host and a path alone: {_HOW}")
        host, slash, path = words[0].partition("/")
        if not path.isascii() or _DOTS.search(b"/" + path.encode()):
            raise ConfigError("a path is ASCII, and has no . or .. in it")
        chosen = () if methods == "*" else methods.encode().split(b",")
        return HttpRule(
            text,
            parse_place(host),
            frozenset(chosen),
            f"/{path}" if slash else "*",
            limits.get("requests"),
            limits.get("size"),
        )
    except ConfigError as error:
        raise ConfigError(f"http rule {text!r}: {error}") from None


def _parse_limit(word: str, limits: dict[str, int]) -> None:
    found = _LIMIT.fullmatch(word)
    if found is None:
        raise ConfigError(f"{word!r}: write 60/min for requests, or 10M/min for bytes")
    key = "size" if found[2] else "requests"
    if key in limits:
        raise ConfigError(f"{word!r}: one limit for requests, and one for bytes")
    limits[key] = int(found[1]) * _UNITS[found[2]]


class Refused(NamedTuple):
    """Why a request does not pass, and with which status."""

    status: int
    why: str
    retry_s: int | None = None


class _Use:
    """What has passed by a rule in this minute."""

    def __init__(self) -> None:
        self.start_s = 0.0
        self.requests = 0
        self.size_bytes = 0

    def at(self, now_s: float) -> _Use:
        if now_s - self.start_s >= PERIOD_S:
            self.start_s, self.requests, self.size_bytes = now_s, 0, 0
        return self


class HttpRules:
    """All rules of a sandbox, and what has passed by them. Thread: any.

    Raises:
        ConfigError: one is none, or they are too many.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        if isinstance(texts, str):
            raise ConfigError(f"http={texts!r}: a list of rules, such as [{texts!r}]")
        self.rules = tuple(map(parse_http_rule, texts))
        if len(self.rules) > RULES_MAX:
            raise ConfigError(f"{len(self.rules)} rules for HTTP; at most {RULES_MAX}")
        self._lock = threading.Lock()
        self._uses = [_Use() for _ in self.rules]

    def hosts(self) -> set[str]:
        """Return the hosts that they speak of."""
        return {rule.place.host for rule in self.rules}

    def admit(self, host: str, method: bytes, path: bytes, now_s: float) -> Refused | int | None:
        """Return the number of the rule that a request passes by, None if its host has none.

        Args:
            path: without the query.
        """
        of_host = [
            (number, rule) for number, rule in enumerate(self.rules) if rule.place.host == host
        ]
        if not of_host:
            return None
        if len(path) > PATH_BYTES_MAX:
            return Refused(403, f"its path has more than {PATH_BYTES_MAX >> 10} KiB")
        if has_dots(path):
            return Refused(403, "its path has . or .. in it, which may lead elsewhere")
        fits = [(n, r) for n, r in of_host if r.matches_path(path)]
        if not fits:
            return Refused(403, f"no rule for {host} allows this path")
        fits = [(n, r) for n, r in fits if not r.methods or method in r.methods]
        if not fits:
            return Refused(403, f"no rule for {host} allows {_word(method)} here")
        return self._take(fits, now_s)

    def _take(self, fits: list[tuple[int, HttpRule]], now_s: float) -> Refused | int:
        with self._lock:
            for number, rule in fits:
                use = self._uses[number].at(now_s)
                if rule.requests is None or use.requests < rule.requests:
                    use.requests += 1
                    return number
            number, rule = fits[0]
            wait_s = max(1, int(self._uses[number].start_s + PERIOD_S - now_s) + 1)
        return Refused(429, f"the rule {rule.text!r} allows no more in this minute", wait_s)

    def count(self, number: int | None, size: int, now_s: float) -> float:
        """Note that bytes have passed; return for how long no more should."""
        if number is None or (size_max := self.rules[number].size_bytes) is None:
            return 0.0
        with self._lock:
            use = self._uses[number].at(now_s)
            use.size_bytes += size
            if use.size_bytes < size_max:
                return 0.0
            return use.start_s + PERIOD_S - now_s


def has_dots(path: bytes) -> bool:
    """Whether a path has a "." or ".." segment, however often it is encoded."""
    for _ in range(4):
        if _DOTS.search(path):
            return True
        decoded = unquote_to_bytes(path)
        if decoded == path:
            return False
        path = decoded
    return True


def _fits(pattern: bytes, path: bytes) -> bool:
    """Whether a path fits a pattern; in time that grows with its length alone."""
    first, *others = pattern.split(b"*")
    if not others:
        return path == first
    last = others.pop()
    if not path.startswith(first) or len(path) < len(first) + len(last) or not path.endswith(last):
        return False
    start, end = len(first), len(path) - len(last)
    for part in others:
        found = path.find(part, start, end)
        if found < 0:
            return False
        start = found + len(part)
    return True


def _word(method: bytes) -> str:
    return method[:32].decode("ascii", "replace")
