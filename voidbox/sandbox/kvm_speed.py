"""Whether this host's KVM can boot Linux, known before a guest is waited for.

Measured once a day, a few milliseconds on hardware, and kept in the cache folder for this boot of
the host and this /dev/kvm. A KVM that emulates is measured anew each time: what a busy moment made
seem slow is not held against the host.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import closing, suppress

from voidbox import defaults
from voidbox.errors import HostError
from voidbox.kvm import KVM_DEVICE

CACHE_NAME = "kvm-speed.json"
_FRESH_S = 24 * 3600.0
_CACHE_BYTES_MAX = 4096
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
# The smallest Linux has half a megabyte; what is shorter is a program for the bare machine, which
# an emulating KVM runs well.
_LINUX_BYTES_MIN = 256 << 10


def check_can_boot(kernel: str) -> None:
    """Refuse to boot Linux on a KVM that would need hours for it.

    Args:
        kernel: what is to be booted; what is no Linux is let through.
    Raises:
        HostError: this KVM emulates every instruction, or lacks something.
    """
    try:
        is_linux = os.path.getsize(kernel) >= _LINUX_BYTES_MIN
    except OSError:
        return  # whoever opens it says what is wrong
    if is_linux:
        check_host()


def check_host() -> None:
    """Refuse a KVM that cannot boot Linux.

    Raises:
        HostError: see check_can_boot; or there is none that this user may open.
    """
    key = _key()
    if key is not None and _is_known_fast(key):
        return
    from voidbox.kvm.kvm import Kvm  # most starts know the answer
    from voidbox.vmm import probe, requirements

    with closing(Kvm()) as kvm:
        requirements.check(kvm, cpus=1)
        result = probe.measure(kvm)
    if result.is_emulated:
        raise HostError(
            f"this KVM emulates every instruction ({result.ns_per_loop:.0f} ns for what takes a "
            "processor 1 ns): Linux cannot boot on it; use a host with hardware virtualisation, or "
            "switch on nested virtualisation for this VM (voidbox doctor tells more)"
        )
    if key is not None:
        _remember(key, result.ns_per_loop)


def _key() -> str | None:
    """What the measurement holds for: a module loaded again, or another boot, is another KVM."""
    try:
        device = os.stat(KVM_DEVICE)
        with open(_BOOT_ID, encoding="ascii") as file:
            return f"{file.read().strip()} {device.st_rdev} {device.st_ctime_ns}"
    except OSError:
        return None


def _path() -> str:
    return os.path.join(defaults.cache_folder(), CACHE_NAME)


def _is_known_fast(key: str) -> bool:
    try:
        with open(_path(), "rb") as file:
            known = json.loads(file.read(_CACHE_BYTES_MAX))
        age_s = time.time() - known["at"]
        return bool(known["key"] == key) and 0 <= age_s < _FRESH_S  # less: the clock was put back
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def _remember(key: str, ns_per_loop: float) -> None:
    """Keep that it is fast; where nothing can be kept, the next start measures again."""
    path = _path()
    beside = f"{path}.{os.getpid()}"
    values = {"key": key, "ns_per_loop": ns_per_loop, "at": time.time()}
    with suppress(OSError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(beside, "x", encoding="ascii") as file:
                json.dump(values, file)
            os.rename(beside, path)
        except OSError:
            with suppress(OSError):
                os.unlink(beside)
