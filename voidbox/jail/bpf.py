"""Classic BPF, as seccomp takes it: assembled from rules about system calls. No I/O.

    struct sock_filter { __u16 code; __u8 jt; __u8 jf; __u32 k; };            <linux/filter.h>
    struct seccomp_data { int nr; __u32 arch; __u64 instruction_pointer; __u64 args[6]; };

A program loads words of seccomp_data, compares, and returns an action. Its jumps only lead forward,
and conditional ones 255 instructions at most; so each rule is a block of its own that ends in a
return, and is jumped over where it does not apply.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from voidbox.named_tuple import NamedTuple

SOCK_FILTER = struct.Struct("=HBBI")
assert SOCK_FILTER.size == 8
PROGRAM_MAX = 4096  # BPF_MAXINSNS

LD_W_ABS = 0x20  # BPF_LD | BPF_W | BPF_ABS
ALU_AND_K = 0x54  # BPF_ALU | BPF_AND | BPF_K
JMP_JEQ_K = 0x15
JMP_JGE_K = 0x35
RET_K = 0x06

NR_OFFSET, ARCH_OFFSET, ARGS_OFFSET = 0, 4, 16
AUDIT_ARCH_X86_64 = 0xC000003E
X32_SYSCALL_BIT = 0x40000000

RET_ALLOW = 0x7FFF0000
RET_LOG = 0x7FFC0000
RET_USER_NOTIF = 0x7FC00000
RET_ERRNO = 0x00050000
RET_KILL_PROCESS = 0x80000000

_WORD = 0xFFFFFFFF
_JUMP_MAX = 255


class Arg(NamedTuple):
    """A condition on an argument: argument & mask == value.

    The kernel takes ints, descriptors and requests as 32 bits and ignores the rest of the register:
    so is_word is right for them, and comparing 64 bits would refuse a negative one. Pointers and
    sizes need all 64.

    Attributes:
        number: 0 to 5.
    """

    number: int
    value: int
    mask: int = _WORD
    is_word: bool = True


class Rule(NamedTuple):
    """What happens at one system call: the action, if one of the alternatives holds.

    Attributes:
        number: of the system call.
        action: a SECCOMP_RET_* value.
        alternatives: each a list of conditions that must all hold; none: always.
        otherwise: the action where no alternative holds; None for the program's own.
    """

    number: int
    action: int
    alternatives: tuple[tuple[Arg, ...], ...] = ()
    otherwise: int | None = None


class Instruction(NamedTuple):
    """One struct sock_filter."""

    code: int
    jt: int
    jf: int
    k: int


def assemble(rules: Iterable[Rule], default: int, foreign: int) -> list[Instruction]:
    """Return the program of some rules, tried in their order: the commonest first.

    Args:
        default: the action where no rule applies.
        foreign: the action for other ABIs, 32-bit and x32: their numbers mean something else.
    Raises:
        ValueError: a rule or the program is too long for the kernel.
    """
    program = [
        Instruction(LD_W_ABS, 0, 0, ARCH_OFFSET),
        Instruction(JMP_JEQ_K, 1, 0, AUDIT_ARCH_X86_64),
        Instruction(RET_K, 0, 0, foreign),
        Instruction(LD_W_ABS, 0, 0, NR_OFFSET),
        Instruction(JMP_JGE_K, 0, 1, X32_SYSCALL_BIT),
        Instruction(RET_K, 0, 0, foreign),
    ]
    for rule in rules:
        body = _body(rule, default if rule.otherwise is None else rule.otherwise)
        program.append(_jump(JMP_JEQ_K, rule.number, 0, len(body)))
        program += body
    program.append(Instruction(RET_K, 0, 0, default))
    if len(program) > PROGRAM_MAX:
        raise ValueError(f"a filter of {len(program)} instructions: {PROGRAM_MAX} are the most")
    return program


def pack(program: Sequence[Instruction]) -> bytes:
    """Return a program as the kernel reads it."""
    return b"".join(SOCK_FILTER.pack(*instruction) for instruction in program)


def _body(rule: Rule, otherwise: int) -> list[Instruction]:
    if not rule.alternatives:
        return [Instruction(RET_K, 0, 0, rule.action)]
    body: list[Instruction] = []
    for conditions in rule.alternatives:
        tests = [test for condition in conditions for test in _tests(condition)]
        size = sum(map(len, tests)) + 1  # with the return
        done = 0
        for test in tests:
            done += len(test)
            # The last of a test compares; where it fails, the rest is jumped over.
            last = test[-1]
            body += [*test[:-1], _jump(last.code, last.k, 0, size - done)]
        body.append(Instruction(RET_K, 0, 0, rule.action))
    return [*body, Instruction(RET_K, 0, 0, otherwise)]


def _tests(condition: Arg) -> list[list[Instruction]]:
    """Return loads and comparisons, word by word."""
    offset = ARGS_OFFSET + 8 * condition.number
    tests = [_test(offset, condition.value & _WORD, condition.mask & _WORD)]
    if not condition.is_word:
        tests.append(_test(offset + 4, condition.value >> 32, condition.mask >> 32))
    return tests


def _test(offset: int, value: int, mask: int) -> list[Instruction]:
    load = Instruction(LD_W_ABS, 0, 0, offset)
    compare = Instruction(JMP_JEQ_K, 0, 0, value)
    if mask == _WORD:
        return [load, compare]
    return [load, Instruction(ALU_AND_K, 0, 0, mask), compare]


def _jump(code: int, k: int, if_true: int, if_false: int) -> Instruction:
    if max(if_true, if_false) > _JUMP_MAX:
        raise ValueError(f"a rule of {if_false} instructions: split its alternatives")
    return Instruction(code, if_true, if_false, k)
