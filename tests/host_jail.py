"""What this host has for a jail, asked of the kernel.

A jail that is broken and asked itself would have its own tests skipped.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import subprocess

import pytest

_MOUNT_SETATTR, _LANDLOCK_CREATE_RULESET = 442, 444  # asm/unistd_64.h
_LANDLOCK_CREATE_RULESET_VERSION = 1
_PR_GET_MDWE = 66


@functools.cache
def landlock_version() -> int:
    """Return the kernel's ABI version; 0 where it has none, or it is switched off."""
    libc = ctypes.CDLL(None)
    return max(0, libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION))


@functools.cache
def has_namespaces() -> bool:
    """Whether this user may make all of them, and mount in them."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(_MOUNT_SETATTR, -1, None, 0, None, 0)
    if ctypes.get_errno() == errno.ENOSYS:  # Linux 5.11 and older
        return False
    command = ["unshare", "--user", "--map-root-user", "--mount", "--net", "--ipc", "--uts"]
    command += ["--cgroup", "--pid", "--fork", "true"]
    return not subprocess.run(command, capture_output=True).returncode


def has_mdwe() -> bool:
    """Whether the kernel can keep memory that was written from being run: since Linux 6.3."""
    return bool(ctypes.CDLL(None).prctl(_PR_GET_MDWE, 0, 0, 0, 0) >= 0)


def lacks_a_layer() -> bool:
    """Whether there can be no strict jail here."""
    return not (landlock_version() and has_namespaces())


WHY_NOT_STRICT = "this host lacks a layer of the jail: voidbox doctor says which"
needs_landlock = pytest.mark.skipif(
    not landlock_version(), reason="this kernel has no Landlock: boot with lsm=landlock,…"
)
needs_namespaces = pytest.mark.skipif(
    not has_namespaces(),
    reason="this host lets nobody make user namespaces: voidbox doctor says why",
)
