"""Whole machines with guests of a few bytes: every way to end, and what a hostile guest tries."""

from __future__ import annotations

import gc
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guest import tiny
from voidbox.boot import layout
from voidbox.errors import ConfigError, HostError
from voidbox.kvm.kvm import Kvm
from voidbox.vmm.config import MachineConfig
from voidbox.vmm.console import CallbackOutput
from voidbox.vmm.machine import Machine
from voidbox.vmm.outcome import EndReason, Outcome

pytestmark = pytest.mark.kvm

DEADLINE_S = 60
MEMORY_BYTES = 32 << 20


@contextmanager
def machine_of(
    tmp_path: Path, code: bytes, cpus: int = 1, pvh: bool = False
) -> Iterator[tuple[Machine, bytearray]]:
    """A machine that runs `code`, and what it will have written to its console."""
    kernel = tiny.write_elf(tmp_path / "tiny.elf", code, pvh)
    config = MachineConfig(kernel=kernel, memory_bytes=MEMORY_BYTES, cpus=cpus)
    with Machine(config) as machine:
        output = bytearray()
        machine.console.attach(CallbackOutput(output.extend))
        yield machine, output


def run(tmp_path: Path, code: bytes, pvh: bool = False) -> tuple[Outcome, bytes, Machine]:
    with machine_of(tmp_path, code, pvh=pvh) as (machine, output):
        machine.start()
        outcome = machine.wait(DEADLINE_S)
        assert outcome is not None, "the machine did not end"
        return outcome, bytes(output), machine


@pytest.mark.parametrize("pvh", [False, True], ids=["64-bit", "PVH"])
def test_speaks_and_powers_off(tmp_path: Path, pvh: bool) -> None:
    outcome, output, _ = run(tmp_path, tiny.say("hello\n") + tiny.power_off(), pvh)
    assert outcome.reason is EndReason.POWER_OFF
    assert output == b"hello\n"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (tiny.out8(0x602, 1), EndReason.RESET),
        (tiny.out8(0x64, 0xFE), EndReason.RESET),
        (tiny.out8(0x505, 1), EndReason.PANIC),
    ],
    ids=["ACPI reset", "i8042 reset", "pvpanic"],
)
def test_other_ends(tmp_path: Path, code: bytes, reason: EndReason) -> None:
    outcome, _, _ = run(tmp_path, code + tiny.HLT_FOREVER)
    assert outcome.reason is reason


def test_a_reset_after_a_panic_message_is_a_panic(tmp_path: Path) -> None:
    code = tiny.say("x\n[    1.0] Kernel panic - not syncing: no init\n") + tiny.out8(0x64, 0xFE)
    outcome, _, _ = run(tmp_path, code + tiny.HLT_FOREVER)
    assert outcome.reason is EndReason.PANIC
    assert outcome.detail == "no init"
    assert "no init" in outcome.describe()


def test_a_triple_fault_is_a_crash_with_registers_and_console(tmp_path: Path) -> None:
    # The IDT is empty: UD2 faults, its delivery faults, and so does the double fault's.
    outcome, _, _ = run(tmp_path, tiny.say("last words\n") + b"\x0f\x0b")
    assert outcome.reason is EndReason.CRASH
    assert "triple fault" in outcome.detail
    assert "rip=" in outcome.registers
    assert "last words" in outcome.describe()


def test_absent_ports_and_addresses_read_all_ones(tmp_path: Path) -> None:
    code = tiny.in32(0xCFC) + tiny.store_eax(0x200000)
    code += tiny.in8(0x2F8) + tiny.store_eax(0x200004)
    with machine_of(tmp_path, code + tiny.power_off()) as (machine, _):
        machine.start()
        assert machine.wait(DEADLINE_S) is not None
        port_long, port_byte = struct.unpack("<II", machine.memory.read(0x200000, 8))
    assert port_long == 0xFFFF_FFFF
    assert port_byte & 0xFF == 0xFF


def test_absent_mmio_reads_all_ones_and_swallows_writes(tmp_path: Path) -> None:
    # PVH entry runs without paging, so it reaches the MMIO hole.
    mmio = 0xE000_0000
    code = tiny.store_eax(mmio)
    code += b"\xbf" + struct.pack("<I", mmio) + b"\x8b\x07"  # mov eax, [edi]
    code += tiny.store_eax(0x200000)
    with machine_of(tmp_path, code + tiny.power_off(), pvh=True) as (machine, _):
        machine.start()
        assert machine.wait(DEADLINE_S) is not None
        assert machine.memory.read(0x200000, 4) == b"\xff" * 4
        assert machine.statistics().exits["KVM_EXIT_MMIO"] == 2


def test_wild_ports_do_no_harm(tmp_path: Path) -> None:
    # Every port but those that end a machine, written and read, in a loop of the guest's own:
    # mov ecx, 0xffff; l: mov edx, ecx; cmp edx, 0x600..0x602, 0x64, 0x505 -> skip; in; out; loop
    skip = (0x64, 0x505, 0x600, 0x601, 0x602)
    checks = b"".join(b"\x81\xfa" + struct.pack("<I", port) for port in skip)
    body = b"\x89\xca"  # mov edx, ecx
    tail = b"\xec\xee\xed\xef"  # in al, dx; out dx, al; in eax, dx; out dx, eax
    # Each check: cmp edx, imm32 (6 bytes); je to the end of the body (2 bytes).
    remaining = len(checks) // 6 * 8 + len(tail)
    for index, _ in enumerate(skip):
        remaining -= 8
        body += checks[index * 6 : index * 6 + 6] + b"\x74" + bytes([remaining])
    body += tail
    start = b"\xb9" + struct.pack("<I", 0x1000)  # mov ecx, 0x1000
    back = -(len(body) + 2 + 2)
    loop = body + b"\xff\xc9" + b"\x75" + struct.pack("<b", back)  # dec ecx; jnz
    outcome, _, machine = run(tmp_path, start + loop + tiny.power_off())
    assert outcome.reason is EndReason.POWER_OFF
    assert machine.statistics().exits["KVM_EXIT_IO"] > 0x1000


def test_string_output_is_one_exit(tmp_path: Path) -> None:
    text = b"a whole string"
    # mov esi, text; mov ecx, length; mov dx, COM1; cld; rep outsb
    setup_bytes = 5 + 5 + 4 + 1 + 2
    end = tiny.power_off()
    text_gpa = tiny.CODE_GPA + setup_bytes + len(end)
    code = b"\xbe" + struct.pack("<I", text_gpa) + b"\xb9" + struct.pack("<I", len(text))
    code += b"\x66\xba" + struct.pack("<H", tiny.COM1) + b"\xfc\xf3\x6e"
    outcome, output, _ = run(tmp_path, code + end + text)
    assert outcome.reason is EndReason.POWER_OFF
    assert output == text


def test_console_floods_are_bounded_and_never_block_the_vcpu(tmp_path: Path) -> None:
    # mov dx, COM1; l: out dx, al; jmp l
    flood = b"\x66\xba" + struct.pack("<H", tiny.COM1) + b"\xee\xeb\xfd"
    with machine_of(tmp_path, flood) as (machine, _):
        reader, writer = os.pipe()
        try:
            os.set_blocking(writer, False)
            from voidbox.vmm.console import FdOutput

            machine.console.attach(FdOutput(machine.loop, writer, lambda error: None))
            machine.start()
            # An exit drains some 170 queued bytes: 400 overflow the UART's 64 KiB by far.
            exits = _wait_until_exits_exceed(machine, 400)
            # Nobody reads the pipe; the vCPU goes on all the same.
            _wait_until_exits_exceed(machine, exits + 50)
            machine.stop()
            outcome = machine.wait(DEADLINE_S)
            assert outcome is not None
            assert outcome.reason is EndReason.STOPPED
        finally:
            machine.close()
            os.close(reader)
            os.close(writer)


def _wait_until_exits_exceed(machine: Machine, count: int) -> int:
    deadline = time.monotonic() + DEADLINE_S
    while (seen := sum(machine.statistics().exits.values())) <= count:
        assert time.monotonic() < deadline, f"only {seen} exits"
        threading.Event().wait(0.01)
    return seen


@pytest.mark.parametrize("cpus", [1, 2, 8])
@pytest.mark.parametrize("code", [tiny.SPIN, tiny.HLT_FOREVER], ids=["spins", "halts"])
def test_stop_always_ends_every_thread(tmp_path: Path, code: bytes, cpus: int) -> None:
    before = threading.active_count()
    with machine_of(tmp_path, code, cpus) as (machine, _):
        machine.start()
        assert machine.wait(0.05) is None
        machine.stop()
        outcome = machine.wait(DEADLINE_S)
        assert outcome is not None
        assert outcome.reason is EndReason.STOPPED
    assert threading.active_count() == before


@pytest.mark.slow
def test_stop_races_with_start_and_end(tmp_path: Path) -> None:
    for attempt in range(30):
        with machine_of(tmp_path, tiny.say("x") + tiny.power_off()) as (machine, _):
            machine.start()
            for _ in range(attempt * 20):
                pass
            machine.stop()
            assert machine.wait(DEADLINE_S) is not None


def test_a_kick_may_come_before_the_threads_first_instruction(tmp_path: Path) -> None:
    # With the signal unblocked for an instant this ends the whole process, sometimes.
    for _ in range(30):
        with machine_of(tmp_path, tiny.SPIN, cpus=2) as (machine, _):
            stopper = threading.Thread(target=machine.stop)
            stopper.start()
            machine.start()
            assert machine.wait(DEADLINE_S) is not None
            stopper.join()


def test_a_machine_can_be_closed_without_a_start(tmp_path: Path) -> None:
    with machine_of(tmp_path, tiny.SPIN) as (machine, _):
        machine.close()
        machine.close()


@pytest.mark.slow
def test_machines_leave_nothing_behind(tmp_path: Path) -> None:
    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    run(tmp_path, tiny.power_off())
    before, threads = descriptors(), threading.active_count()
    for _ in range(20):
        run(tmp_path, tiny.say("x") + tiny.power_off())
    assert descriptors() == before
    assert threading.active_count() == threads


def test_boot_timer(tmp_path: Path) -> None:
    code = tiny.out8(0x3F0, 7) + tiny.out8(0x3F0, 123) + tiny.out8(0x3F0, 123)
    _, _, machine = run(tmp_path, code + tiny.power_off())
    boot_ns = machine.statistics().boot_ns
    assert boot_ns is not None
    assert 0 < boot_ns < DEADLINE_S * 10**9


def test_coalesced_writes_keep_their_order_with_what_exits(tmp_path: Path) -> None:
    # The RTC's index port is coalesced, its data port is not: a read must see the index written
    # just before. Register 0x0d (valid RAM) reads 0x80, register 0x0a 0x26.
    code = b""
    for offset, register in enumerate((0x0D, 0x0A, 0x0D)):
        code += tiny.out8(0x70, register) + tiny.in8(0x71) + tiny.store_eax(0x200000 + 4 * offset)
    with machine_of(tmp_path, code + tiny.power_off()) as (machine, _):
        machine.start()
        assert machine.wait(DEADLINE_S) is not None
        values = [machine.memory.read(0x200000 + 4 * index, 1)[0] for index in range(3)]
    assert values == [0x80, 0x26, 0x80]


def test_input_reaches_the_guest_with_an_interrupt_pending(tmp_path: Path) -> None:
    # l: in al, LSR; test al, 1; jz l; in al, RBR; out THR, al; then off
    poll = tiny.in8(tiny.COM1 + 5) + b"\xa8\x01"
    poll += b"\x74" + struct.pack("<b", -(len(poll) + 2))
    code = poll + tiny.in8(tiny.COM1) + b"\xee" + tiny.power_off()
    with machine_of(tmp_path, code) as (machine, output):
        machine.start()
        machine.console.send(b"K")
        outcome = machine.wait(DEADLINE_S)
        assert outcome is not None
        assert outcome.reason is EndReason.POWER_OFF
    assert output == b"K"


def test_a_kvm_without_irqchip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from voidbox.kvm.kvm import Kvm

    monkeypatch.setattr(Kvm, "check_extension", lambda self, capability: 0)
    kernel = tiny.write_elf(tmp_path / "tiny.elf", tiny.SPIN)
    with pytest.raises(HostError, match="KVM_CAP_IRQCHIP"):
        Machine(MachineConfig(kernel=kernel))


def test_the_acpi_tables_lie_where_the_guest_looks(tmp_path: Path) -> None:
    with machine_of(tmp_path, tiny.power_off()) as (machine, _):
        assert machine.memory.read(layout.ACPI_GPA, 8) == b"RSD PTR "


def test_too_small_memory_is_a_clear_error(tmp_path: Path) -> None:
    kernel = tiny.write_elf(tmp_path / "tiny.elf", bytes(20 << 20))
    with pytest.raises(ConfigError, match="does not fit"):
        Machine(MachineConfig(kernel=kernel, memory_bytes=16 << 20))


def test_a_fault_of_a_device_is_told_and_the_machine_closes_all_the_same(tmp_path: Path) -> None:
    """What the fault's traceback holds of kvm_run must not keep it mapped."""

    class Faulty:
        def read(self, offset: int, width: int) -> int:
            raise RuntimeError("a fault of ours")

        def write(self, offset: int, width: int, value: int) -> None: ...

    kernel = tiny.write_elf(tmp_path / "tiny.elf", tiny.in8(0xE1) + tiny.SPIN)
    with Machine(MachineConfig(kernel, memory_bytes=64 << 20)) as machine:
        machine._board.ports.attach(0xE1, 1, Faulty())
        machine.start()
        outcome = machine.wait(60)
        assert outcome is not None and outcome.reason is EndReason.ERROR
        assert "a fault of ours" in outcome.detail


def test_an_interrupt_for_a_vm_that_is_closed_reaches_no_other() -> None:
    """Whose descriptor has its number by then."""
    with Kvm() as kvm:
        closed = kvm.create_vm()
        number = closed.fd
        pulse = closed.pulser(5)
        closed.close()
        with kvm.create_vm() as other:
            other.create_irqchip()
            assert other.fd == number
            with pytest.raises(HostError, match="EBADF"):
                pulse()
