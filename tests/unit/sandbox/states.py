"""What the tests of the state folder share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from voidbox.sandbox.state.store import SandboxRecord, Store

ROOT = Path(__file__).parents[3]
FAST_DISK = "/dev/shm" if os.path.isdir("/dev/shm") else None  # for what syncs thousands of times


def wanted(name: str = "", **values: Any) -> SandboxRecord:
    """Return what Store.create wants."""
    plain: dict[str, Any] = {
        "kernel": "/k/bzImage",
        "image": "/i/initramfs.cpio",
        "memory_bytes": 256 << 20,
        "cpus": 1,
        "envs": {},
        "metadata": {},
    }
    return SandboxRecord(name=name, **(plain | values))


def allocations(folder: str) -> dict[str, Any]:
    """Return what allocations.json says; without one nothing is taken."""
    path = Path(folder, "allocations", "allocations.json")
    if not path.exists():
        return {"cids": {}, "ports": {}}
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def check_whole(folder: str) -> list[SandboxRecord]:
    """Have the next command come; check that it finds all whole and leaves nothing half done.

    Nothing may be alive in the folder. Returns the records.
    """
    with Store(folder) as store:
        store.clean()
        found = store.list()
        assert store.clean() == []
    assert not os.path.exists(f"{folder}/set-aside"), os.listdir(f"{folder}/set-aside")
    assert sorted(os.listdir(f"{folder}/sandboxes")) == sorted(record.id for record in found)
    assert all(record.state.is_final for record in found)
    assert len({record.name for record in found}) == len(found)
    if os.path.exists(f"{folder}/allocations/allocations.json"):
        assert allocations(folder)["cids"] == {}
        assert allocations(folder)["ports"] == {}
    for record in found:
        assert len(Path(folder, "sandboxes", record.id, "secret").read_bytes()) == 32
    return found
