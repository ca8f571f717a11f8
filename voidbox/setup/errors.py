"""What is wrong with an archive of packages, or with what should be built from it."""

from __future__ import annotations

from voidbox.errors import ConfigError


class SetupError(ConfigError):
    """A kernel or an image cannot be made: the message says why, and what to do."""
