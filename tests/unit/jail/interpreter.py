"""A small interpreter of classic BPF as seccomp runs it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from voidbox.jail import bpf
from voidbox.jail.bpf import Instruction
from voidbox.jail.numbers import NR

_DATA = struct.Struct("=iIQ6Q")  # struct seccomp_data


def run(program: Sequence[Instruction], data: bytes) -> tuple[int, int]:
    """Return the action, and how many instructions it took."""
    accumulator, at, steps = 0, 0, 0
    while True:
        code, if_true, if_false, k = program[at]
        at, steps = at + 1, steps + 1
        if code == bpf.LD_W_ABS:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif code == bpf.ALU_AND_K:
            accumulator &= k
        elif code == bpf.JMP_JEQ_K:
            at += if_true if accumulator == k else if_false
        elif code == bpf.JMP_JGE_K:
            at += if_true if accumulator >= k else if_false
        elif code == bpf.RET_K:
            return k, steps
        else:
            raise AssertionError(f"the kernel knows no {code:#x} here")


def action(
    program: Sequence[Instruction],
    call: str | int,
    *arguments: int,
    arch: int = bpf.AUDIT_ARCH_X86_64,
) -> int:
    """Return what a program says to a system call."""
    number = NR[call] if isinstance(call, str) else call
    values = [value & (1 << 64) - 1 for value in arguments] + [0] * (6 - len(arguments))
    return run(program, _DATA.pack(number, arch, 0, *values))[0]
