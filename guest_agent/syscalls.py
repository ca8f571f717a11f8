"""System calls that Python's os module lacks, by way of the C library."""

from __future__ import annotations

import ctypes
import os

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_NOATIME = 1, 2, 4, 8, 32, 1024
MS_BIND = 4096
RB_POWER_OFF, RB_AUTOBOOT = 0x4321FEDC, 0x01234567
# x86-64
SYS_SETGROUPS, SYS_SETRESUID, SYS_SETRESGID, SYS_FINIT_MODULE = 116, 117, 119, 313
AT_FDCWD, AT_SYMLINK_NOFOLLOW, STATX_ATTR_MOUNT_ROOT = -100, 0x100, 0x2000
IN_CLOEXEC, IN_NONBLOCK = 0o2000000, 0o4000

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, name: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    arguments = (os.fsencode(text) for text in (source, target, kind))
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), data.encode()), target)


def umount(target: str) -> None:
    """umount(2)."""
    _check(_libc.umount(os.fsencode(target)), target)


def set_groups(gids: tuple[int, ...]) -> None:
    """setgroups(2), of this thread alone: the C library's function would set all threads'."""
    _check(_libc.syscall(SYS_SETGROUPS, len(gids), (ctypes.c_uint32 * len(gids))(*gids)))


def set_gids(real: int, effective: int, saved: int) -> None:
    """setresgid(2), of this thread alone; -1 leaves one as it is."""
    _check(_libc.syscall(SYS_SETRESGID, *map(ctypes.c_uint32, (real, effective, saved))))


def set_uids(real: int, effective: int, saved: int) -> None:
    """setresuid(2), of this thread alone; -1 leaves one as it is."""
    _check(_libc.syscall(SYS_SETRESUID, *map(ctypes.c_uint32, (real, effective, saved))))


def is_mount_point(path: str) -> bool:
    """statx(2): whether something is mounted there, a file on a file too; Linux 5.8."""
    status = ctypes.create_string_buffer(256)
    _check(_libc.statx(AT_FDCWD, os.fsencode(path), AT_SYMLINK_NOFOLLOW, 0, status), path)
    attributes = int.from_bytes(status[8:16], "little")  # struct statx.stx_attributes
    return bool(attributes & STATX_ATTR_MOUNT_ROOT)


def finit_module(fd: int, parameters: str = "") -> None:
    """finit_module(2): load the kernel module that `fd` is open on."""
    _check(_libc.syscall(SYS_FINIT_MODULE, fd, parameters.encode(), 0))


def reboot(command: int) -> None:
    """reboot(2)."""
    _check(_libc.reboot(ctypes.c_int(command - (1 << 32) if command >> 31 else command)))


def inotify_init() -> int:
    """inotify_init1(2): return a descriptor, non-blocking."""
    return _check(_libc.inotify_init1(IN_CLOEXEC | IN_NONBLOCK))


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """inotify_add_watch(2): return the watch's number."""
    return _check(_libc.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(mask)), path)


def inotify_rm_watch(fd: int, watch: int) -> None:
    """inotify_rm_watch(2)."""
    _check(_libc.inotify_rm_watch(fd, ctypes.c_int(watch)))
