"""What is wrong with an image, an archive or a layer."""

from __future__ import annotations

from voidbox.errors import ConfigError


class ImageError(ConfigError):
    """What should become an image cannot: the message names the entry and the rule it breaks."""
