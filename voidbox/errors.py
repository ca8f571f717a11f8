"""One tree of exceptions. Each message says what is wrong and what to do about it.

Anything that escapes voidbox and is not a VoidboxError is a bug of ours.
"""

from __future__ import annotations

import errno as _errno
import os
from typing import Protocol


class VoidboxError(Exception):
    """Base of every error that voidbox raises on purpose. All of them can be pickled."""

    def __reduce__(self) -> tuple[object, ...]:
        """Be made anew without __init__, which may want more than the message."""
        return _remake, (type(self), self.args, self.__dict__)


def _remake(
    type: type[VoidboxError], args: tuple[object, ...], values: dict[str, object]
) -> VoidboxError:
    error = type.__new__(type, *args)
    error.__dict__.update(values)
    return error


class ConfigError(VoidboxError):
    """What the user asked for cannot be done: a file, a size, an option."""


class HostError(VoidboxError):
    """The host refused: a missing device, a missing capability, a failed system call.

    Attributes:
        errno: the system call's errno, or 0 where none applies.
    """

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno

    @classmethod
    def from_errno(cls, call: str, errno: int) -> HostError:
        """Build the error of a failed call, such as ``KVM_CREATE_VM: EMFILE (Too many …)``."""
        name = _errno.errorcode.get(errno, str(errno))
        return cls(f"{call}: {name} ({os.strerror(errno)})", errno)


class GuestError(VoidboxError):
    """The guest broke a rule: a bad address, a bad ring, an impossible request.

    Never a reason for the VMM to stop: the device that meets it marks itself as needing a reset.
    """


class AgentError(VoidboxError):
    """The guest's agent failed, or the guest died while it was being talked to."""


class SandboxLost(AgentError):
    """A sandbox of another machine is gone, with whatever was under way in it.

    Attributes:
        reason: what was lost: "node": its machine, or the way to it; "pool": the process that has
            the machine's sandboxes; "guest": the sandbox alone. What ran there may run again, in
            another one.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class SandboxTimeout(VoidboxError):
    """A time limit of the user's ran out."""


class PoolFull(VoidboxError):
    """A pool has no sandbox to give, and none came free in time.

    Attributes:
        retry_after: in so many seconds one may be free, by how long they were used until now.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _CommandResult(Protocol):
    """See voidbox.sdk.commands.CommandResult."""

    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...
    @property
    def exit_code(self) -> int: ...


class CommandFailed(VoidboxError):
    """A command's exit code was not 0, and its caller wanted that checked.

    Attributes:
        result: with exit_code, stdout, stderr.
    """

    def __init__(self, message: str, result: _CommandResult) -> None:
        super().__init__(message)
        self.result = result


class CommandTimeout(SandboxTimeout):
    """A command ran for longer than its own time limit, and was ended.

    Attributes:
        result: with what it wrote until then.
    """

    def __init__(self, message: str, result: _CommandResult) -> None:
        super().__init__(message)
        self.result = result
