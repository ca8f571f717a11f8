"""What a machine is to announce to Ray, so that pools find it: `voidbox ray-node` prints it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import shlex

from voidbox.named_tuple import NamedTuple

RESOURCE = "kvm"
OBJECT_STORE_BYTES = 200 << 20
_OWNER_BYTES = 24 << 20  # a sandbox's processes
_RAY_BYTES = 1 << 30  # its agents, a pool, what runs rollouts
_RESERVE = 10  # a tenth of the machine's memory stays for others
_FDS, _FDS_EACH = 64, 12
_THREADS_EACH = 16
RAY_MIN = (2, 58)


class Announcement(NamedTuple):
    """What a node says of itself.

    Attributes:
        slots: the most sandboxes it is to have.
        problems: what is wrong, each with what to do, in a line.
        notes: what costs sandboxes.
    """

    slots: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def announce(guest_bytes: int, memory_bytes: int) -> Announcement:
    """Return what this machine can announce.

    Args:
        guest_bytes: of each guest.
        memory_bytes: all of the machine's.
    """
    problems, notes = [], []
    left = memory_bytes - memory_bytes // _RESERVE - _RAY_BYTES - OBJECT_STORE_BYTES
    slots = max(0, left // (guest_bytes + _OWNER_BYTES))
    if not slots:
        problems.append(f"not one guest of {guest_bytes >> 20} MiB fits beside Ray: give --memory")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    by_files = (files - _FDS) // _FDS_EACH
    if by_files < slots:
        notes.append(f"open files: {files} are enough for {by_files}: raise ulimit -Hn")
    threads = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if 0 <= threads // _THREADS_EACH < slots:
        notes.append(
            f"threads: {threads} are enough for {threads // _THREADS_EACH}: raise ulimit -u"
        )
        slots = threads // _THREADS_EACH
    slots = max(0, min(slots, by_files))
    return Announcement(slots, (*problems, *_problems_of_ray()), tuple(notes))


def _problems_of_ray() -> list[str]:
    found = []
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        found.append("Ray is not installed: pip install 'voidbox-kvm[ray]'")
    else:
        if tuple(map(int, version.split(".")[:2])) < RAY_MIN:
            found.append(f"Ray {version} is too old: pip install 'voidbox-kvm[ray]'")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        found.append("/dev/kvm cannot be used: voidbox doctor says why")
    return found


def command(slots: int, address: str | None, resource_name: str = RESOURCE) -> str:
    """Return the command that starts Ray on this machine.

    The object store is small: by default Ray would keep three tenths of the memory for it, which
    guests are to have.

    Args:
        address: of the cluster's head, HOST:PORT; None: this is the head.
    """
    words = ["ray", "start", f"--address={address}" if address else "--head"]
    words += [
        f"--resources={json.dumps({resource_name: slots})}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        "--disable-usage-stats",
    ]
    if address:
        words.remove("--disable-usage-stats")  # it is the head's to say
    return shlex.join(words)
