"""Which level of the jail is asked for, checked."""

from __future__ import annotations

from voidbox.errors import ConfigError
from voidbox.jail import levels


def check_level(jail: str | None) -> str:
    """Return a level of the jail: the given one, or $VOIDBOX_JAIL, or the default.

    Raises:
        ConfigError: it is none.
    """
    level = levels.choose(jail)
    if level is None:
        found = f"jail={jail!r}" if jail is not None else f"{levels.VARIABLE} is no level"
        raise ConfigError(f"{found}: choose {', '.join(levels.LEVELS)}")
    return level
