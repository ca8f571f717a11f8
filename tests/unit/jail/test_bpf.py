"""The assembler, by the interpreter."""

from __future__ import annotations

import pytest

from tests.unit.jail.interpreter import action
from voidbox.jail import bpf
from voidbox.jail.bpf import Arg, Rule

ALLOW, NO, KILL = bpf.RET_ALLOW, bpf.RET_ERRNO | 1, bpf.RET_KILL_PROCESS


def test_a_call_without_a_rule_gets_the_default() -> None:
    program = bpf.assemble([Rule(5, ALLOW)], NO, KILL)
    assert action(program, 5) == ALLOW
    assert action(program, 6) == NO


def test_other_abis_are_never_taken_for_this_one() -> None:
    program = bpf.assemble([Rule(5, ALLOW)], NO, KILL)
    assert action(program, 5, arch=0x40000003) == KILL  # AUDIT_ARCH_I386
    assert action(program, 5 | bpf.X32_SYSCALL_BIT) == KILL


def test_one_alternative_is_enough_and_all_of_its_conditions_are_needed() -> None:
    rule = Rule(7, ALLOW, ((Arg(0, 1), Arg(1, 2)), (Arg(0, 3),)))
    program = bpf.assemble([rule, Rule(8, ALLOW)], NO, KILL)
    assert action(program, 7, 1, 2) == ALLOW
    assert action(program, 7, 1, 3) == NO
    assert action(program, 7, 3, 9) == ALLOW
    assert action(program, 7, 2, 2) == NO
    assert action(program, 8, 2, 2) == ALLOW


def test_words_ignore_the_upper_half_as_the_kernel_does_and_pointers_do_not() -> None:
    program = bpf.assemble(
        [Rule(1, ALLOW, ((Arg(0, 4),),)), Rule(2, ALLOW, ((Arg(0, 4, (1 << 64) - 1, False),),))],
        NO,
        KILL,
    )
    assert action(program, 1, 4 | 1 << 40) == ALLOW
    assert action(program, 2, 4) == ALLOW
    assert action(program, 2, 4 | 1 << 40) == NO


def test_masks() -> None:
    program = bpf.assemble([Rule(1, ALLOW, ((Arg(2, 0, 4),),))], NO, KILL)
    assert action(program, 1, 0, 0, 3) == ALLOW
    assert action(program, 1, 0, 0, 7) == NO


def test_what_a_rule_says_otherwise_wins_over_the_default() -> None:
    program = bpf.assemble([Rule(1, ALLOW, ((Arg(0, 1),),), KILL)], NO, KILL)
    assert action(program, 1, 2) == KILL


def test_a_jump_that_the_kernel_cannot_make_is_refused() -> None:
    rule = Rule(1, ALLOW, tuple((Arg(0, value),) for value in range(100)))
    with pytest.raises(ValueError, match="split"):
        bpf.assemble([rule], NO, KILL)
    with pytest.raises(ValueError, match="4096"):
        bpf.assemble([Rule(1, ALLOW)] * 3000, NO, KILL)


def test_the_packed_form_is_struct_sock_filter() -> None:
    assert bpf.pack([bpf.Instruction(0x06, 0, 0, ALLOW)]) == b"\x06\0\0\0\0\0\xff\x7f"
