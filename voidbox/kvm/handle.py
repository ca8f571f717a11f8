"""What Kvm, Vm and Vcpu share: a file descriptor and one way to call ioctl on it."""

from __future__ import annotations

import os
from typing import Any

from voidbox.errors import HostError
from voidbox.kvm._abi import ffi

_ioctl = ffi.dlopen(None).ioctl
_NULL = ffi.NULL


class Handle:
    """An open KVM file descriptor. `close()` is idempotent."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def ioctl(self, name: str, request: int, argument: Any = _NULL) -> int:
        """Call ioctl(2) once, without the GIL; never retried.

        Args:
            name: the request's name, for the error.
            argument: a cffi pointer, or an int for requests that take a value.
        Raises:
            HostError: the call failed; EINTR is reported like any other.
        """
        if isinstance(argument, int):
            argument = ffi.cast("void *", argument)
        result: int = _ioctl(self.fd, request, argument)
        if result < 0:
            raise HostError.from_errno(name, ffi.errno)
        return result

    def get(self, name: str, request: int, ctype: str) -> Any:
        """Call a KVM_GET_* request and return its structure, a cffi pointer to `ctype`."""
        value = ffi.new(ctype)
        self.ioctl(name, request, value)
        return value

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
