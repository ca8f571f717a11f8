"""seccomp(2): filters for all threads of this process, and the answers to what they ask about.

Where a filter says RET_USER_NOTIF, the system call waits for whoever holds the filter's listener:
another process, since a thread of this one may wait with the interpreter's lock held.

    struct sock_fprog { unsigned short len; struct sock_filter *filter; };
    struct seccomp_notif { __u64 id; __u32 pid; __u32 flags; struct seccomp_data data; };
    struct seccomp_notif_resp { __u64 id; __s64 val; __s32 error; __u32 flags; };
"""

from __future__ import annotations

import errno
import fcntl
import struct
from collections.abc import Callable, Sequence

from voidbox.jail import bpf, system
from voidbox.named_tuple import NamedTuple

SET_MODE_FILTER = 1  # SECCOMP_SET_MODE_FILTER
FLAG_TSYNC = 1 << 0
FLAG_NEW_LISTENER = 1 << 3
FLAG_TSYNC_ESRCH = 1 << 4  # Linux 5.7
FLAG_CONTINUE = 1 << 0  # SECCOMP_USER_NOTIF_FLAG_CONTINUE, Linux 5.5

_FPROG = struct.Struct("@HP")
_NOTIF = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
assert (_FPROG.size, _NOTIF.size, _RESPONSE.size) == (16, 80, 24)
_NOTIF_RECV = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOWR(0, struct seccomp_notif)
_NOTIF_SEND = 0xC0182101  # SECCOMP_IOCTL_NOTIF_SEND, SECCOMP_IOWR(1, struct seccomp_notif_resp)


def install(program: Sequence[bpf.Instruction]) -> None:
    """Put a filter before every system call of all threads, for good.

    Needs no_new_privs. It adds to filters that are there: the strictest action wins.

    Raises:
        OSError: the kernel takes no filter.
    """
    if result := _set_filter(program, FLAG_TSYNC):
        raise OSError(errno.EBUSY, f"thread {result} has another filter", "seccomp")


def install_with_listener(program: Sequence[bpf.Instruction]) -> int | None:
    """Do the same; return a descriptor for answer_next(), for what the program says RET_USER_NOTIF.

    Returns:
        None if none can be had, and nothing is installed: Linux is older than 5.7, or a filter that
        is there has one, a container's say.
    Raises:
        OSError: the kernel takes no filter.
    """
    try:
        return _set_filter(program, FLAG_TSYNC | FLAG_NEW_LISTENER | FLAG_TSYNC_ESRCH)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBUSY):
            raise
    return None


def _set_filter(program: Sequence[bpf.Instruction], flags: int) -> int:
    code = system.buffer(bpf.pack(program))
    fprog = system.buffer(_FPROG.pack(len(program), system.address(code)))
    return system.call("seccomp", SET_MODE_FILTER, flags, fprog)


class Call(NamedTuple):
    """A system call that waits: its number, and its arguments as they are in the registers."""

    number: int
    arguments: tuple[int, ...]


def answer_next(listener_fd: int, decide: Callable[[Call], int]) -> Call | None:
    """Answer the next call that waits; return it.

    Args:
        decide: returns the errno that it fails with; 0: it goes on. What pointers of its lead to
            may change in between, so that only a call without any may go on.
    Returns:
        None if its thread is gone: nothing was answered.
    Raises:
        OSError: the listener is no more.
    """
    notice = bytearray(_NOTIF.size)
    try:
        fcntl.ioctl(listener_fd, _NOTIF_RECV, notice)
        id, _pid, _flags, number, _arch, _ip, *arguments = _NOTIF.unpack(notice)
        call = Call(number, tuple(arguments))
        error = decide(call)
        answer = _RESPONSE.pack(id, 0, -error, 0 if error else FLAG_CONTINUE)
        fcntl.ioctl(listener_fd, _NOTIF_SEND, bytearray(answer))
    except OSError as problem:
        if problem.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise
    return call
