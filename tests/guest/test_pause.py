"""Pausing and resuming machines, and the power button, with guests of a few bytes."""

from __future__ import annotations

import struct
import threading
import time
from pathlib import Path

import pytest

from tests.guest import tiny
from tests.guest.test_machine import DEADLINE_S, machine_of
from voidbox.vmm.machine import Machine
from voidbox.vmm.outcome import EndReason

pytestmark = pytest.mark.kvm

COUNTER_PORT = 0x900
PIC_COMMAND_PORT, PIC_READ_IRR = 0x20, 0x0A


class Counter:
    """Each read gives one more than the one before; each write must bring what was read last."""

    def __init__(self) -> None:
        self.reads = 0
        self.wrong_writes = 0

    def read(self, offset: int, width: int) -> int:
        self.reads += 1
        return self.reads - 1

    def write(self, offset: int, width: int, value: int) -> None:
        self.wrong_writes += value != self.reads - 1


def counting_guest() -> bytes:
    """Read the counter and write it back for ever; pvpanic if a value is lost or comes twice."""
    start = b"\x31\xdb" + b"\x66\xba" + struct.pack("<H", COUNTER_PORT)  # xor ebx, ebx; mov dx, …
    # in eax, dx; cmp eax, ebx; jne +5; out dx, eax; inc ebx; jmp -9
    loop = b"\xed\x39\xd8\x75\x05\xef\xff\xc3\xeb\xf6"
    return start + loop + tiny.out8(0x505, 1) + tiny.HLT_FOREVER


def attach_counter(machine: Machine) -> Counter:
    counter = Counter()
    machine._board.ports.attach(COUNTER_PORT, 4, counter)
    return counter


def wait_for_reads(counter: Counter, reads: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while counter.reads < reads:
        assert time.monotonic() < deadline, f"only {counter.reads} reads"
        threading.Event().wait(0.001)


def test_a_paused_guest_stands_still_and_loses_nothing(tmp_path: Path) -> None:
    with machine_of(tmp_path, counting_guest()) as (machine, _):
        counter = attach_counter(machine)
        machine.start()
        for _ in range(200):
            wait_for_reads(counter, counter.reads + 1)
            machine.pause()
            assert machine.is_paused
            before = counter.reads
            threading.Event().wait(0.002)
            assert counter.reads == before
            machine.resume()
        wait_for_reads(counter, counter.reads + 100)
        assert machine.wait(0) is None, "the guest saw a value lost or twice"
        assert counter.wrong_writes == 0


def test_an_interrupted_run_is_not_interrupted_for_ever(tmp_path: Path) -> None:
    """A signal that stayed pending would end each KVM_RUN at once."""
    with machine_of(tmp_path, tiny.HLT_FOREVER, cpus=2) as (machine, _):
        machine.start()
        for _ in range(20):
            machine.pause()
            machine.resume()
        before = machine.statistics().exits.get("KVM_EXIT_INTR", 0)
        assert machine.wait(0.2) is None
        assert machine.statistics().exits.get("KVM_EXIT_INTR", 0) <= before + 2


@pytest.mark.parametrize("cpus", [1, 2, 8])
@pytest.mark.parametrize("code", [tiny.SPIN, tiny.HLT_FOREVER], ids=["spins", "halts"])
def test_a_paused_machine_can_be_stopped(tmp_path: Path, code: bytes, cpus: int) -> None:
    before = threading.active_count()
    with machine_of(tmp_path, code, cpus) as (machine, _):
        machine.start()
        machine.pause()
        machine.pause()
        assert machine.wait(0.05) is None
        machine.stop()
        outcome = machine.wait(DEADLINE_S)
        assert outcome is not None
        assert outcome.reason is EndReason.STOPPED
        machine.resume()
        machine.pause()
    assert threading.active_count() == before


def test_a_machine_paused_before_its_start_begins_with_resume(tmp_path: Path) -> None:
    with machine_of(tmp_path, tiny.say("x") + tiny.power_off()) as (machine, output):
        machine.pause()
        machine.start()
        assert machine.wait(0.1) is None
        assert not output
        machine.resume()
        outcome = machine.wait(DEADLINE_S)
        assert outcome is not None
        assert outcome.reason is EndReason.POWER_OFF


@pytest.mark.slow
def test_pauses_race_with_each_other_and_the_end(tmp_path: Path) -> None:
    for attempt in range(20):
        with machine_of(tmp_path, tiny.SPIN, cpus=2) as (machine, _):
            machine.start()

            def toggle(machine: Machine = machine) -> None:
                while machine.wait(0) is None:
                    machine.pause()
                    machine.resume()

            togglers = [threading.Thread(target=toggle) for _ in range(2)]
            for toggler in togglers:
                toggler.start()
            threading.Event().wait(attempt / 1000)
            machine.stop()
            assert machine.wait(DEADLINE_S) is not None
            for toggler in togglers:
                toggler.join(DEADLINE_S)
                assert not toggler.is_alive()


def test_the_power_button_raises_its_line(tmp_path: Path) -> None:
    # l: out PIC, read IRR; in al, PIC; test al, 1 << line; jz l; then off
    poll = tiny.out8(PIC_COMMAND_PORT, PIC_READ_IRR) + tiny.in8(PIC_COMMAND_PORT) + b"\xa8\x02"
    poll += b"\x74" + struct.pack("<b", -(len(poll) + 2))
    with machine_of(tmp_path, poll + tiny.power_off()) as (machine, _):
        machine.start()
        assert machine.wait(0.2) is None
        machine.press_power_button()
        outcome = machine.wait(DEADLINE_S)
        assert outcome is not None
        assert outcome.reason is EndReason.POWER_OFF
        machine.press_power_button()
    machine.press_power_button()
