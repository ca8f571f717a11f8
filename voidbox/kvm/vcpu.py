"""One vCPU: KVM_RUN, its shared kvm_run page, and the state that can be read and set."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterable
from typing import Any

from voidbox.errors import HostError
from voidbox.kvm import api
from voidbox.kvm._abi import ffi
from voidbox.kvm.handle import Handle, _ioctl

_KERNEL_SIGSET_BYTES = 8  # the kernel's sigset_t has 64 bits; libc's is larger
_MAX_CPUID_ENTRIES = 1024
_MAX_MSRS = 255  # a call takes fewer than MAX_IO_MSRS


class Vcpu(Handle):
    """A vCPU's descriptor. Thread: its vCPU thread alone, but for `request_exit`.

    Attributes:
        kvm_run: `struct kvm_run *`, shared with the kernel.
        cpuid: `struct kvm_cpuid2 *` as it was set; what KVM_GET_CPUID2 gives back is changed by
            what the guest does, and by some KVMs beyond that.
        run_view: the same memory and what follows it (port data, the coalesced ring), as bytes.
    """

    def __init__(self, fd: int, vcpu_id: int, mmap_bytes: int) -> None:
        super().__init__(fd)
        self.vcpu_id = vcpu_id
        self.cpuid: Any = None
        try:
            self._map = mmap.mmap(fd, mmap_bytes)
        except OSError as error:
            super().close()
            raise HostError.from_errno("map kvm_run", error.errno or 0) from error
        # A process forked off to write a snapshot must not keep the VM alive.
        self._map.madvise(mmap.MADV_DONTFORK)
        self._buffer = ffi.from_buffer(self._map)
        self.kvm_run = ffi.cast("struct kvm_run *", self._buffer)
        self.run_view = memoryview(self._map)

    def run(self) -> int:
        """KVM_RUN, without the GIL. Returns kvm_run.exit_reason.

        An interruption (a signal, `request_exit`) is the exit reason KVM_EXIT_INTR.

        Raises:
            HostError: KVM_RUN failed; the VM cannot go on.
        """
        if _ioctl(self.fd, api.KVM_RUN, ffi.NULL) < 0:
            # EAGAIN: an application processor left its wait for SIPI; run it again.
            if ffi.errno in (errno.EINTR, errno.EAGAIN):
                return api.KVM_EXIT_INTR
            raise HostError.from_errno("KVM_RUN", ffi.errno)
        return self.kvm_run.exit_reason  # type: ignore[no-any-return]

    def request_exit(self, requested: bool) -> None:
        """Set kvm_run.immediate_exit: the next KVM_RUN returns at once. Thread: any."""
        self.kvm_run.immediate_exit = requested

    def coalesced_ring(self, page_offset: int) -> Any:
        """Return `struct kvm_coalesced_mmio_ring *`, at the page KVM_CAP_COALESCED_MMIO names."""
        return ffi.cast(
            "struct kvm_coalesced_mmio_ring *", self._buffer + page_offset * mmap.PAGESIZE
        )

    def set_signal_mask(self, blocked: Iterable[int]) -> None:
        """KVM_SET_SIGNAL_MASK: the signals blocked while KVM_RUN runs, instead of the thread's.

        A signal that the thread blocks and this mask does not ends KVM_RUN and stays pending: no
        handler ever runs, so none need be installed.
        """
        mask = sum(1 << (number - 1) for number in blocked)
        argument = ffi.new(
            "struct kvm_signal_mask *",
            {
                "len": _KERNEL_SIGSET_BYTES,
                "sigset": list(mask.to_bytes(_KERNEL_SIGSET_BYTES, "little")),
            },
        )
        self.ioctl("KVM_SET_SIGNAL_MASK", api.KVM_SET_SIGNAL_MASK, argument)

    def get_regs(self) -> Any:
        """KVM_GET_REGS: `struct kvm_regs *`."""
        return self.get("KVM_GET_REGS", api.KVM_GET_REGS, "struct kvm_regs *")

    def set_regs(self, regs: Any) -> None:
        """KVM_SET_REGS."""
        self.ioctl("KVM_SET_REGS", api.KVM_SET_REGS, regs)

    def get_sregs(self) -> Any:
        """KVM_GET_SREGS: `struct kvm_sregs *`."""
        return self.get("KVM_GET_SREGS", api.KVM_GET_SREGS, "struct kvm_sregs *")

    def set_sregs(self, sregs: Any) -> None:
        """KVM_SET_SREGS."""
        self.ioctl("KVM_SET_SREGS", api.KVM_SET_SREGS, sregs)

    def read_msrs(self, indices: Iterable[int]) -> tuple[dict[int, int], list[int]]:
        """KVM_GET_MSRS for as many as KVM has: values by index, and those that it refused."""
        left = list(indices)
        values: dict[int, int] = {}
        refused: list[int] = []
        while left:
            entries = [(index, 0, 0) for index in left[:_MAX_MSRS]]
            msrs = ffi.new("struct kvm_msrs *", {"nmsrs": len(entries), "entries": entries})
            done = self.ioctl("KVM_GET_MSRS", api.KVM_GET_MSRS, msrs)
            values.update((entry.index, entry.data) for entry in msrs.entries[0:done])
            if done < len(entries):
                refused.append(left[done])
                done += 1
            del left[:done]
        return values, refused

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """KVM_GET_MSRS: values by index.

        Raises:
            HostError: KVM does not know one of them; the message names it.
        """
        entries = [(index, 0, 0) for index in indices]
        msrs = self._msrs("KVM_GET_MSRS", api.KVM_GET_MSRS, entries)
        return {entry.index: entry.data for entry in msrs.entries[0 : len(entries)]}

    def set_msrs(self, values: Iterable[tuple[int, int]]) -> None:
        """KVM_SET_MSRS: (index, value) in the order given.

        Raises:
            HostError: KVM refused one of them; the message names it.
        """
        entries = [(index, 0, value) for index, value in values]
        for start in range(0, len(entries), _MAX_MSRS):
            self._msrs("KVM_SET_MSRS", api.KVM_SET_MSRS, entries[start : start + _MAX_MSRS])

    def _msrs(self, name: str, request: int, entries: list[tuple[int, int, int]]) -> Any:
        msrs = ffi.new("struct kvm_msrs *", {"nmsrs": len(entries), "entries": entries})
        done = self.ioctl(name, request, msrs)
        if done != len(entries):
            raise HostError(f"{name}: MSR {entries[done][0]:#x} was refused")
        return msrs

    def get_fpu(self) -> Any:
        """KVM_GET_FPU: `struct kvm_fpu *`."""
        return self.get("KVM_GET_FPU", api.KVM_GET_FPU, "struct kvm_fpu *")

    def set_fpu(self, fpu: Any) -> None:
        """KVM_SET_FPU."""
        self.ioctl("KVM_SET_FPU", api.KVM_SET_FPU, fpu)

    def get_xsave(self) -> Any:
        """KVM_GET_XSAVE: `struct kvm_xsave *`, 4 KiB: all but AMX, which guests are not given."""
        return self.get("KVM_GET_XSAVE", api.KVM_GET_XSAVE, "struct kvm_xsave *")

    def set_xsave(self, xsave: Any) -> None:
        """KVM_SET_XSAVE."""
        self.ioctl("KVM_SET_XSAVE", api.KVM_SET_XSAVE, xsave)

    def get_xcrs(self) -> Any:
        """KVM_GET_XCRS: `struct kvm_xcrs *`."""
        return self.get("KVM_GET_XCRS", api.KVM_GET_XCRS, "struct kvm_xcrs *")

    def set_xcrs(self, xcrs: Any) -> None:
        """KVM_SET_XCRS."""
        self.ioctl("KVM_SET_XCRS", api.KVM_SET_XCRS, xcrs)

    def get_lapic(self) -> Any:
        """KVM_GET_LAPIC: `struct kvm_lapic_state *`, the xAPIC register page."""
        return self.get("KVM_GET_LAPIC", api.KVM_GET_LAPIC, "struct kvm_lapic_state *")

    def set_lapic(self, lapic: Any) -> None:
        """KVM_SET_LAPIC."""
        self.ioctl("KVM_SET_LAPIC", api.KVM_SET_LAPIC, lapic)

    def get_vcpu_events(self) -> Any:
        """KVM_GET_VCPU_EVENTS: `struct kvm_vcpu_events *`."""
        return self.get("KVM_GET_VCPU_EVENTS", api.KVM_GET_VCPU_EVENTS, "struct kvm_vcpu_events *")

    def set_vcpu_events(self, events: Any) -> None:
        """KVM_SET_VCPU_EVENTS."""
        self.ioctl("KVM_SET_VCPU_EVENTS", api.KVM_SET_VCPU_EVENTS, events)

    def get_mp_state(self) -> int:
        """KVM_GET_MP_STATE: one of KVM_MP_STATE_*."""
        return int(
            self.get("KVM_GET_MP_STATE", api.KVM_GET_MP_STATE, "struct kvm_mp_state *").mp_state
        )

    def set_mp_state(self, mp_state: int) -> None:
        """KVM_SET_MP_STATE."""
        self.ioctl(
            "KVM_SET_MP_STATE",
            api.KVM_SET_MP_STATE,
            ffi.new("struct kvm_mp_state *", (mp_state,)),
        )

    def get_debugregs(self) -> Any:
        """KVM_GET_DEBUGREGS: `struct kvm_debugregs *`."""
        return self.get("KVM_GET_DEBUGREGS", api.KVM_GET_DEBUGREGS, "struct kvm_debugregs *")

    def set_debugregs(self, debugregs: Any) -> None:
        """KVM_SET_DEBUGREGS."""
        self.ioctl("KVM_SET_DEBUGREGS", api.KVM_SET_DEBUGREGS, debugregs)

    def get_cpuid2(self) -> Any:
        """KVM_GET_CPUID2: `struct kvm_cpuid2 *`, as this vCPU sees it."""
        cpuid = ffi.new("struct kvm_cpuid2 *", {"entries": _MAX_CPUID_ENTRIES})
        cpuid.nent = _MAX_CPUID_ENTRIES
        self.ioctl("KVM_GET_CPUID2", api.KVM_GET_CPUID2, cpuid)
        # Some kernels leave nent as it was, with empty entries behind the real ones, and
        # KVM_SET_CPUID2 then fails (E2BIG). No real last entry is all zeroes.
        entry_bytes = ffi.sizeof("struct kvm_cpuid_entry2")
        while cpuid.nent and not any(ffi.buffer(cpuid.entries + cpuid.nent - 1, entry_bytes)[:]):
            cpuid.nent -= 1
        return cpuid

    def set_cpuid2(self, cpuid: Any) -> None:
        """KVM_SET_CPUID2, once, before the first KVM_RUN."""
        self.ioctl("KVM_SET_CPUID2", api.KVM_SET_CPUID2, cpuid)
        self.cpuid = cpuid

    def get_tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ: the frequency of the guest's TSC."""
        return self.ioctl("KVM_GET_TSC_KHZ", api.KVM_GET_TSC_KHZ)

    def set_tsc_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ."""
        self.ioctl("KVM_SET_TSC_KHZ", api.KVM_SET_TSC_KHZ, khz)

    def get_tsc_offset(self) -> int | None:
        """KVM_GET_DEVICE_ATTR: guest TSC - host TSC, as an unsigned 64-bit number.

        None before Linux 5.16, which has no such attribute.
        """
        value = ffi.new("uint64_t *")
        try:
            self.ioctl("KVM_GET_DEVICE_ATTR", api.KVM_GET_DEVICE_ATTR, _tsc_offset(value))
        except HostError as error:
            if error.errno in (errno.ENXIO, errno.ENOTTY, errno.EINVAL):
                return None
            raise
        return int(value[0])

    def set_tsc_offset(self, offset: int) -> None:
        """KVM_SET_DEVICE_ATTR: see get_tsc_offset()."""
        value = ffi.new("uint64_t *", offset)
        self.ioctl("KVM_SET_DEVICE_ATTR", api.KVM_SET_DEVICE_ATTR, _tsc_offset(value))

    def kvmclock_ctrl(self) -> None:
        """KVM_KVMCLOCK_CTRL: tell the guest that it was paused, against soft-lockup reports.

        Raises:
            HostError: EINVAL where the guest has not set up kvmclock.
        """
        self.ioctl("KVM_KVMCLOCK_CTRL", api.KVM_KVMCLOCK_CTRL)

    def close(self) -> None:
        """Unmap kvm_run and close the descriptor."""
        if self.fd >= 0:
            self.run_view.release()
            self.kvm_run = ffi.NULL
            ffi.release(self._buffer)
            self._map.close()
        super().close()


def _tsc_offset(value: Any) -> Any:
    """Return `struct kvm_device_attr *`; `value` is a uint64_t * that must outlive the call."""
    return ffi.new(
        "struct kvm_device_attr *",
        (0, api.KVM_VCPU_TSC_CTRL, api.KVM_VCPU_TSC_OFFSET, int(ffi.cast("uintptr_t", value))),
    )
