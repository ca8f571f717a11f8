"""Snapshots of guests of a few bytes: nothing is lost, made twice or left half done."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.guest import tiny
from tests.guest.test_machine import DEADLINE_S, MEMORY_BYTES
from tests.guest.test_pause import (
    COUNTER_PORT,
    Counter,
    attach_counter,
    counting_guest,
    wait_for_reads,
)
from voidbox.devices.rtc import RtcState
from voidbox.errors import ConfigError, HostError
from voidbox.kvm import state as kvm_state
from voidbox.kvm.vcpu import Vcpu
from voidbox.nat.backend import NatBackend
from voidbox.nat.config import NatConfig
from voidbox.net.addresses import NetworkConfig
from voidbox.net.flow_state import FlowState
from voidbox.snapshot import folder
from voidbox.snapshot import format as machine_bin
from voidbox.virtio.vsock import VirtioVsock
from voidbox.vmm.config import DiskConfig, MachineConfig, ShareConfig, VsockConfig
from voidbox.vmm.console import CallbackOutput
from voidbox.vmm.machine import Machine
from voidbox.vmm.outcome import EndReason

pytestmark = pytest.mark.kvm

MMIO_GPA = 0xE000_0000
APART = 12_345  # cycles between two vCPUs' TSCs
KVM_NMI = 0xAE9A  # <linux/kvm.h>


def config_of(tmp_path: Path, code: bytes, pvh: bool = False, **changes: object) -> MachineConfig:
    kernel = tiny.write_elf(tmp_path / "tiny.elf", code, pvh)
    config = MachineConfig(kernel=kernel, memory_bytes=MEMORY_BYTES)
    return config._replace(**changes)  # type: ignore[arg-type]


@contextmanager
def paused_copy(
    machine: Machine, config: MachineConfig, path: Path, memory: str = "lazy"
) -> Iterator[Machine]:
    machine.pause()
    machine.snapshot(str(path))
    copy = Machine.from_snapshot(str(path), config, memory=memory)  # type: ignore[arg-type]
    with copy:
        yield copy


# Acceptance: each access of the guest's is made once, wherever it was saved.


class Register:
    """Counts up at each read, and remembers what is written, at a port or in memory."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.written: list[int] = []

    def read(self, offset: int, width: int) -> int:
        self.value += 1
        return (self.value - 1) & 0xFFFF_FFFF

    def write(self, offset: int, width: int, value: int) -> None:
        self.written.append(value)


def mmio_guest() -> bytes:
    """Read a register in memory and write it back for ever; the value is kept in ebx too."""
    # mov edi, MMIO; l: mov eax, [rdi]; cmp eax, ebx; jne out; mov [rdi], eax; inc ebx; jmp l
    start = b"\x31\xdb\xbf" + struct.pack("<I", MMIO_GPA)
    loop = b"\x8b\x07\x39\xd8\x75\x06\x89\x07\xff\xc3\xeb\xf4"
    return start + loop + tiny.out8(0x505, 1) + tiny.HLT_FOREVER


@pytest.mark.parametrize("memory", ["lazy", "eager"])
def test_port_accesses_are_made_once(tmp_path: Path, memory: str) -> None:
    config = config_of(tmp_path, counting_guest())
    with Machine(config) as machine:
        counter = attach_counter(machine)
        machine.start()
        for number in range(12):
            wait_for_reads(counter, counter.reads + 1 + number)
            with paused_copy(machine, config, tmp_path / f"snap{number}", memory) as copy:
                copied = attach_counter(copy)
                copied.reads = counter.reads
                copy.start()
                wait_for_reads(copied, copied.reads + 20)
                assert copy.wait(0) is None, "the guest saw a value lost or twice"
                assert copied.wrong_writes == 0
            machine.resume()
        assert machine.wait(0) is None
        assert counter.wrong_writes == 0


def test_memory_mapped_accesses_are_made_once(tmp_path: Path) -> None:
    config = config_of(tmp_path, mmio_guest(), pvh=True)  # without paging: it reaches all
    with Machine(config) as machine:
        register = Register()
        machine._board.mmio.attach(MMIO_GPA, 4, register)
        machine.start()
        for number in range(12):
            _wait(lambda: len(register.written) > 3)
            with paused_copy(machine, config, tmp_path / f"snap{number}") as copy:
                copied = Register(register.value)
                copy._board.mmio.attach(MMIO_GPA, 4, copied)
                # The write of what was read last may still be to come.
                first = register.written[-1] + 1
                copy.start()
                _wait(lambda copied=copied: len(copied.written) > 20)  # type: ignore[misc]
                assert copied.written[:20] == list(range(first, first + 20))
            register.written.clear()
            machine.resume()
        assert machine.wait(0) is None


def test_string_output_goes_on_where_it_was(tmp_path: Path) -> None:
    """REP OUTSB of a counter's bytes: an interrupted one is continued by RCX and RSI."""
    # mov dx, port; l: mov rsi, CODE; mov ecx, 256; rep outsb; jmp l   (with the buffer 1 MiB on)
    buffer_gpa = tiny.CODE_GPA + 0x1000
    code = b"\x66\xba" + struct.pack("<H", COUNTER_PORT)
    code += b"\xbe" + struct.pack("<I", buffer_gpa) + b"\xb9" + struct.pack("<I", 256)
    code += b"\xf3\x6e\xeb\xf2"
    config = config_of(tmp_path, code.ljust(0x1000, b"\x90") + bytes(range(256)))
    with Machine(config) as machine:
        register = Register()
        machine._board.ports.attach(COUNTER_PORT, 4, register)
        machine.start()
        for number in range(8):
            _wait(lambda: len(register.written) > 100 + 37 * number)  # noqa: B023
            with paused_copy(machine, config, tmp_path / f"snap{number}") as copy:
                copied = Register()
                copy._board.ports.attach(COUNTER_PORT, 4, copied)
                last = register.written[-1]
                copy.start()
                _wait(lambda copied=copied: len(copied.written) > 300)  # type: ignore[misc]
                expected = [(last + 1 + index) & 0xFF for index in range(300)]
                assert copied.written[:300] == expected
            register.written.clear()
            machine.resume()


def timer_guest(is_deadline: bool) -> bytes:
    """Halt with interrupts on; each of the local APIC's timer is counted and asks for the next.

    Args:
        is_deadline: by MSR_IA32_TSC_DEADLINE, as Linux does; else by the count register.
    """
    lapic, idt_gpa, handler_gpa = 0xFEE0_0000, tiny.CODE_GPA + 0x1000, tiny.CODE_GPA + 0x800

    def store(register: int, value: int) -> bytes:  # mov edi, lapic + register; mov [edi], value
        address, number = struct.pack("<I", lapic + register), struct.pack("<I", value)
        return b"\xbf" + address + b"\xc7\x07" + number

    stack = b"\xbc\x00\x00\x09\x00"  # mov esp, 0x90000
    port = b"\x66\xba" + struct.pack("<H", COUNTER_PORT)  # mov dx, port
    lidt = b"\xbf" + struct.pack("<I", tiny.CODE_GPA + 0x700) + b"\x0f\x01\x1f"
    arm = store(0x380, 1_000_000)
    if is_deadline:  # rdtsc; add eax, 3000000; adc edx, 0; mov ecx, MSR_IA32_TSC_DEADLINE; wrmsr
        arm = b"\x0f\x31\x05" + struct.pack("<I", 3_000_000) + b"\x83\xd2\x00"
        arm += b"\xb9" + struct.pack("<I", 0x6E0) + b"\x0f\x30"
    # The spurious vector and the enable bit, the divisor, vector 0x40 once or by deadline.
    mode = 0x40040 if is_deadline else 0x40
    timer = store(0xF0, 0x1FF) + store(0x3E0, 0xB) + store(0x320, mode) + arm
    # Without the PICs, whose lines virtio devices and the generation id raise too.
    start = tiny.out8(0x21, 0xFF) + tiny.out8(0xA1, 0xFF) + stack + lidt + timer
    # out dx, eax; EOI; the next; then, for a KVM that knows no IRET: add esp, 12; jmp to the sti
    handler = port + b"\xef" + store(0xB0, 0) + arm + b"\x83\xc4\x0c\xe9"
    handler += struct.pack("<i", len(start) - 0x800 - len(handler) - 4)
    gate = struct.pack("<HHBBH", handler_gpa & 0xFFFF, 0x10, 0, 0x8E, handler_gpa >> 16)
    code = (start + b"\xfb" + tiny.HLT_FOREVER).ljust(0x700, b"\x90")
    code += struct.pack("<HI", 0x41 * 8 - 1, idt_gpa).ljust(0x100, b"\0")
    return code + handler.ljust(0x800, b"\x90") + bytes(0x40 * 8) + gate


@pytest.mark.parametrize("is_deadline", [False, True], ids=["count", "deadline"])
def test_a_halted_guest_wakes_up(tmp_path: Path, is_deadline: bool) -> None:
    """The timer that was running when the guest was saved wakes it after the restore."""
    config = config_of(tmp_path, timer_guest(is_deadline), pvh=True)
    with Machine(config) as machine:
        register = Register()
        machine._board.ports.attach(COUNTER_PORT, 4, register)
        machine.start()
        for number in range(5):
            _wait(lambda: len(register.written) > 2)
            with paused_copy(machine, config, tmp_path / f"snap{number}") as copy:
                copied = Register()
                copy._board.ports.attach(COUNTER_PORT, 4, copied)
                copy.start()
                _wait(lambda copied=copied: len(copied.written) > 5)  # type: ignore[misc]
            register.written.clear()
            machine.resume()


def nmi_guest() -> bytes:
    """Halt with interrupts off; a non-maskable one is told at a port."""
    idt_gpa, handler_gpa = tiny.CODE_GPA + 0x800, tiny.CODE_GPA + 0x400
    # mov esp, 0x90000; mov edi, …; lidt [edi]
    start = b"\xbc\x00\x00\x09\x00\xbf" + struct.pack("<I", tiny.CODE_GPA + 0x700) + b"\x0f\x01\x1f"
    start += tiny.out8(COUNTER_PORT, 1) + tiny.HLT_FOREVER
    gate = struct.pack("<HHBBH", handler_gpa & 0xFFFF, 0x10, 0, 0x8E, handler_gpa >> 16)
    code = start.ljust(0x400, b"\x90") + tiny.out8(COUNTER_PORT, 2) + tiny.HLT_FOREVER
    code = code.ljust(0x700, b"\x90") + struct.pack("<HI", 3 * 8 - 1, idt_gpa)
    return code.ljust(0x800, b"\0") + bytes(2 * 8) + gate


def test_an_instruction_whose_interrupts_wait_is_known_as_such(tmp_path: Path) -> None:
    """After STI or MOV SS none is taken for one instruction; a guest may be saved there."""
    config = config_of(tmp_path, counting_guest())
    with Machine(config) as machine:
        counter = attach_counter(machine)
        machine.start()
        wait_for_reads(counter, 10)
        with paused_copy(machine, config, tmp_path / "snap") as copy:
            hardware = machine._hardware
            saved = kvm_state.read(hardware.vm, hardware.vcpus, [])
            # interrupt.shadow, by STI and by MOV SS: AMD's processors know one of both
            shadowed = saved.vcpus[0]._replace(events=_with(saved.vcpus[0].events, 11, b"\x03"))
            hardware = copy._hardware
            kvm_state.write(hardware.vm, hardware.vcpus, saved._replace(vcpus=(shadowed,)))
            again = kvm_state.read(hardware.vm, hardware.vcpus, [])
            assert saved.vcpus[0].events[11] == 0
            assert again.vcpus[0].events[11] != 0


def test_an_interrupt_that_was_pending_is_taken(tmp_path: Path) -> None:
    """One that no controller keeps: it is in the vCPU's events alone."""
    config = config_of(tmp_path, nmi_guest(), pvh=True)
    with Machine(config) as machine:
        register = Register()
        machine._board.ports.attach(COUNTER_PORT, 4, register)
        machine.start()
        _wait(lambda: register.written)
        machine.pause()
        fcntl.ioctl(machine._hardware.vcpus[0].fd, KVM_NMI)
        with paused_copy(machine, config, tmp_path / "snap") as copy:
            copied = Register()
            copy._board.ports.attach(COUNTER_PORT, 4, copied)
            copy.start()
            _wait(lambda: copied.written)
            assert copied.written == [2]
        assert register.written == [1]


def _wait(condition: object) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


def test_all_that_kvm_keeps_comes_back(tmp_path: Path) -> None:
    config = config_of(tmp_path, counting_guest(), cpus=2)
    with Machine(config) as machine:
        counter = attach_counter(machine)
        machine.start()
        wait_for_reads(counter, 10)
        with paused_copy(machine, config, tmp_path / "snap") as copy:
            msrs = kvm_state.saved_msrs(machine._hardware.kvm)
            saved = kvm_state.read(machine._hardware.vm, machine._hardware.vcpus, msrs)
            # As of a guest that has been up for days: one that starts at 0 will not do.
            first = saved.vcpus[0]._replace(
                mp_state=3,  # KVM_MP_STATE_HALTED
                debugregs=_with(saved.vcpus[0].debugregs, 0, b"\x00\x10"),  # db[0]
                # xmm0 in the legacy area, and the bit that says that it is there
                xsave=_with(_with(saved.vcpus[0].xsave, 160, b"xmm0"), 512, b"\x03"),
                # nmi.masked of struct kvm_vcpu_events: one is being handled
                events=_with(saved.vcpus[0].events, 14, b"\x01"),
            )
            second = saved.vcpus[1]
            if (
                first.tsc_offset
            ):  # in step, but for a distance; 0 is a software KVM's, which has none
                apart = {"tsc": first.tsc + APART, "tsc_offset": first.tsc_offset + APART}
                second = second._replace(**apart)
            pic, other_pic, ioapic = saved.irqchips
            saved = saved._replace(
                clock_ns=saved.clock_ns + 10**15,
                # imr of both struct kvm_pic_state, ioregsel of struct kvm_ioapic_state
                irqchips=(
                    *(_with(chip, 8 + 2, b"\x5a") for chip in (pic, other_pic)),
                    _with(ioapic, 8 + 8, b"\x12"),
                ),
                vcpus=(first, second),
                pit=_with(saved.pit, 0, b"\x34\x12"),  # channel 0's count
            )
            kvm_state.write(copy._hardware.vm, copy._hardware.vcpus, saved)
            again = kvm_state.read(copy._hardware.vm, copy._hardware.vcpus, msrs)
            assert 0 <= again.clock_ns - saved.clock_ns < 60_000_000_000, "kvmclock"
            for before, after in zip(saved.vcpus, again.vcpus, strict=True):
                assert after.tsc >= before.tsc
                assert after._replace(tsc=0, tsc_offset=0) == before._replace(tsc=0, tsc_offset=0)
            offsets = [vcpu.tsc_offset for vcpu in again.vcpus]
            if first.tsc_offset:
                assert offsets[1] == offsets[0] + APART  # type: ignore[operator]
            assert again.irqchips == saved.irqchips
            assert again.pit[:2] == saved.pit[:2]


def _with(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def test_cpuid_that_was_read_can_be_set(tmp_path: Path) -> None:
    """KVM leaves entries of zeroes behind the real ones, and takes none of them."""
    with (
        Machine(config_of(tmp_path, counting_guest())) as machine,
        machine._hardware.kvm.create_vm() as vm,
    ):
        read = machine._hardware.vcpus[0].get_cpuid2()
        assert 0 < read.nent <= machine._hardware.vcpus[0].cpuid.nent
        with vm.create_vcpu(0) as vcpu:  # type: ignore[attr-defined]
            vcpu.set_cpuid2(read)


def test_every_msr_that_is_read_can_be_set(tmp_path: Path) -> None:
    with Machine(config_of(tmp_path, counting_guest())) as machine:
        vcpu = machine._hardware.vcpus[0]
        indices = kvm_state.saved_msrs(machine._hardware.kvm)
        values, refused = vcpu.read_msrs([0xDEAD_BEEF, *indices])
        assert refused[0] == 0xDEAD_BEEF
        assert {0x2FF, 0x174} <= set(values)
        vcpu.set_msrs(values.items())
        with pytest.raises(HostError, match="0xdeadbeef was refused"):
            vcpu.set_msrs([(0x174, 0), (0xDEAD_BEEF, 0)])


# What goes on, what ends, and what is there afterwards.


def test_the_original_goes_on_and_the_snapshot_stays_as_it_was(tmp_path: Path) -> None:
    # inc dword [0x200000] for ever, and a port access at each 4,096th
    code = b"\xbf\x00\x00\x20\x00\x66\xba" + struct.pack("<H", COUNTER_PORT)
    code += b"\xff\x07\x8b\x07\xa9\xff\x0f\x00\x00\x75\xf5\xef\xeb\xf2"
    config = config_of(tmp_path, code)
    with Machine(config) as machine:
        register = Register()
        machine._board.ports.attach(COUNTER_PORT, 4, register)
        machine.start()
        _wait(lambda: register.written)
        report = machine.snapshot(str(tmp_path / "snap"))
        assert report.pause_ns >= report.fork_ns > 0
        assert not machine.is_paused
        at_once = len(register.written)
        _wait(lambda: len(register.written) > at_once + 5)
        saved = (tmp_path / "snap" / "memory").read_bytes()
        count = int.from_bytes(saved[0x200000:0x200004], "little")
        assert count < register.written[-1]
        with Machine.from_snapshot(str(tmp_path / "snap"), config) as copy:
            assert copy.memory.words(0x200000, "I", 1)[0] == count
            copied = Register()
            copy._board.ports.attach(COUNTER_PORT, 4, copied)
            copy.start()
            _wait(lambda: copied.written)
            assert copied.written[0] == (count // 4096 + 1) * 4096
        assert (tmp_path / "snap" / "memory").read_bytes() == saved
    assert _children() == 0


def _children() -> int:
    try:
        return os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        return 0


def test_of_one_that_crashed_the_cause_is_told(tmp_path: Path) -> None:
    triple_fault = b"\x0f\x0b"  # ud2, without a handler
    with Machine(config_of(tmp_path, triple_fault)) as machine:
        machine.start()
        assert machine.wait(DEADLINE_S) is not None
        with pytest.raises(HostError, match=r"has ended: the guest crashed: .*triple fault"):
            machine.snapshot(str(tmp_path / "snap"))
    assert os.listdir(tmp_path) == ["tiny.elf"]


def test_a_suspended_machine_ends_and_goes_on_elsewhere(tmp_path: Path) -> None:
    config = config_of(tmp_path, counting_guest())
    with Machine(config) as machine:
        counter = attach_counter(machine)
        machine.start()
        wait_for_reads(counter, 10)
        machine.snapshot(str(tmp_path / "snap"), stop=True, extra={"note": b"x"})
        outcome = machine.wait(DEADLINE_S)
        assert outcome is not None
        assert outcome.reason is EndReason.STOPPED
        with pytest.raises(HostError, match="has ended"):
            machine.snapshot(str(tmp_path / "again"))
    assert sorted(os.listdir(tmp_path / "snap")) == ["machine.bin", "memory", "note"]
    assert sorted(os.listdir(tmp_path)) == ["snap", "tiny.elf"]
    with Machine.from_snapshot(str(tmp_path / "snap"), config) as copy:
        copied = attach_counter(copy)
        copied.reads = counter.reads
        copy.start()
        wait_for_reads(copied, counter.reads + 20)
        assert copied.wrong_writes == 0


def test_disks_that_stay_must_be_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    disks = (DiskConfig(str(tmp_path / "disk")),)
    config = config_of(tmp_path, counting_guest(), disks=disks)
    path = str(tmp_path / "snap")
    with Machine(config) as machine:
        counter = attach_counter(machine)
        machine.start()
        wait_for_reads(counter, 10)
        with pytest.raises(ConfigError, match="only if the machine stops"):
            machine.snapshot(path, disks="stay")
        machine.snapshot(path, stop=True, disks="stay")
    with Machine.from_snapshot(path, config) as copy:
        copied = attach_counter(copy)
        copied.reads = counter.reads
        copy.start()
        wait_for_reads(copied, counter.reads + 20)
    os.utime(tmp_path / "disk")
    with pytest.raises(ConfigError, match="was changed since"):
        Machine.from_snapshot(path, config)


@pytest.mark.parametrize("is_own", [False, True])
def test_disks_are_copied_with_the_machine(tmp_path: Path, is_own: bool) -> None:
    base, own = tmp_path / "base", tmp_path / "own"
    base.write_bytes(bytes(1 << 20))
    own_disk = (
        DiskConfig(str(own), is_own=True) if is_own else DiskConfig(str(base), overlay=str(own))
    )
    if is_own:
        own.write_bytes(b"of the guest".ljust(1 << 20, b"\0"))
    config = config_of(tmp_path, counting_guest(), disks=(own_disk,))
    path = str(tmp_path / "snap")
    with Machine(config) as machine:
        attach_counter(machine)
        machine.start()
        # Written and not flushed: which clusters an overlay has is still in memory alone.
        machine._peripherals.disks[0]._backend.write([memoryview(b"w" * 4096)], 8192, 4096)
        machine.snapshot(path)
        with pytest.raises(HostError, match="File exists"):
            Machine.from_snapshot(path, config)
        new = str(tmp_path / "new")
        changes = {"path": new} if is_own else {"overlay": new}
        copy_config = config._replace(disks=(own_disk._replace(**changes),))
        with pytest.raises(ConfigError):  # and what was placed is taken away again
            wrong = own_disk._replace(**{**changes, "is_read_only": True})
            Machine.from_snapshot(path, config._replace(disks=(wrong,)))
        assert not os.path.exists(new)
        with Machine.from_snapshot(path, copy_config) as copy:
            attach_counter(copy)
            copy.start()
            assert Path(new).read_bytes() == own.read_bytes()
            read = bytearray(4096)
            copy._peripherals.disks[0]._backend.read([memoryview(read)], 8192, 4096)
            assert read == b"w" * 4096
    os.unlink(new)
    for file in ("memory", "disk-0\0", "../disk-0"):
        _changed(Path(path), lambda values, file=file: values["disks"][0].update(file=file))
        with pytest.raises(ConfigError, match="damaged: a disk is called"):
            Machine.from_snapshot(path, copy_config)
    assert not os.path.exists(new)


def test_snapshots_of_restored_machines_do_not_rest_on_the_first(tmp_path: Path) -> None:
    config = config_of(tmp_path, counting_guest(), cpus=2)
    reads = 0
    with Machine(config) as machine:
        counter = attach_counter(machine)
        machine.start()
        wait_for_reads(counter, 10)
        machine.pause()
        reads = counter.reads
        machine.snapshot(str(tmp_path / "snap0"))
    for number in range(5):
        old, new = tmp_path / f"snap{number}", tmp_path / f"snap{number + 1}"
        with Machine.from_snapshot(str(old), config) as copy:
            assert folder.is_in_use(str(old))
            for name in os.listdir(old):  # removed under it
                (old / name).unlink()
            counter = attach_counter(copy)
            counter.reads = reads
            copy.start()
            copy.memory.write(0x300000 + 0x10000 * number, bytes([number + 1]) * 5000)
            wait_for_reads(counter, reads + 20)
            copy.pause()
            reads = counter.reads
            full = b"".join(bytes(region.view) for region in copy.memory)
            copy.snapshot(str(new))
            assert (new / "memory").read_bytes() == full
            assert counter.wrong_writes == 0
        assert not folder.is_in_use(str(new))
    for number in range(5):
        assert full[0x300000 + 0x10000 * number :][:5000] == bytes([number + 1]) * 5000


def test_nothing_is_left_open(tmp_path: Path) -> None:
    config = config_of(tmp_path, counting_guest(), vsock=VsockConfig(), serial_line=True)
    for round_ in range(3):
        with Machine(config) as machine:
            attach_counter(machine)
            machine.start()
            machine.snapshot(str(tmp_path / f"snap{round_}"))
        with Machine.from_snapshot(str(tmp_path / f"snap{round_}"), config) as copy:
            attach_counter(copy)
            copy.start()
            path = tmp_path / f"snap{round_}" / "working-set"
            touched = copy.record_working_set(str(path), 0)
            assert touched > 0
            assert not path.exists(), "more than was to be written down"
            assert copy.record_working_set(str(path), MEMORY_BYTES) >= touched
            assert path.exists()
        with Machine.from_snapshot(str(tmp_path / f"snap{round_}"), config) as copy:
            attach_counter(copy)
            copy.start()
        if round_ == 0:
            before = len(os.listdir("/proc/self/fd")), threading.active_count()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


# Refusals: one line each, and the machine goes on.


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    share = ShareConfig(str(tmp_path / "share"), "tag")
    disk = DiskConfig(str(tmp_path / "disk"))
    for changes, message in (
        ({"shares": (share,)}, "copy the folder"),
        ({"disks": (disk,)}, "overlay"),
    ):
        config = config_of(tmp_path, counting_guest(), **changes)
        with Machine(config) as machine:
            counter = attach_counter(machine)
            with pytest.raises((ConfigError, HostError)):
                machine.snapshot(str(tmp_path / "snap"))
            machine.start()
            wait_for_reads(counter, 10)
            with pytest.raises(ConfigError, match=message):
                machine.snapshot(str(tmp_path / "snap"))
            wait_for_reads(counter, counter.reads + 10)
        assert not list(tmp_path.glob("snap*"))


def test_a_place_that_is_taken_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, counting_guest())
    with Machine(config) as machine:
        counter = attach_counter(machine)
        machine.start()
        machine.snapshot(str(tmp_path / "snap"))
        with pytest.raises(ConfigError, match="there already"):
            machine.snapshot(str(tmp_path / "snap"))
        with pytest.raises(HostError, match="No such file"):
            machine.snapshot(str(tmp_path / "nowhere" / "snap"))
        wait_for_reads(counter, counter.reads + 10)


def test_two_at_once(tmp_path: Path) -> None:
    config = config_of(tmp_path, counting_guest())
    with Machine(config) as machine:
        attach_counter(machine)
        machine.start()
        with machine._snapshot_lock, pytest.raises(HostError, match="is being made"):
            machine.snapshot(str(tmp_path / "snap"))
        machine.snapshot(str(tmp_path / "snap"))


@pytest.mark.parametrize(("register", "bit"), [("efer", 1 << 12), ("cr4", 1 << 13)])
def test_a_guest_with_virtual_machines_of_its_own_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, register: str, bit: int
) -> None:
    """EFER.SVME, CR4.VMXE: what KVM keeps of its guests is not in any of what is read."""
    read = Vcpu.get_sregs

    def get_sregs(vcpu: Vcpu) -> Any:
        sregs = read(vcpu)
        setattr(sregs, register, getattr(sregs, register) | bit)
        return sregs

    with Machine(config_of(tmp_path, counting_guest())) as machine:
        counter = attach_counter(machine)
        machine.start()
        monkeypatch.setattr(Vcpu, "get_sregs", get_sregs)
        with pytest.raises(ConfigError, match="uses virtualisation of its own"):
            machine.snapshot(str(tmp_path / "snap"))
        wait_for_reads(counter, 10)
        assert not (tmp_path / "snap").exists()


def test_another_machine_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.write_bytes(b"x" * 8192)
    net, disks = NatConfig(), (DiskConfig(str(base), is_read_only=True),)
    changes = {"vsock": VsockConfig(), "net": net, "disks": disks}
    config = config_of(tmp_path, counting_guest(), **changes)
    path = str(tmp_path / "snap")
    with Machine(config) as machine:
        attach_counter(machine)
        machine.start()
        machine.snapshot(path)
    for changes, message in (
        ({"memory_bytes": 2 * MEMORY_BYTES}, "MiB of memory"),
        ({"cpus": 2}, "CPUs"),
        ({"vsock": None}, "vsock"),
        ({"serial_line": True}, "serial"),
        ({"balloon": True}, "balloons"),
        ({"net": None}, "networks"),
        ({"net": net._replace(network=NetworkConfig(guest_ip=0x0A00_0210))}, "other network"),
        ({"disks": ()}, "disks"),
        ({"disks": (DiskConfig(str(base), overlay=str(tmp_path / "upper")),)}, "only read"),
    ):
        with pytest.raises(ConfigError, match=message):
            Machine.from_snapshot(path, config._replace(**changes))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="lazy"):
        Machine.from_snapshot(path, config, memory="slow")  # type: ignore[arg-type]
    with (
        Machine.from_snapshot(path, config, memory="eager") as machine,
        pytest.raises(HostError, match="restored lazily"),
    ):
        machine.record_working_set(f"{path}/working-set", 1 << 30)
    base.write_bytes(b"y" * 8192)
    with pytest.raises(ConfigError, match="not the one that the snapshot's guest had"):
        Machine.from_snapshot(path, config)


def _changed(path: Path, change: object) -> None:
    values = machine_bin.read(str(path))
    change(values)  # type: ignore[operator]
    (path / "machine.bin").unlink()
    (path / "machine.bin").write_bytes(machine_bin.encode(values))


def _set_bytes(values: dict[str, Any], name: str, at: int, new: bytes) -> None:
    """Put other bytes into a field of the first vCPU; a single one in front of it."""
    vcpu = values["kvm"]["vcpus"][0]
    old = vcpu[name]
    vcpu[name] = new + old if len(new) == 1 else old[:at] + new + old[at + len(new) :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.update(device_model=99), "99"),
        (lambda values: values["host"].update(model="0"), "another processor"),
        (lambda values: values["kvm"]["vcpus"][0].update(tsc_khz=1000), "TSC|scale"),
        (
            lambda values: _set_bytes(values, "cpuid", 40 + 20, b"\xff" * 4),
            "CPUID",
        ),
        (lambda values: _set_bytes(values, "cpuid", 0, b"x"), "cut short"),
        (lambda values: _set_bytes(values, "msrs", 0, b"x"), "cut short"),
        (lambda values: _set_bytes(values, "msrs", 0, b"\xde" * 4), "MSR"),
        (lambda values: _set_bytes(values, "regs", 0, b"x"), "kvm_regs"),
        (lambda values: values["slots"].pop(), "devices"),
        (lambda values: values["slots"][0].update(device_id=2), "device"),
        (lambda values: values["slots"][0].update(status="x"), "status"),
        (lambda values: values["slots"][0].update(status=1 << 32), "status"),
        (lambda values: values["kvm"].update(clock_ns=-1), "clock_ns"),
        (lambda values: values["kvm"]["vcpus"][0].update(mp_state=1 << 32), "mp_state"),
        (lambda values: values["balloon"].update(num_pages=1 << 32), "num_pages"),
        (lambda values: values.pop("rtc"), "machine"),
        (lambda values: values["memory"][0].__setitem__(0, 4096), "laid out"),
    ],
)
def test_a_foreign_or_damaged_snapshot_is_refused(
    tmp_path: Path, change: object, message: str
) -> None:
    config = config_of(tmp_path, counting_guest(), balloon=True)
    with Machine(config) as machine:
        attach_counter(machine)
        machine.start()
        machine.snapshot(str(tmp_path / "snap"))
    _changed(tmp_path / "snap", change)
    with (
        pytest.raises(ConfigError, match=message) as caught,
        Machine.from_snapshot(str(tmp_path / "snap"), config) as copy,
    ):
        copy.start()
    assert "\n" not in str(caught.value)


def test_shorter_memory_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, counting_guest())
    with Machine(config) as machine:
        attach_counter(machine)
        machine.start()
        machine.snapshot(str(tmp_path / "snap"))
    memory = tmp_path / "snap" / "memory"
    memory.chmod(0o600)
    os.truncate(memory, MEMORY_BYTES - 4096)
    with pytest.raises(ConfigError, match="cut short"):
        Machine.from_snapshot(str(tmp_path / "snap"), config)
    memory.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        Machine.from_snapshot(str(tmp_path / "snap"), config)


def test_console_output_goes_on(tmp_path: Path) -> None:
    """The UART's registers and its interrupt come back: a guest that polls LSR sends on."""
    # l: in LSR; test THRE; jz l; out 'x'; jmp l
    code = b"\x66\xba" + struct.pack("<H", tiny.COM1 + 5) + b"\xec\xa8\x20\x74\xf8"
    code += tiny.out8(tiny.COM1, ord("x")) + tiny.in8(COUNTER_PORT) + b"\xeb"
    code += struct.pack("<b", -len(code) - 1)
    config = config_of(tmp_path, code)
    with Machine(config) as machine:
        counter = Counter()
        machine._board.ports.attach(COUNTER_PORT, 4, counter)
        machine.start()
        wait_for_reads(counter, 10)
        with paused_copy(machine, config, tmp_path / "snap") as copy:
            output = bytearray()
            copy.console.attach(CallbackOutput(output.extend))
            attach_counter(copy)
            copy.start()
            _wait(lambda: len(output) > 10)
            assert set(output) == {ord("x")}


def test_what_the_guest_said_last_is_told(tmp_path: Path) -> None:
    """What is in the UART when the guest is saved: nothing that it does calls for it again."""
    config = config_of(tmp_path, counting_guest())
    with Machine(config) as machine:
        counter = attach_counter(machine)
        machine.start()
        wait_for_reads(counter, 10)
        machine.pause()
        machine._board.uart._output += b"last words"
        machine._board.rtc.restore(RtcState(0x0B, 0x06))
        machine._board.pci.restore(0x8000_0004)
        with paused_copy(machine, config, tmp_path / "snap") as copy:
            assert copy._board.rtc.state() == RtcState(0x0B, 0x06)
            assert copy._board.pci.state() == 0x8000_0004
            output = bytearray()
            copy.console.attach(CallbackOutput(output.extend))
            attach_counter(copy)
            copy.start()
            _wait(lambda: output == b"last words")


def test_a_copy_is_to_tell_its_guest_that_its_connections_are_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What becomes of it, once a driver has the devices: see the tests of the devices."""
    flows, told = (FlowState(1000, 0x5DB8_D822, 80, 5, 6),), []
    monkeypatch.setattr(NatBackend, "flow_states", lambda self: flows)
    monkeypatch.setattr(NatBackend, "reset_flows", lambda self, saved: told.append(saved))
    config = config_of(tmp_path, counting_guest(), vsock=VsockConfig(), net=NatConfig())
    with Machine(config) as machine:
        attach_counter(machine)
        machine.start()
        assert machine._peripherals.unix_backend is not None
        machine._peripherals.unix_backend._muxer._next_port = 7
        with paused_copy(machine, config, tmp_path / "snap") as copy:
            devices = [each._device for each in copy._peripherals.slots._transports]
            (vsock,) = (each for each in devices if isinstance(each, VirtioVsock))
            assert vsock._reset.name == "WANTED"
            assert told == [flows]
            # A connection from a port of the original's would meet what the guest still knows of.
            assert copy._peripherals.unix_backend is not None
            assert copy._peripherals.unix_backend.next_port == 7
