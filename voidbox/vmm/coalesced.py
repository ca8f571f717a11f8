"""The coalesced ring: port and MMIO writes that KVM queues instead of leaving the guest.

KVM API §4.116. One ring a VM, mapped into every vCPU's kvm_run region. Whoever handles an exit
drains it first, so writes are seen in program order with the accesses that do exit. A device whose
next step depends on such a write drains it too (an interrupt, after its acknowledgement).
"""

from __future__ import annotations

from threading import Lock
from typing import Any

from voidbox.devices.bus import Bus
from voidbox.kvm._abi import ffi

_PAGE_BYTES = 4096
_ENTRIES = (_PAGE_BYTES - ffi.sizeof("struct kvm_coalesced_mmio_ring")) // ffi.sizeof(
    "struct kvm_coalesced_mmio"
)


class CoalescedRing:
    """Reads queued writes and performs them. Thread: any, under `_lock`; never from a bus access.

    Args:
        ring: `struct kvm_coalesced_mmio_ring *`.
    """

    def __init__(self, ring: Any, ports: Bus, mmio: Bus) -> None:
        self._ring = ring
        self._ports = ports
        self._mmio = mmio
        self._lock = Lock()

    def has_entries(self) -> bool:
        """Whether something is queued or still being performed, seen without the lock."""
        return bool(self._ring.first != self._ring.last)

    def drain(self) -> None:
        """Perform all queued writes; returns when they are done, whoever does them."""
        with self._lock:
            ring = self._ring
            first = ring.first % _ENTRIES
            # `last` is the kernel's; what it adds meanwhile belongs to a later exit.
            last = ring.last % _ENTRIES
            while first != last:
                entry = ring.coalesced_mmio[first]
                width = min(entry.len, 8)
                value = int.from_bytes(bytes(entry.data[0:width]), "little")
                bus = self._ports if entry.pio else self._mmio
                bus.write(entry.phys_addr, width, value)
                first = (first + 1) % _ENTRIES
                ring.first = first  # only now: until then has_entries() holds for everyone
