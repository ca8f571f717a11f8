"""The system calls that a running machine needs, found by tracing it; all others are refused.

What runs when the filter comes: the interpreter, with everything imported; vCPU threads, event
loops, a control socket. What has run before: the loading of code, the making of the machine. So no
memory becomes executable any more, and nothing makes a virtual machine.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Sequence

from voidbox.jail import bpf
from voidbox.jail.bpf import Arg, Rule
from voidbox.jail.numbers import NR
from voidbox.named_tuple import NamedTuple

_PROT_EXEC = 4
_CLONE_THREAD = 0x00010000
_CLONE_NEW_ANYTHING = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_AF_UNIX, _AF_INET, _AF_INET6, _AF_VSOCK = 1, 2, 10, 40
# SIGCHLD | CLONE_CHILD_CLEARTID | CLONE_CHILD_SETTID, as fork(3) makes a process.
_FORK_FLAGS = 0x11 | 0x00200000 | 0x01000000
_SOCK_STREAM, _SOCK_DGRAM = 1, 2
_SOCK_TYPE_MASK = 0xF  # the rest are SOCK_NONBLOCK and SOCK_CLOEXEC

# ioctl(2) by request, the commonest first. <linux/kvm.h>, <asm/ioctls.h>, <linux/fs.h>
KVM_RUN = 0xAE80
_KVM_RUNNING = (
    KVM_RUN,
    0x4008AE61,  # KVM_IRQ_LINE
    0xAEAD,  # KVM_KVMCLOCK_CTRL
    0x4004AE8B,  # KVM_SET_SIGNAL_MASK
    0x8090AE81,  # KVM_GET_REGS
    0x8138AE83,  # KVM_GET_SREGS
)
_TTY = (0x5401, 0x5421)  # TCGETS, by which Python knows a terminal; FIONBIO
_BLOCK = (0x1277, 0x127F)  # BLKDISCARD, BLKZEROOUT
_FICLONE = 0x40049409

_ALWAYS = """
futex epoll_wait read write readv writev preadv2 pwritev2 pread64 pwrite64 preadv pwritev recvfrom
epoll_ctl epoll_pwait poll ppoll close clock_gettime clock_nanosleep nanosleep sched_yield
munmap madvise brk mremap lseek fstat newfstatat openat fsync fdatasync fallocate ftruncate flock
rename unlink accept4 shutdown getsockopt setsockopt getsockname getpeername recvmsg
rt_sigprocmask rt_sigaction rt_sigtimedwait rt_sigreturn sigaltstack restart_syscall
gettid getpid getppid getuid geteuid getgid getegid getrandom getrusage times sysinfo uname
rseq set_robust_list get_robust_list membarrier sched_getaffinity exit exit_group
epoll_create1 eventfd2 pipe2 getcwd getdents64 close_range
"""

_LIVE_FOLDER = """
unlinkat renameat renameat2 copy_file_range linkat symlinkat readlink readlinkat mkdirat mknodat
fchmodat fchmod chmod utimensat fstatfs statfs link symlink mkdir rmdir mknod
fgetxattr getxattr lgetxattr listxattr flistxattr llistxattr setxattr removexattr
"""

_SNAPSHOTS = """
mkdir rmdir link unlinkat utimensat copy_file_range sendfile fadvise64 fchmod statfs fstatfs
"""

# Nothing that goes wrong makes one of these: whoever does is no longer voidbox.
_FATAL = """
execve execveat fork vfork ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp
bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
keyctl add_key request_key mount umount2 move_mount open_tree fsopen fsconfig fsmount fspick
mount_setattr pivot_root chroot unshare setns init_module finit_module delete_module
kexec_load kexec_file_load reboot swapon swapoff iopl ioperm modify_ldt personality
open_by_handle_at quotactl acct syslog settimeofday clock_settime
setuid setgid setreuid setregid setresuid setresgid setgroups capset
"""


class Needs(NamedTuple):
    """What a process has to be left, beside what every machine needs.

    Attributes:
        pid: its own: signals go to no other.
        live_folder: a folder of the host that the guest has: names in it.
        block_devices: disks that are devices.
        sockets: TCP, UDP and ping sockets, and name servers: no other process makes them for it.
        unix_sockets: connections to programs of the host, by their paths.
        vsock: connections to guests, by the host kernel's vsock.
        snapshots: files of its own, made, copied and removed; a Unix socket of its own to listen on
            once it is restored, and no way to connect one.
        forks: copies of itself, which write its memory out; they are in the same jail. Where the
            refusal asks another process, that is asked for each, in the strict jail, too; see
            is_fork().
        has_pids: signals to other processes, which are those of a pid namespace of its own.
        requests: further ioctl requests.
    """

    pid: int
    live_folder: bool = False
    block_devices: bool = False
    sockets: bool = False
    unix_sockets: bool = False
    vsock: bool = False
    snapshots: bool = False
    forks: bool = False
    has_pids: bool = False
    requests: tuple[int, ...] = ()


def program(
    needs: Needs, refusal: int = bpf.RET_ERRNO | errno.EPERM, is_strict: bool = False
) -> list[bpf.Instruction]:
    """Return the filter.

    Args:
        refusal: the action for what nobody expects: it may be a newer libc's.
        is_strict: end the process then, too.
    """
    otherwise = bpf.RET_KILL_PROCESS if is_strict else refusal
    return bpf.assemble(_rules(needs, refusal), otherwise, bpf.RET_KILL_PROCESS)


def is_fork(number: int, arguments: Sequence[int]) -> bool:
    """Whether a system call is fork(3), and nothing else. Its arguments are no pointers to flags:
    who lets it go on need not fear that they change.
    """
    return number == NR["clone"] and arguments[0] == _FORK_FLAGS


def without_sending() -> list[bpf.Instruction]:
    """Return a filter that takes sendmsg(2) away, which an address or a descriptor may go with.

    It is for later than the other: the listener goes to another process by it.
    """
    refused = bpf.RET_ERRNO | errno.EPERM
    rules = [Rule(NR["sendmsg"], refused), Rule(NR["seccomp"], refused)]
    return bpf.assemble(rules, bpf.RET_ALLOW, bpf.RET_KILL_PROCESS)


@functools.cache
def keeper_program() -> list[bpf.Instruction]:
    """Return a filter for a keeper, which runs much Python: it runs no program and copies itself no
    more, and does nothing that voidbox never does; all else it may.
    """
    refused = bpf.RET_ERRNO | errno.EPERM
    threads = (Arg(0, _CLONE_THREAD, _CLONE_THREAD | _CLONE_NEW_ANYTHING),)
    rules = [
        Rule(NR["clone3"], bpf.RET_ERRNO | errno.ENOSYS),
        Rule(NR["clone"], bpf.RET_ALLOW, (threads,), refused),
        *(Rule(NR[name], bpf.RET_KILL_PROCESS) for name in _FATAL.split()),
    ]
    return bpf.assemble(rules, bpf.RET_ALLOW, bpf.RET_KILL_PROCESS)


def _rules(needs: Needs, refusal: int) -> list[Rule]:
    allow, kill = bpf.RET_ALLOW, bpf.RET_KILL_PROCESS
    requests = _KVM_RUNNING + _TTY + needs.requests
    requests += _BLOCK if needs.block_devices else ()
    requests += (_FICLONE,) if needs.snapshots else ()
    rules = [_only("ioctl", *((Arg(1, request),) for request in requests))]
    rules += [Rule(NR[name], allow) for name in _ALWAYS.split()]
    rules += [
        _only("mmap", (Arg(2, 0, _PROT_EXEC),)),
        _only("mprotect", (Arg(2, 0, _PROT_EXEC),)),
        _only("tgkill", (Arg(0, needs.pid),)),
        # glibc falls back to clone(2) then, whose flags can be seen.
        Rule(NR["clone3"], bpf.RET_ERRNO | errno.ENOSYS),
        # A process that may not be made is a snapshot that cannot be: no reason to end.
        Rule(NR["clone"], allow, *_clones(needs, refusal)),
        _only("fcntl", *((Arg(1, command),) for command in _FCNTL)),
        _only("socketpair", (Arg(0, _AF_UNIX),)),
        _only("prlimit64", (Arg(0, 0), Arg(2, 0, -1 & (1 << 64) - 1, False))),
        Rule(NR["sendmsg"], allow),  # both until without_sending()
        Rule(NR["seccomp"], allow),
    ]
    rules += _sockets(needs)
    if needs.snapshots:
        rules += [Rule(NR[name], allow) for name in _SNAPSHOTS.split()]
        if not needs.sockets:
            rules += [Rule(NR[name], allow) for name in ("bind", "listen")]
    if needs.forks:
        rules += [Rule(NR[name], allow) for name in ("wait4", "waitid")]
    if needs.has_pids:
        rules.append(Rule(NR["kill"], allow))
    if needs.live_folder:
        rules += [Rule(NR[name], allow) for name in _LIVE_FOLDER.split()]
    return rules + [Rule(NR[name], kill) for name in _FATAL.split()]


def _clones(needs: Needs, refusal: int) -> tuple[tuple[tuple[Arg, ...], ...], int]:
    """Return what may be made without asking, and the action for the rest."""
    threads = (Arg(0, _CLONE_THREAD, _CLONE_THREAD | _CLONE_NEW_ANYTHING),)
    refused = bpf.RET_ERRNO | errno.EPERM
    if not needs.forks:
        return (threads,), refused
    if refusal == bpf.RET_USER_NOTIF:
        return (threads,), refusal
    return (threads, (Arg(0, _FORK_FLAGS),)), refused


# F_DUPFD F_GETFD F_SETFD F_GETFL F_SETFL, F_OFD_GETLK F_OFD_SETLK F_OFD_SETLKW, F_DUPFD_CLOEXEC
_FCNTL = (0, 1, 2, 3, 4, 36, 37, 38, 1030)


def _sockets(needs: Needs) -> list[Rule]:
    kinds: list[tuple[Arg, ...]] = []
    if needs.sockets:
        kinds += [
            (Arg(0, family), Arg(1, kind, _SOCK_TYPE_MASK))
            for family in (_AF_INET, _AF_INET6)
            for kind in (_SOCK_STREAM, _SOCK_DGRAM)
        ]
    if needs.unix_sockets:
        kinds.append((Arg(0, _AF_UNIX), Arg(1, _SOCK_STREAM, _SOCK_TYPE_MASK)))
    if needs.vsock:
        kinds.append((Arg(0, _AF_VSOCK), Arg(1, _SOCK_STREAM, _SOCK_TYPE_MASK)))
    no_address = Arg(4, 0, (1 << 64) - 1, is_word=False)
    unix = (Arg(0, _AF_UNIX), Arg(1, _SOCK_STREAM, _SOCK_TYPE_MASK))
    made = kinds + ([unix] if needs.snapshots else [])
    rules = [_only("socket", *made)] if made else []
    if not kinds:
        return [*rules, _only("sendto", (no_address,))]
    rules.append(Rule(NR["connect"], bpf.RET_ALLOW))
    if needs.sockets:
        rules += [Rule(NR[name], bpf.RET_ALLOW) for name in ("bind", "listen", "sendto")]
    else:
        rules.append(_only("sendto", (no_address,)))
    return rules


def _only(name: str, *alternatives: tuple[Arg, ...]) -> Rule:
    return Rule(NR[name], bpf.RET_ALLOW, alternatives)
