"""What the filter of a running machine lets through, call by call."""

from __future__ import annotations

import errno

import pytest

from tests.unit.jail.interpreter import action, run
from voidbox.jail import allowed, bpf
from voidbox.jail.allowed import Needs
from voidbox.jail.numbers import NR

ALLOW, NO, KILL = bpf.RET_ALLOW, bpf.RET_ERRNO | errno.EPERM, bpf.RET_KILL_PROCESS
PID = 4711
BARE = allowed.program(Needs(PID))
# Those that an argument decides on, or that get an answer of their own.
BY_ARGUMENT = {
    "ioctl", "mmap", "mprotect", "tgkill", "clone", "clone3", "fcntl", "socketpair", "prlimit64",
    "sendto", "socket",
}  # fmt: skip
ALWAYS = {*allowed._ALWAYS.split(), "sendmsg", "seccomp"}
FATAL = set(allowed._FATAL.split())


def test_every_call_of_the_kernel_is_refused_unless_it_is_listed() -> None:
    for name, number in NR.items():
        if name in BY_ARGUMENT:
            continue
        expected = ALLOW if name in ALWAYS else KILL if name in FATAL else NO
        assert action(BARE, number) == expected, name
    for number in (335, 423, 468, 511, 1000, 0x3FFFFFFF):  # numbers that nobody knows yet
        assert action(BARE, number) == NO


@pytest.mark.parametrize(
    ("call", "arguments", "expected"),
    [
        ("ioctl", (3, 0xAE80), ALLOW),  # KVM_RUN
        ("ioctl", (3, 0x4008AE61), ALLOW),  # KVM_IRQ_LINE
        ("ioctl", (3, 0xAE01), NO),  # KVM_CREATE_VM
        ("ioctl", (3, 0x4020AE46), NO),  # KVM_SET_USER_MEMORY_REGION
        ("ioctl", (0, 0x5412), NO),  # TIOCSTI
        ("ioctl", (3, 0x127F), NO),  # BLKZEROOUT: no disk of this machine's is a device
        ("mmap", (0, 4096, 3, 0x22, -1, 0), ALLOW),
        ("mmap", (0, 4096, 7, 0x22, -1, 0), NO),
        ("mmap", (0, 4096, 5, 2, 3, 0), NO),
        ("mprotect", (0x1000, 4096, 3), ALLOW),
        ("mprotect", (0x1000, 4096, 5), NO),
        ("tgkill", (PID, 4712, 34), ALLOW),
        ("tgkill", (PID + 1, 4712, 9), NO),
        ("kill", (PID, 9), NO),
        ("clone", (0x3D0F00,), ALLOW),  # a thread, as glibc makes it
        ("clone", (17,), NO),  # a process
        ("clone", (0x3D0F00 | 0x10000000,), NO),  # CLONE_NEWUSER
        ("clone3", (0, 88), bpf.RET_ERRNO | errno.ENOSYS),
        ("fcntl", (3, 37, 0), ALLOW),  # F_OFD_SETLK
        ("fcntl", (3, 8, 1), NO),  # F_SETOWN: signals to others
        ("socketpair", (1, 1, 0), ALLOW),
        ("socketpair", (16, 3, 0), NO),
        ("prlimit64", (0, 7, 0, 0x1000), ALLOW),
        ("prlimit64", (0, 7, 0x1000, 0), NO),
        ("prlimit64", (1, 7, 0, 0x1000), NO),
        ("socket", (1, 1, 0), NO),
        ("socket", (2, 1, 0), NO),
        ("sendto", (3, 0x1000, 5, 0, 0, 0), ALLOW),
        ("sendto", (3, 0x1000, 5, 0, 0x1000, 16), NO),
        ("sendto", (3, 0x1000, 5, 0, 1 << 32, 16), NO),  # the lower half alone is 0
        ("connect", (3, 0x1000, 16), NO),
        ("bind", (3, 0x1000, 16), NO),
        ("execve", (0x1000, 0, 0), KILL),
    ],
)
def test_arguments(call: str, arguments: tuple[int, ...], expected: int) -> None:
    assert action(BARE, call, *arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "with_sockets", "with_unix"),
    [
        ((2, 1 | 0x80800, 0), ALLOW, NO),  # TCP, SOCK_NONBLOCK | SOCK_CLOEXEC
        ((2, 2, 1), ALLOW, NO),  # a ping socket
        ((10, 2, 0), ALLOW, NO),
        ((2, 3, 1), NO, NO),  # SOCK_RAW
        ((1, 1 | 0x80000, 0), NO, ALLOW),
        ((1, 2, 0), NO, NO),
        ((16, 3, 0), NO, NO),  # AF_NETLINK
        ((38, 5, 0), NO, NO),  # AF_ALG
        ((40, 1, 0), NO, NO),  # AF_VSOCK
        ((17, 3, 0), NO, NO),  # AF_PACKET
    ],
)
def test_sockets(arguments: tuple[int, ...], with_sockets: int, with_unix: int) -> None:
    program = allowed.program(Needs(PID, sockets=True))
    assert action(program, "socket", *arguments) == with_sockets
    assert action(program, "bind", 3, 0x1000, 16) == ALLOW
    program = allowed.program(Needs(PID, unix_sockets=True))
    assert action(program, "socket", *arguments) == with_unix
    assert action(program, "connect", 3, 0x1000, 16) == ALLOW
    assert action(program, "bind", 3, 0x1000, 16) == NO
    assert action(program, "sendto", 3, 0x1000, 5, 0, 0x1000, 16) == NO


def test_names_in_a_folder_are_open_with_a_live_folder_alone() -> None:
    program = allowed.program(Needs(PID, live_folder=True))
    for name in ("linkat", "symlinkat", "fchmodat", "unlinkat"):
        assert action(BARE, name) == NO
        assert action(program, name) == ALLOW


def test_signals_to_others_are_for_who_has_a_pid_namespace() -> None:
    program = allowed.program(Needs(PID, has_pids=True))
    assert (action(BARE, "kill", 7, 9), action(program, "kill", 7, 9)) == (NO, ALLOW)
    assert action(program, "tgkill", PID + 1, 4712, 9) == NO


def test_further_requests() -> None:
    program = allowed.program(Needs(PID, requests=(0xAE11,), block_devices=True))
    assert action(program, "ioctl", 3, 0xAE11) == ALLOW
    assert action(program, "ioctl", 3, 0x127F) == ALLOW


def test_who_can_be_asked_is_asked_for_each_copy() -> None:
    fork, thread = 0x11 | 0x00200000 | 0x01000000, 0x3D0F00
    needs = Needs(PID, forks=True)
    for is_strict in (False, True):
        program = allowed.program(needs, bpf.RET_USER_NOTIF, is_strict)
        assert action(program, "clone", fork) == bpf.RET_USER_NOTIF
        assert action(program, "clone", thread) == ALLOW
        assert action(program, "vfork") == KILL
    assert action(allowed.program(needs), "clone", fork) == ALLOW  # nobody to be asked
    assert allowed.is_fork(NR["clone"], (fork, 0, 0, 0, 0, 0))
    assert not allowed.is_fork(NR["clone"], (fork | 0x10000000, 0, 0, 0, 0, 0))  # CLONE_NEWUSER
    assert not allowed.is_fork(NR["clone3"], (fork, 0, 0, 0, 0, 0))


def test_strict_ends_the_process_at_whatever_is_not_expected() -> None:
    program = allowed.program(Needs(PID), is_strict=True)
    assert action(program, "memfd_create") == KILL
    assert action(program, "ioctl", 3, 0xAE01) == KILL
    assert action(program, "read") == ALLOW
    assert action(program, "clone3") == bpf.RET_ERRNO | errno.ENOSYS


def test_what_a_machine_does_most_is_decided_soon() -> None:
    data = (NR["ioctl"]).to_bytes(4, "little") + bpf.AUDIT_ARCH_X86_64.to_bytes(4, "little")
    data += bytes(16) + allowed.KVM_RUN.to_bytes(8, "little") + bytes(32)
    assert run(BARE, data) == (ALLOW, 8)


def test_what_takes_sending_away_leaves_the_rest() -> None:
    program = allowed.without_sending()
    assert action(program, "sendmsg") == NO
    assert action(program, "write") == ALLOW


def test_a_keeper_runs_no_program_and_makes_no_process() -> None:
    keeper = allowed.keeper_program()
    thread, fork = 0x3D0F00, 0x11 | 0x00200000 | 0x01000000
    assert action(keeper, NR["clone"], thread) == ALLOW
    assert action(keeper, NR["clone"], fork) == NO
    assert action(keeper, NR["clone"], thread | 0x10000000) == NO  # CLONE_NEWUSER
    assert action(keeper, NR["clone3"]) == bpf.RET_ERRNO | errno.ENOSYS
    for name in ("execve", "fork", "ptrace", "bpf", "mount", "setns", "process_vm_readv"):
        assert action(keeper, NR[name]) == KILL, name
    for name in ("socket", "connect", "openat", "rename", "unlink", "pidfd_send_signal", "mmap"):
        assert action(keeper, NR[name]) == ALLOW, name
