"""One tree of exceptions. Each message says what is wrong and what to do about it.

Anything that escapes voidbox and is not a VoidboxError is a bug of ours.
"""

from __future__ import annotations

import errno as _errno
import os


class VoidboxError(Exception):
    """Base of every error that voidbox raises on purpose."""


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


class SandboxTimeout(VoidboxError):
    """A time limit of the user's ran out."""
