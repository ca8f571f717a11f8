"""Whether what one host saved can go on here: the processor, its features, its clock."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from typing import Protocol

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple

_CPUINFO_BYTES = 16 << 10  # the first processor's entry is in it
_XSAVE_LEAF = 0xD

# Registers of CPUID that are sets of features: (leaf, subleaf) to names. What a guest was given
# must be there. All else describes, and the guest keeps what it was told.
_FEATURES: Mapping[tuple[int, int], tuple[str, ...]] = {
    (1, 0): ("ecx", "edx"),
    (7, 0): ("ebx", "ecx", "edx"),
    (7, 1): ("eax", "ebx", "ecx", "edx"),
    (7, 2): ("edx",),
    (0x8000_0001, 0): ("ecx", "edx"),
    (0x8000_0007, 0): ("edx",),
    (0x8000_0008, 0): ("ebx",),
    (0x8000_000A, 0): ("edx",),
    (0x8000_0021, 0): ("eax",),
    (0x4000_0001, 0): ("eax",),
}
# What KVM sets and clears as the guest runs: OSXSAVE, APIC, OSPKE.
_CHANGING = {(1, 0, "ecx"): 1 << 27, (1, 0, "edx"): 1 << 9, (7, 0, "ecx"): 1 << 4}


class Host(NamedTuple):
    """The host that a snapshot was made on.

    Attributes:
        release: of its kernel.
    """

    vendor: str
    family: str
    model: str
    stepping: str
    microcode: str
    release: str

    @classmethod
    @functools.cache
    def here(cls) -> Host:
        """Return this one. To be asked before a jail, where the file cannot be seen."""
        try:
            with open("/proc/cpuinfo", "rb") as file:
                text = file.read(_CPUINFO_BYTES).decode("ascii", "replace")
        except OSError:
            text = ""
        pairs = [line.partition(":") for line in text.partition("\n\n")[0].splitlines()]
        values = {name.strip(): value.strip() for name, _, value in pairs}
        keys = ("vendor_id", "cpu family", "model", "stepping", "microcode")
        vendor, family, model, stepping, microcode = (values.get(key, "") for key in keys)
        return cls(vendor, family, model, stepping, microcode, os.uname().release)


def check_host(saved: Host, here: Host) -> list[str]:
    """Compare processors; returns what is worth a warning, a line each.

    A snapshot may not say of which processor it is: jails made such once.

    Raises:
        ConfigError: another processor, whose registers are laid out in another way.
    """
    if saved.vendor and saved[:4] != here[:4]:
        raise ConfigError(
            f"the snapshot was made on another processor ({_name(saved)}; here: {_name(here)}): "
            "restore it on one of the same kind"
        )
    return [
        f"the snapshot was made with {what} {old}, and this host has {new}"
        for what, old, new in (
            ("kernel", saved.release, here.release),
            ("microcode", saved.microcode, here.microcode),
        )
        if old != new
    ]


def _name(host: Host) -> str:
    return f"{host.vendor} {host.family}/{host.model}/{host.stepping}"


class Entry(Protocol):
    """One leaf of CPUID."""

    @property
    def function(self) -> int: ...
    @property
    def subleaf(self) -> int: ...
    @property
    def eax(self) -> int: ...
    @property
    def ebx(self) -> int: ...
    @property
    def ecx(self) -> int: ...
    @property
    def edx(self) -> int: ...


def check_cpuid(saved: Iterable[Entry], here: Iterable[Entry]) -> None:
    """See that a guest finds every feature here that it was given.

    Args:
        here: what a guest of the same kind would be given on this host.
    Raises:
        ConfigError: one is missing; or the registers of XSAVE lie elsewhere.
    """
    offered = {(entry.function, entry.subleaf): entry for entry in here}
    for entry in saved:
        key = entry.function, entry.subleaf
        other = offered.get(key)
        for register in _FEATURES.get(key, ()):
            wanted = getattr(entry, register) & ~_CHANGING.get((*key, register), 0)
            missing = wanted & ~(getattr(other, register) if other is not None else 0)
            if missing:
                raise ConfigError(
                    f"this host's KVM lacks what the snapshot's guest uses (CPUID {key[0]:#x}."
                    f"{key[1]} {register} {missing:#x}): restore it where it was made"
                )
        # Of subleaf 0, ebx is what the guest has switched on; of the others, where things lie.
        is_place = entry.function == _XSAVE_LEAF and entry.subleaf > 1 and entry.eax
        if is_place and (other is None or (entry.eax, entry.ebx) != (other.eax, other.ebx)):
            raise ConfigError(
                "this host's processor keeps its registers in another layout (CPUID 0xd."
                f"{entry.subleaf}): restore the snapshot where it was made"
            )
