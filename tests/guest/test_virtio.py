"""virtio devices on a real machine: what a guest sees of them, and that they leave nothing."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import pytest

from tests.guest import tiny
from voidbox.boot import layout
from voidbox.errors import VoidboxError
from voidbox.kvm import api
from voidbox.kvm.kvm import Kvm
from voidbox.virtio.fs import VirtioFs
from voidbox.vmm.config import MachineConfig, ShareConfig, VsockConfig
from voidbox.vmm.machine import Machine
from voidbox.vmm.outcome import EndReason

pytestmark = pytest.mark.kvm

DEADLINE_S = 60
MEMORY_BYTES = 32 << 20
MAGIC = 0x74726976  # "virt"


def load_eax(address: int) -> bytes:
    """Mov edi, address; mov eax, [edi]."""
    return b"\xbf" + struct.pack("<I", address) + b"\x8b\x07"


def config_of(tmp_path: Path, code: bytes, vsock: VsockConfig | None = None) -> MachineConfig:
    kernel = tiny.write_elf(tmp_path / "tiny.elf", code, pvh=True)
    return MachineConfig(kernel=kernel, memory_bytes=MEMORY_BYTES, vsock=vsock)


def test_the_guest_finds_the_devices(tmp_path: Path) -> None:
    code = b""
    for slot in range(2):
        for register in range(3):  # MagicValue, Version, DeviceID
            address = layout.MMIO_DEVICES_GPA + slot * layout.MMIO_DEVICE_BYTES + 4 * register
            code += load_eax(address) + tiny.store_eax(0x200000 + 12 * slot + 4 * register)
    vsock = VsockConfig(cid=5, path=str(tmp_path / "v.sock"))
    with Machine(config_of(tmp_path, code + tiny.power_off(), vsock)) as machine:
        assert (tmp_path / "v.sock").is_socket()
        machine.start()
        outcome = machine.wait(DEADLINE_S)
        assert outcome is not None
        assert outcome.reason is EndReason.POWER_OFF
        found = struct.unpack("<6I", machine.memory.read(0x200000, 24))
    assert found == (MAGIC, 2, 4, MAGIC, 2, 19)
    assert not (tmp_path / "v.sock").exists()


def test_a_kick_costs_no_exit(tmp_path: Path) -> None:
    notify = layout.MMIO_DEVICES_GPA + 0x50
    code = b"\x31\xc0" + tiny.store_eax(notify) * 100  # xor eax, eax: queue 0
    with Machine(config_of(tmp_path, code + tiny.power_off())) as machine:
        machine.start()
        assert machine.wait(DEADLINE_S) is not None
        assert "KVM_EXIT_MMIO" not in machine.statistics().exits


def test_reading_a_register_and_acknowledging_cost_no_exit(tmp_path: Path) -> None:
    base = layout.MMIO_DEVICES_GPA
    status, acknowledge = base + 0x60, base + 0x64
    code = (load_eax(status) + tiny.store_eax(acknowledge)) * 1000 + load_eax(base)
    with Machine(config_of(tmp_path, code + tiny.power_off())) as machine:
        machine.start()
        assert machine.wait(DEADLINE_S) is not None
        # The ring of queued writes holds 170: when it is full, the guest exits.
        assert machine.statistics().exits.get("KVM_EXIT_MMIO", 0) <= 1000 // 100


def test_without_readonly_memory_registers_are_read_by_exits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Kvm.check_extension
    monkeypatch.setattr(
        Kvm,
        "check_extension",
        lambda self, number: 0 if number == api.KVM_CAP_READONLY_MEM else real(self, number),
    )
    code = load_eax(layout.MMIO_DEVICES_GPA) + tiny.store_eax(0x200000)
    with Machine(config_of(tmp_path, code + tiny.power_off())) as machine:
        machine.start()
        assert machine.wait(DEADLINE_S) is not None
        assert machine.statistics().exits["KVM_EXIT_MMIO"] == 1
        assert struct.unpack("<I", machine.memory.read(0x200000, 4)) == (MAGIC,)


def test_the_guest_cannot_write_the_page(tmp_path: Path) -> None:
    """A write changes nothing but what the register's meaning is."""
    base = layout.MMIO_DEVICES_GPA
    code = b"\xb8\x05\x00\x00\x00"  # mov eax, 5
    for register in range(0, 0x200, 4):
        code += tiny.store_eax(base + register)
    code += load_eax(base) + tiny.store_eax(0x200000)
    code += load_eax(base + 8) + tiny.store_eax(0x200004)
    code += load_eax(base + 0x70) + tiny.store_eax(0x200008)
    with Machine(config_of(tmp_path, code + tiny.power_off())) as machine:
        machine.start()
        assert machine.wait(DEADLINE_S) is not None
        assert struct.unpack("<3I", machine.memory.read(0x200000, 12)) == (MAGIC, 4, 0)


def test_machines_with_vsock_leave_nothing_behind(tmp_path: Path) -> None:
    vsock = VsockConfig(path=str(tmp_path / "v.sock"))

    def run() -> None:
        with Machine(config_of(tmp_path, tiny.power_off(), vsock)) as machine:
            machine.start()
            assert machine.wait(DEADLINE_S) is not None

    run()
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(10):
        run()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    ("vsock", "message"),
    [
        (VsockConfig(cid=2), "CID 2"),
        (VsockConfig(cid=1 << 32), "CID"),
        (VsockConfig(path="/nonexistent/v.sock"), "v.sock"),
        (VsockConfig(path="x" * 200), "long"),
    ],
)
def test_bad_sockets_are_clear_errors_that_leave_nothing(
    tmp_path: Path, vsock: VsockConfig, message: str
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(VoidboxError, match=message):
        Machine(config_of(tmp_path, tiny.power_off(), vsock))
    assert len(os.listdir("/proc/self/fd")) <= before


def write(register: int, value: int) -> bytes:
    """Write a register of the device behind the rng."""
    base = layout.MMIO_DEVICES_GPA + layout.MMIO_DEVICE_BYTES
    return b"\xb8" + struct.pack("<I", value) + tiny.store_eax(base + register)


DESC, AVAIL, USED, REQUEST, ANSWER = (0x200000 + 0x1000 * n for n in range(5))
HIPRIO_RINGS = 0x205000  # of the queue that is not used: all three in one page
INIT = struct.pack("<IIQQIIIHHIIII48x", 104, 26, 1, 0, 0, 0, 0, 0, 0, 7, 36, 0, 0)


def ask() -> bytes:
    """Bring the device up, send what is in its queue, and wait for the answer."""
    code = write(0x70, 0) + write(0x70, 1) + write(0x70, 3)
    code += write(0x24, 1) + write(0x20, 1) + write(0x70, 0xB)  # VIRTIO_F_VERSION_1
    hiprio = HIPRIO_RINGS, HIPRIO_RINGS + 0x400, HIPRIO_RINGS + 0x800
    for queue, rings in enumerate((hiprio, (DESC, AVAIL, USED))):
        code += write(0x30, queue) + write(0x38, 8)
        for register, gpa in zip((0x80, 0x90, 0xA0), rings, strict=True):
            code += write(register, gpa) + write(register + 4, 0)
        code += write(0x44, 1)
    code += write(0x70, 0xF) + write(0x50, 1)
    # mov edi, USED; again: cmp word [edi + 2], 1; jne again
    return code + b"\xbf" + struct.pack("<I", USED) + b"\x66\x83\x7f\x02\x01\x75\xf9"


def put_init(machine: Machine) -> None:
    """Put FUSE_INIT in the queue."""
    machine.memory.write(REQUEST, INIT)
    machine.memory.write(DESC, struct.pack("<QIHH", REQUEST, len(INIT), 1, 1))
    machine.memory.write(DESC + 16, struct.pack("<QIHH", ANSWER, 100, 2, 0))
    machine.memory.write(AVAIL, struct.pack("<HHH", 0, 1, 0))


def test_a_request_to_a_shared_folder(tmp_path: Path) -> None:
    """Bring virtio-fs up, send FUSE_INIT, and wait for the answer: all by instructions."""
    share = ShareConfig(str(tmp_path), "here")

    def run() -> bytes:
        config = config_of(tmp_path, ask() + tiny.power_off())._replace(shares=(share,))
        with Machine(config) as machine:
            put_init(machine)
            machine.start()
            outcome = machine.wait(DEADLINE_S)
            assert outcome is not None
            assert outcome.reason is EndReason.POWER_OFF
            # Not its flags: the device may not have asked for kicks again yet.
            assert machine.memory.read(USED + 2, 10) == struct.pack("<HII", 1, 0, 80)
            return machine.memory.read(ANSWER, 24)

    assert run() == struct.pack("<IiQII", 80, 0, 1, 7, 36)
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    run()
    # What tests before this one left may end meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= before
    assert threading.active_count() <= threads
    with pytest.raises(VoidboxError, match="no folder"):
        Machine(config_of(tmp_path, b"")._replace(shares=(share._replace(path="/none"),)))


def test_a_folder_that_hangs_holds_up_no_other_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reset waits for the host's file system: never on the loop of all the others."""
    code = ask() + write(0x70, 0) + tiny.power_off()
    resetting, goes_on, answered = threading.Event(), threading.Event(), threading.Event()

    def reset(self: VirtioFs) -> None:
        resetting.set()
        assert goes_on.wait(DEADLINE_S)

    share = ShareConfig(str(tmp_path), "here")
    with Machine(config_of(tmp_path, code)._replace(shares=(share,))) as machine:
        monkeypatch.setattr(VirtioFs, "reset", reset)
        put_init(machine)
        machine.start()
        try:
            assert resetting.wait(DEADLINE_S)
            machine.loop.call_soon(answered.set)
            assert answered.wait(1)
        finally:
            goes_on.set()
        outcome = machine.wait(DEADLINE_S)
        assert outcome is not None
        assert outcome.reason is EndReason.POWER_OFF
        monkeypatch.undo()
