"""What sandboxes are called: an ID that voidbox gives, a name that users may choose."""

from __future__ import annotations

import os
import re
from collections.abc import Container

from voidbox.errors import ConfigError

ID_DIGITS = 12
PREFIX_DIGITS_MIN = 4  # of an ID, to stand for it

_ID = re.compile(r"[0-9a-f]{12}")
_ID_PREFIX = r"[0-9a-f]{4,12}"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")

_ADJECTIVES = (
    "amber bold brave brisk calm clear cosy crisp deep eager early fair fast fine fond free "
    "fresh glad gold grand green happy keen kind late light lively lucky mild neat new noble "
    "pale plain proud pure quick quiet rare ready rich round sharp shy silent silver small "
    "smart snowy soft solid still strong sunny sweet swift tall tidy vast warm wide wild wise"
)
_NOUNS = (
    "acorn alder aspen badger beacon beech birch brook canyon cedar cliff cloud comet coral "
    "crane creek dune eagle elm ember falcon fern field finch fjord forest fox glade grove "
    "harbor hare hawk heron hill island lake lark maple marsh meadow moon moss oak otter owl "
    "pearl pebble pine pond raven reef ridge river robin rock rowan rush sparrow spruce star stone "
    "willow wren"
)


def new_id() -> str:
    """Return an ID that nobody has had."""
    return os.urandom(ID_DIGITS // 2).hex()


def new_name(taken: Container[str]) -> str:
    """Return a name that is not taken, such as quiet-otter-3fa2."""
    while True:
        random = os.urandom(4)
        adjective = _pick(_ADJECTIVES, random[0])
        noun = _pick(_NOUNS, random[1])
        name = f"{adjective}-{noun}-{random[2:].hex()}"
        if name not in taken:
            return name


def is_id(text: str) -> bool:
    """Whether a text has the form of an ID."""
    return _ID.fullmatch(text) is not None


def is_id_prefix(text: str) -> bool:
    """Whether a text may stand for an ID that begins with it."""
    return re.fullmatch(_ID_PREFIX, text) is not None


def is_name(text: str) -> bool:
    """Whether a sandbox may have this name."""
    return _NAME.fullmatch(text) is not None and ".." not in text and not is_id(text)


def check_name(name: str) -> None:
    """Refuse what is no name for a sandbox, or a team.

    Raises:
        ConfigError: says why.
    """
    if not isinstance(name, str):
        raise ConfigError(f"{name!r} cannot be a sandbox's name: give text")
    if is_id(name):
        raise ConfigError(f"{name} cannot be a sandbox's name: it looks like an ID")
    if not is_name(name):
        raise ConfigError(
            f"{name!r} cannot be a sandbox's name: up to 63 letters, digits, '_', '-' and '.' "
            "make one; it begins with a letter or a digit and has no '..'"
        )


def _pick(words: str, random: int) -> str:
    choice = words.split()
    return choice[random % len(choice)]
