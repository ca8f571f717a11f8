"""What commands, files and terminals of one sandbox share: its agent, and what it was told once."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from voidbox.errors import ConfigError

if TYPE_CHECKING:  # the command line needs no asyncio to make a sandbox
    from voidbox.agent.aio import AsyncAgent

WORKDIR = "/workspace"


class Session:
    """A sandbox as its requests see it.

    Args:
        agent: in its guest.
        name: of the sandbox, for messages.
        envs: variables of every command.
        workdir: where relative paths begin; /workspace by default.
        user: who commands and files belong to; the guest's "sandbox" by default.
        standstill: whether the guest stands still, and for how long it has done so all in all.

    Attributes:
        paused_s: how long it had stood still when a request was made last.
    """

    def __init__(
        self,
        agent: AsyncAgent,
        name: str,
        envs: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        standstill: Callable[[], tuple[bool, float]] = lambda: (False, 0.0),
    ) -> None:
        self.agent = agent
        self.name = name
        self.envs = dict(envs or {})
        self.workdir = workdir
        self.user = user
        self.paused_s = 0.0
        self._standstill = standstill

    def path(self, path: str) -> str:
        """Return an absolute path of the guest."""
        if not isinstance(path, str) or not path:
            raise ConfigError(f"{path!r} is no path in the sandbox: give a string")
        return posixpath.join(self.workdir or WORKDIR, path)

    def values(self, user: str | None, **others: object) -> dict[str, object]:
        """Return a request's map, with its user, without what is None."""
        values = {name: value for name, value in others.items() if value is not None}
        user = self.user if user is None else user
        return values if user is None else {**values, "user": user}

    def limit_s(self, request_timeout: float | None) -> float:
        """Return how long a request that the guest answers may take.

        Raises:
            ConfigError: it makes no sense, or the sandbox is paused, so that nobody would answer.
        """
        limit_s = self.seconds(request_timeout)
        if self.is_paused():
            raise ConfigError(f"{self.name} is paused: resume() lets it go on")
        return limit_s

    def is_paused(self) -> bool:
        """Whether the guest stands still; looks at `paused_s` anew too."""
        is_paused, self.paused_s = self._standstill()
        return is_paused

    def seconds(self, request_timeout: float | None) -> float:
        """Return how long anything else may take.

        Raises:
            ConfigError: it makes no sense.
        """
        if request_timeout is None:
            return self.agent.request_timeout_s
        return check_seconds("request_timeout", request_timeout)


def check_seconds(name: str, value: float) -> float:
    """Return a time limit that makes sense.

    Raises:
        ConfigError: it is not a positive number.
    """
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not 0 < value < 1e9
        or math.isnan(value)
    ):
        raise ConfigError(f"{name}={value!r}: give a positive number of seconds, or None")
    return float(value)
