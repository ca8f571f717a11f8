"""Landlock: this thread, and those that it starts, reach only the paths that are named.

<linux/landlock.h>; what a kernel knows is its ABI version. Descriptors that are open stay usable;
what has no right of its own (stat, chmod, utime, setxattr, connecting to a Unix socket by its path)
stays possible everywhere: the mount namespace closes that.

    struct landlock_ruleset_attr { __u64 handled_access_fs, handled_access_net, scoped; };
    struct landlock_path_beneath_attr { __u64 allowed_access; __s32 parent_fd; } packed;
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Iterable

from voidbox.jail import system

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR = 1 << 4
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
# EXECUTE to MAKE_SYM are of version 1; what came later has a bit each.
_FS_BY_VERSION = ((1, (1 << 13) - 1), (2, REFER), (3, TRUNCATE), (5, IOCTL_DEV))
_NET_BIND_CONNECT_TCP, _NET_VERSION = 0b11, 4
_SCOPE_ABSTRACT, _SCOPE_SIGNAL, _SCOPE_VERSION = 1, 2, 6

READ = READ_FILE | READ_DIR
# All but the making of devices, which nobody needs, and running programs.
WRITE = READ | ((1 << 13) - 1 & ~EXECUTE & ~(1 << 6 | 1 << 11)) | REFER | TRUNCATE
DEVICE = READ_FILE | WRITE_FILE | IOCTL_DEV
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

_CREATE_RULESET_VERSION = 1 << 0
_RULE_PATH_BENEATH = 1
_RULESETS = {0: struct.Struct("=Q"), 4: struct.Struct("=QQ"), 6: struct.Struct("=QQQ")}
_PATH_BENEATH = struct.Struct("=Qi")
assert _PATH_BENEATH.size == 12


def version() -> int:
    """Return the kernel's ABI version; 0 where it has none, or it is switched off."""
    try:
        return system.call("landlock_create_ruleset", 0, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def restrict(
    rules: Iterable[tuple[str, int]], with_network: bool = False, with_signals: bool = False
) -> int:
    """Leave this thread only these rights below these paths; return the ABI version.

    Needs no_new_privs. Where the kernel knows them, TCP, abstract Unix sockets and signals to
    processes outside are closed as well.

    Args:
        rules: paths and rights; a path that does not exist is left out.
        with_network: leave TCP open.
        with_signals: leave signals to processes outside.
    Raises:
        OSError: there is no Landlock, or it fails.
    """
    known = version()
    if not known:
        raise OSError(errno.EOPNOTSUPP, "the kernel has no Landlock", "landlock_create_ruleset")
    handled_fs = sum(rights for since, rights in _FS_BY_VERSION if known >= since)
    ruleset_fd = _create(known, handled_fs, with_network, with_signals)
    try:
        for path, rights in rules:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                _allow(ruleset_fd, path, rights & handled_fs)
        system.call("landlock_restrict_self", ruleset_fd, 0)
    finally:
        os.close(ruleset_fd)
    return known


def _create(known: int, handled_fs: int, with_network: bool, with_signals: bool) -> int:
    values = [handled_fs]
    if known >= _NET_VERSION:
        values.append(0 if with_network else _NET_BIND_CONNECT_TCP)
    if known >= _SCOPE_VERSION:
        values.append(_SCOPE_ABSTRACT | (0 if with_signals else _SCOPE_SIGNAL))
    layout = _RULESETS[max(since for since in _RULESETS if known >= since)]
    attribute = system.buffer(layout.pack(*values))
    return system.call("landlock_create_ruleset", attribute, layout.size, 0)


def _allow(ruleset_fd: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _OF_FILES  # others make no sense there, and are refused
        rule = system.buffer(_PATH_BENEATH.pack(rights, fd))
        system.call("landlock_add_rule", ruleset_fd, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(fd)
