"""Is this KVM hardware, or something that emulates? A tiny guest counts down a loop and is timed.

Hardware runs the loop's two instructions in about a nanosecond; a KVM that emulates every
instruction takes hundreds, and a Linux boot on it hours.
"""

from __future__ import annotations

import contextlib
import struct
import time

from voidbox.boot import layout
from voidbox.errors import HostError
from voidbox.kvm import api
from voidbox.kvm.kvm import Kvm
from voidbox.memory import GuestMemory
from voidbox.named_tuple import NamedTuple

# Hardware: about 0.5. QEMU's TCG below a nested KVM: 2 to 20. Instruction emulation: over 500.
EMULATED_NS_PER_LOOP = 100.0

_CODE_GPA = 0x1000
_DONE_PORT = 0x10
_LOOPS_FIRST = 20_000
_LOOPS_MIN = 300_000  # fewer would time the first entry into a guest, not the loop
_LOOPS_MAX = 50_000_000
_LONG_ENOUGH_NS = 20_000_000
_TRIES = 3  # before slow is slow: other programs may have had the processor


class SpeedProbe(NamedTuple):
    """The timing of one loop iteration (DEC, JNZ) in the guest."""

    ns_per_loop: float

    @property
    def is_emulated(self) -> bool:
        """Whether this is too slow for any processor that runs the guest itself."""
        return self.ns_per_loop > EMULATED_NS_PER_LOOP


def measure(kvm: Kvm) -> SpeedProbe:
    """Time the loop; a few milliseconds on hardware, some seconds on an emulator.

    Raises:
        HostError: the guest did not run as it must.
    """
    best = _measure_once(kvm)
    for _ in range(_TRIES - 1):
        if not best.is_emulated:
            break
        best = min(best, _measure_once(kvm))
    return best


def _measure_once(kvm: Kvm) -> SpeedProbe:
    loops = _LOOPS_FIRST
    while True:
        elapsed_ns = _run_loop(kvm, loops)
        is_enough = elapsed_ns >= _LONG_ENOUGH_NS and loops >= _LOOPS_MIN
        if is_enough or loops >= _LOOPS_MAX:
            return SpeedProbe(elapsed_ns / loops)
        loops = min(loops * 16, _LOOPS_MAX)


def _loop_code(loops: int) -> bytes:
    """Real mode: 66 b9 imm32 mov ecx, loops; 66 49 dec ecx; 75 fc jnz; e6 10 out 0x10, al."""
    return b"\x66\xb9" + struct.pack("<I", loops) + b"\x66\x49\x75\xfc\xe6" + bytes([_DONE_PORT])


def _run_loop(kvm: Kvm, loops: int) -> int:
    """Run the loop in a VM of its own; returns nanoseconds of KVM_RUN."""
    with contextlib.ExitStack() as stack:
        memory = stack.enter_context(GuestMemory(64 << 10))
        vm = stack.enter_context(contextlib.closing(kvm.create_vm()))
        vm.set_identity_map_addr(layout.KVM_IDENTITY_MAP_GPA)
        vm.set_tss_addr(layout.KVM_TSS_GPA)
        vm.set_user_memory_region(0, 0, memory.regions[0].map)
        memory.write(_CODE_GPA, _loop_code(loops))
        vcpu = stack.enter_context(contextlib.closing(vm.create_vcpu(0)))
        sregs, regs = vcpu.get_sregs(), vcpu.get_regs()
        sregs.cs.base, sregs.cs.selector = 0, 0
        regs.rip, regs.rflags = _CODE_GPA, 2
        vcpu.set_sregs(sregs)
        vcpu.set_regs(regs)
        start_ns = time.monotonic_ns()
        while (reason := vcpu.run()) == api.KVM_EXIT_INTR:
            pass
        elapsed_ns = time.monotonic_ns() - start_ns
        if reason != api.KVM_EXIT_IO or vcpu.kvm_run.io.port != _DONE_PORT:
            name = api.EXIT_NAMES.get(reason, str(reason))
            raise HostError(f"the speed probe's guest ended with {name}: this KVM does not work")
        return elapsed_ns
