"""/dev/kvm itself: the system ioctls (Documentation/virt/kvm/api.rst)."""

from __future__ import annotations

import errno
import os
from typing import Any

from voidbox.errors import HostError
from voidbox.kvm import KVM_DEVICE, api
from voidbox.kvm._abi import ffi
from voidbox.kvm.handle import Handle
from voidbox.kvm.vm import Vm

_MAX_CPUID_ENTRIES = 1024
_MAX_MSRS = 1024


class Kvm(Handle):
    """The open KVM device.

    Raises:
        HostError: the device is missing or forbidden; the message says what to do.
    """

    def __init__(self, path: str = KVM_DEVICE) -> None:
        try:
            super().__init__(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except FileNotFoundError as error:
            raise HostError(
                f"{path} is missing: load it with `sudo modprobe kvm_intel` or `sudo modprobe "
                "kvm_amd`, and switch on virtualisation in the firmware (or nested "
                "virtualisation, inside a VM)",
                errno.ENOENT,
            ) from error
        except PermissionError as error:
            raise HostError(
                f"{path} is not yours to open: `sudo usermod -aG kvm $USER`, then log in again",
                errno.EACCES,
            ) from error
        except OSError as error:
            raise HostError.from_errno(f"open {path}", error.errno or 0) from error

    def get_api_version(self) -> int:
        """KVM_GET_API_VERSION: 12 on every kernel since 2.6.22."""
        return self.ioctl("KVM_GET_API_VERSION", api.KVM_GET_API_VERSION)

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 if absent, else 1 or a capability's own number."""
        return self.ioctl("KVM_CHECK_EXTENSION", api.KVM_CHECK_EXTENSION, capability)

    def get_vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: bytes of the shared kvm_run region of a vCPU."""
        return self.ioctl("KVM_GET_VCPU_MMAP_SIZE", api.KVM_GET_VCPU_MMAP_SIZE)

    def get_supported_cpuid(self) -> Any:
        """KVM_GET_SUPPORTED_CPUID: `struct kvm_cpuid2 *` with all that this host can offer."""
        cpuid = ffi.new("struct kvm_cpuid2 *", {"entries": _MAX_CPUID_ENTRIES})
        cpuid.nent = _MAX_CPUID_ENTRIES
        self.ioctl("KVM_GET_SUPPORTED_CPUID", api.KVM_GET_SUPPORTED_CPUID, cpuid)
        return cpuid

    def get_msr_index_list(self) -> list[int]:
        """KVM_GET_MSR_INDEX_LIST: the MSRs that KVM keeps for a guest, but for the MTRRs."""
        msrs = ffi.new("struct kvm_msr_list *", {"indices": _MAX_MSRS})
        msrs.nmsrs = _MAX_MSRS
        self.ioctl("KVM_GET_MSR_INDEX_LIST", api.KVM_GET_MSR_INDEX_LIST, msrs)
        return list(msrs.indices[0 : msrs.nmsrs])

    def create_vm(self) -> Vm:
        """KVM_CREATE_VM, of the default machine type."""
        while True:
            try:
                return Vm(self.ioctl("KVM_CREATE_VM", api.KVM_CREATE_VM), self)
            except HostError as error:
                # A signal during the slow set-up (tens of milliseconds) is no failure.
                if error.errno != errno.EINTR:
                    raise
