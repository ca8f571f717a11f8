"""What voidbox needs of a KVM. One table, for the machine and for `voidbox doctor`."""

from __future__ import annotations

from voidbox.errors import HostError
from voidbox.kvm import api
from voidbox.kvm.kvm import Kvm

REQUIRED_CAPABILITIES: tuple[tuple[str, int], ...] = (
    ("KVM_CAP_IRQCHIP", api.KVM_CAP_IRQCHIP),
    ("KVM_CAP_USER_MEMORY", api.KVM_CAP_USER_MEMORY),
    ("KVM_CAP_SET_TSS_ADDR", api.KVM_CAP_SET_TSS_ADDR),
    ("KVM_CAP_SET_IDENTITY_MAP_ADDR", api.KVM_CAP_SET_IDENTITY_MAP_ADDR),
    ("KVM_CAP_EXT_CPUID", api.KVM_CAP_EXT_CPUID),
    ("KVM_CAP_PIT2", api.KVM_CAP_PIT2),
    ("KVM_CAP_IRQFD", api.KVM_CAP_IRQFD),
    ("KVM_CAP_IOEVENTFD", api.KVM_CAP_IOEVENTFD),
    ("KVM_CAP_IMMEDIATE_EXIT", api.KVM_CAP_IMMEDIATE_EXIT),
)


def missing_capabilities(kvm: Kvm) -> list[str]:
    """Return the names of required capabilities that this KVM lacks."""
    return [name for name, number in REQUIRED_CAPABILITIES if not kvm.check_extension(number)]


def check(kvm: Kvm, cpus: int) -> None:
    """Refuse a KVM that cannot run a machine of `cpus` vCPUs.

    Raises:
        HostError: the message names what is missing.
    """
    version = kvm.get_api_version()
    if version != api.KVM_API_VERSION:
        raise HostError(
            f"KVM's API version is {version}, not {api.KVM_API_VERSION}: "
            "this is no KVM that voidbox knows; use Linux 4.12 or newer"
        )
    missing = missing_capabilities(kvm)
    if missing:
        raise HostError(f"this KVM lacks {', '.join(missing)}: use a host with Linux 4.12 or newer")
    most = kvm.check_extension(api.KVM_CAP_MAX_VCPUS) or kvm.check_extension(api.KVM_CAP_NR_VCPUS)
    if most and cpus > most:
        raise HostError(f"this KVM runs at most {most} vCPUs a machine: ask for fewer CPUs")
