"""What a user wants to be different from an image's own configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from voidbox.errors import ConfigError
from voidbox.images.config import ImageConfig, is_clean
from voidbox.named_tuple import NamedTuple


class ConfigChange(NamedTuple):
    """What is to be different from what an image says itself; None leaves it.

    Attributes:
        env: variables more, or with other values.
        entrypoint: () for none; takes away `cmd` too, as docker does.
    """

    env: Mapping[str, str] | None = None
    workdir: str | None = None
    user: str | None = None
    entrypoint: Sequence[str] | None = None
    cmd: Sequence[str] | None = None

    def apply(self, config: ImageConfig) -> ImageConfig:
        """Return the configuration with the changes.

        Raises:
            ConfigError: a value cannot be used.
        """
        self._check()
        if self.env is not None:
            config = config._replace(env={**config.env, **self.env})
        if self.workdir is not None:
            config = config._replace(workdir=self.workdir)
        if self.user is not None:
            config = config._replace(user=self.user)
        if self.entrypoint is not None:
            config = config._replace(entrypoint=tuple(self.entrypoint), cmd=())
        if self.cmd is not None:
            config = config._replace(cmd=tuple(self.cmd))
        return config

    def _check(self) -> None:
        for name, value in (self.env or {}).items():
            if not name or "=" in name or not is_clean(name) or not is_clean(value):
                raise ConfigError(f"{name!r} is no variable, or its value is none")
        if self.workdir is not None and not self.workdir.startswith("/"):
            raise ConfigError(f"the workdir {self.workdir!r} is not absolute")
        words = [self.workdir or "", self.user or "", *(self.entrypoint or ()), *(self.cmd or ())]
        if not all(map(is_clean, words)):
            raise ConfigError("a word of the image's configuration is too long, or has a NUL")
