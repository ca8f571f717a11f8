"""What commands, files and terminals of one sandbox share: its agent, and what it was told once."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from voidbox.errors import AgentError, ConfigError

if TYPE_CHECKING:  # the command line needs no asyncio to make a sandbox
    from voidbox.agent.aio import AsyncAgent

WORKDIR = "/workspace"
_WORD_BYTES_MAX = (128 << 10) - 1  # MAX_ARG_STRLEN, but for the zero at the end; execve(2)
_WORDS_BYTES_MAX = 1000 << 10  # of protocol.PAYLOAD_BYTES_MAX, which is 1 MiB


class Session:
    """A sandbox as its requests see it.

    Args:
        agent: in its guest.
        name: of the sandbox, for messages.
        envs: variables of every command.
        workdir: where relative paths begin; /workspace by default.
        user: who commands and files belong to; the guest's "sandbox" by default.
        standstill: whether the guest stands still, and for how long it has done so all in all.
        shared: the host's folders that the guest has live, by where it has them; None for what is
            mounted there and is no folder of the host's.

    Attributes:
        paused_s: how long it had stood still when a request was made last.
        ended: what to say once this program itself has ended it; "" until then.
        output_bytes_kept: of each stream of a command, for its result, the last ones; None: as many
            as the SDK keeps.
    """

    def __init__(
        self,
        agent: AsyncAgent,
        name: str,
        envs: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        standstill: Callable[[], tuple[bool, float]] = lambda: (False, 0.0),
        shared: Mapping[str, str | None] | None = None,
    ) -> None:
        self.agent = agent
        self.name = name
        self.envs = dict(envs or {})
        self.workdir = workdir
        self.user = user
        self.paused_s = 0.0
        self.ended = ""
        self.output_bytes_kept: int | None = None
        self._standstill = standstill
        self._shared = dict(shared or {})

    def path(self, path: str) -> str:
        """Return an absolute path of the guest."""
        if not isinstance(path, str) or not path:
            raise ConfigError(f"{path!r} is no path in the sandbox: give a string")
        return posixpath.join(self.workdir or WORKDIR, path)

    def shared_parts(self, path: str) -> tuple[str, tuple[str, ...]] | None:
        """Return which folder of the host an absolute path leads into, and the names on the way.

        None if it is in none.
        """
        path = posixpath.normpath(path)
        found = [at for at in self._shared if path == at or path.startswith(f"{at}/")]
        at = max(found, key=len, default="")  # the innermost covers the others
        folder = self._shared.get(at)
        if folder is None:
            return None
        return folder, tuple(filter(None, path[len(at) :].split("/")))

    def values(self, user: str | None, **others: object) -> dict[str, object]:
        """Return a request's map, with its user, without what is None."""
        values = {name: value for name, value in others.items() if value is not None}
        user = self.user if user is None else user
        return values if user is None else {**values, "user": user}

    def limit_s(self, request_timeout: float | None) -> float:
        """Return how long a request that the guest answers may take.

        Raises:
            ConfigError: it makes no sense, or the sandbox is paused, so that nobody would answer.
            AgentError: this program has ended the sandbox.
        """
        limit_s = self.seconds(request_timeout)
        self.check_not_ended()
        if self.is_paused():
            raise ConfigError(f"{self.name} is paused: resume() lets it go on")
        return limit_s

    def check_not_ended(self) -> None:
        """See that this program has not ended it.

        Raises:
            AgentError: it has.
        """
        if self.ended:
            raise AgentError(self.ended)

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


def check_words(what: str, words: Iterable[str]) -> None:
    """See that a command can have these, as arguments or as variables.

    Raises:
        ConfigError: one is longer than Linux takes, or all together than a request may be.
    """
    total = 0
    for word in words:
        size = len(word.encode("utf-8", "surrogateescape"))
        if size > _WORD_BYTES_MAX:
            raise ConfigError(
                f"{what}: {word[:20]!r}… has {size} bytes, and Linux takes {_WORD_BYTES_MAX} at"
                " most: put it into a file"
            )
        total += size
    if total > _WORDS_BYTES_MAX:
        raise ConfigError(
            f"{what}: {total} bytes in all, of at most {_WORDS_BYTES_MAX}: put some into a file"
        )


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
