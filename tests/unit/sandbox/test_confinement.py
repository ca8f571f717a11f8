"""What a sandbox's process imports before it shuts itself in: no code can be mapped after that."""

from __future__ import annotations

import subprocess
import sys

# Prints which C extensions come with modules that are imported when they are first needed.
LATE = """
import importlib, pkgutil, sys
import voidbox.sandbox.worker.devices, voidbox.sandbox.worker.requests
import voidbox.vmm.machine
from voidbox.sandbox.worker import confinement, serving
from voidbox.vmm.config import DiskConfig, MachineConfig

confinement._import_all(MachineConfig("kernel", disks=(DiskConfig("disk"),)))

def mapped():
    modules = list(sys.modules.items())
    return {name for name, one in modules if (getattr(one, "__file__", "") or "").endswith(".so")}

before = mapped()
names = ["tempfile", "shutil"]
for room in ("block", "snapshot", "storage", "virtio", "vmm", "vsock"):
    package = importlib.import_module(f"voidbox.{room}")
    names += [one.name for one in pkgutil.walk_packages(package.__path__, f"voidbox.{room}.")]
assert len(names) > 40
for name in names:
    importlib.import_module(name)
print(sorted(mapped() - before))
"""


def test_what_is_imported_late_maps_no_more_code() -> None:
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
