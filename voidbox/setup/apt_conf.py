"""What this host's apt.conf says that matters to whoever asks the same archive (apt.conf(5))."""

from __future__ import annotations

import contextlib
import os
import re

from voidbox.named_tuple import NamedTuple

_FILE_BYTES_MAX = 1 << 20
_TOKEN = re.compile(
    r"""
    (?: \s+ | //[^\n]* | /\*.*?\*/ | \#(?!clear|include)[^\n]* )   # between words
    | (?P<word> "[^"\n]*" | [{};] | [^\s"{};]+ )
    """,
    re.VERBOSE | re.DOTALL,
)
_NO = ("no", "false", "without", "off", "disable", "0")


class AptConf(NamedTuple):
    """What is configured.

    Attributes:
        proxies: by scheme, or "SCHEME::HOST"; "DIRECT" for none.
        are_dates_checked: whether lists that have expired are refused.
    """

    proxies: dict[str, str] = {}
    are_dates_checked: bool = True


def read_apt_conf(etc: str = "/etc/apt") -> AptConf:
    """Return what the files there say; those that cannot be read say nothing."""
    values: dict[str, str] = {}
    for path in _files(etc):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            _read(file.read(_FILE_BYTES_MAX).decode("utf-8", "replace"), values)
    proxies = {}
    for key, value in values.items():
        parts = key.split("::")
        if parts[0] == "acquire" and parts[2:3] == ["proxy"] and parts[1] in ("http", "https"):
            proxies["::".join([parts[1], *parts[3:]])] = value
    is_checked = values.get("acquire::check-valid-until", "").lower() not in _NO
    return AptConf(proxies, is_checked)


def _files(etc: str) -> list[str]:
    """Return the files in apt's order."""
    names = []
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(f"{etc}/apt.conf.d") if _is_read(name)]
    return [*(f"{etc}/apt.conf.d/{name}" for name in sorted(names)), f"{etc}/apt.conf"]


def _is_read(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-]+(\.conf)?", name) is not None


def _read(text: str, values: dict[str, str]) -> None:
    """Add a file's values, by their names in small letters."""
    scopes: list[str] = []
    pending: list[str] = []
    for match in _TOKEN.finditer(text):
        word = match["word"]
        if word is None:
            continue
        if word == "{":
            scopes.append(pending[0] if pending else "")
            pending = []
        elif word in ("}", ";"):
            if len(pending) == 2:
                name = "::".join(filter(None, [*scopes, pending[0]]))
                values[name.lower()] = pending[1]
            pending = []
            if word == "}" and scopes:
                scopes.pop()
        else:
            pending.append(word.strip('"'))
