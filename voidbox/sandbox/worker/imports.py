"""What is imported for a machine, and when: most of a sandbox's start is that.

keeper ── SHARED ─┬─ fork ── what it needs itself, while its worker imports; then it orders
worker            └───────── USUAL, and waits for the orders
"""

from __future__ import annotations

from collections.abc import Iterable

# What both import: once, and in pages that they share.
SHARED = (
    *("hashlib", "voidbox.jail.namespaces", "voidbox.nat.config", "voidbox.vsock.dial"),
    *("voidbox.sandbox.keeper.confinement", "voidbox.sandbox.keeper.network"),
    *("voidbox.sandbox.worker.plan", "voidbox.sandbox.worker.requests", "voidbox.vmm.console"),
    *("voidbox.snapshot.working_set", "voidbox.vmm.outcome", "voidbox.vsock.unix_listener"),
)
# What most machines import as they are made; the others have a few pages more.
USUAL = (
    *("voidbox.nat.backend", "voidbox.virtio.net", "voidbox.virtio.vsock", "voidbox.vsock.unix"),
    *("voidbox.virtio.block", "voidbox.virtio.balloon", "voidbox.vmm.disk", "voidbox.vmm.restore"),
    *("voidbox.vmm.serial_port", "voidbox.sandbox.keeper.outside"),
)


def import_all(names: Iterable[str]) -> None:
    """Import modules by their names."""
    for name in names:
        __import__(name)  # importlib itself is a millisecond
