"""System calls that Python has no function for, by their numbers, on x86-64."""

from __future__ import annotations

import errno
import os
from typing import Any

from voidbox.jail import numbers
from voidbox.jail._abi import ffi

_syscall: Any = None
_libraries: list[Any] = []


def call(name: str, *arguments: Any) -> int:
    """Make a system call; return what it returns.

    Args:
        name: without "__NR_".
        arguments: up to six: ints, or cffi pointers, which the caller keeps alive.
    Raises:
        OSError: it failed; the name of the call is its filename.
    """
    global _syscall
    if _syscall is None:
        library: Any = ffi.dlopen(None)
        _syscall = library.syscall
    values = [_as_long(value) for value in arguments]
    values += [0] * (6 - len(values))
    result: int = _syscall(numbers.NR[name], *values)
    if result < 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno), name)
    return result


def keep_loaded(library: str) -> bool:
    """Load a shared library for good, before nothing can be loaded; False if there is none."""
    try:
        _libraries.append(ffi.dlopen(library))
    except OSError:
        return False
    return True


def prctl(option: int, *arguments: Any) -> int:
    """Call prctl(2); arguments that are not given are 0, as it wants them to be.

    Raises:
        OSError: it failed; EINVAL where the kernel does not know the option.
    """
    return call("prctl", option, *arguments)


def own_proc() -> str:
    """Return this process's folder in /proc, which may be of another pid namespace than ours."""
    return f"/proc/{os.readlink('/proc/self')}"


def buffer(content: bytes) -> Any:
    """Return a copy in memory that the kernel can be pointed to."""
    return ffi.new("char[]", content)


def text(path: str) -> Any:
    """Return a path, with its NUL.

    Raises:
        OSError: it holds a NUL, so that it can be no path.
    """
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise OSError(errno.EINVAL, "embedded null byte", path)
    return ffi.new("char[]", encoded)


def address(pointer: Any) -> int:
    """Return the address that a pointer of ours holds."""
    return int(ffi.cast("long", pointer))


def _as_long(value: Any) -> int:
    if not isinstance(value, int):
        return address(value)
    word: int = value & (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word
