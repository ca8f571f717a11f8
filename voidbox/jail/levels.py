"""How much of the jail is wanted."""

from __future__ import annotations

import os

# What the host has, and a word on what is missing; all of it, or no start; nothing.
DEFAULT, STRICT, OFF = LEVELS = ("default", "strict", "off")
VARIABLE = "VOIDBOX_JAIL"


def choose(given: str | None) -> str | None:
    """Return the level that was given, else that of $VOIDBOX_JAIL, else the default.

    Returns:
        None if it is none of LEVELS.
    """
    level = given if given is not None else os.environ.get(VARIABLE) or DEFAULT
    return level if level in LEVELS else None
