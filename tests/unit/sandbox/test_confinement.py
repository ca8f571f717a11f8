"""How the processes of a sandbox shut themselves in, in children.

The worker imports all that it may need before: no code can be mapped after that.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.host_jail import has_mdwe, landlock_version, needs_namespaces
from tests.unit.jail import child
from voidbox.jail import namespaces

# Prints which C extensions come with modules that are imported when they are first needed.
LATE = """
import importlib, pkgutil, sys
import voidbox.sandbox.worker.devices, voidbox.sandbox.worker.requests
import voidbox.vmm.machine
from voidbox.sandbox.worker import confinement, serving
from voidbox.vmm.config import DiskConfig, MachineConfig

confinement.import_late()

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


# look() tells what this process has given up.
LOOK = """
import os, resource, sys
from voidbox.jail import system
def status():
    with open("/proc/self/status") as file:
        return dict(line.split(":", 1) for line in file)
def look():
    now = status()
    filters = int(now["Seccomp_filters"]) - int(BEFORE["Seccomp_filters"])
    print(int(now["NoNewPrivs"]), filters, resource.getrlimit(resource.RLIMIT_CORE))
BEFORE = status()
PR_GET_DUMPABLE = 3
"""


@needs_namespaces
def test_a_worker_gives_up_what_no_machine_needs(tmp_path: Path) -> None:
    done = child.run(
        LOOK
        + """
from voidbox.sandbox.worker.confinement import Confinement
from voidbox.sandbox.worker.surroundings import Path, Walls, libraries
from voidbox.vmm.config import MachineConfig
paths = tuple(map(Path, libraries()))
jail = Confinement(MachineConfig("k", memory_bytes=64 << 20), Walls("default", paths, 7777), False)
jail.enter()
print(system.prctl(PR_GET_DUMPABLE), os.path.exists(sys.argv[1]))
handed = {}
jail.shut(handed.__setitem__)
try:
    os.fstat(handed["refusals"])
except OSError as error:
    print(error.errno)  # who answers for what is refused is not here
look()
print(*(int(status()[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")))
print(0 < resource.getrlimit(resource.RLIMIT_DATA)[1] < 4 << 30,
      resource.getrlimit(resource.RLIMIT_FSIZE)[1])
# Root's tasks are counted by nobody.
print(os.geteuid() == 0 or 0 < resource.getrlimit(resource.RLIMIT_NPROC)[1] <= 1024)
print(*jail.layers, sep=",")
""",
        str(tmp_path),
    )
    *found, layers = done.stdout.splitlines()
    assert found == ["0 False", "9", "1 2 (0, 0)", "0 0 0", "True 7777", "True"], done.stderr
    optional = [f"landlock {landlock_version()}"] if landlock_version() else []
    optional += ["mdwe"] if has_mdwe() else []
    names = {*namespaces.NAMES} - {"pid"}
    assert {*layers.split(",")} == {"keeper", "seccomp", *names, *optional}


@needs_namespaces
def test_strict_does_without_nothing() -> None:
    done = child.run(
        """
from voidbox.errors import ConfigError
from voidbox.sandbox.worker.confinement import Confinement
from voidbox.sandbox.worker.surroundings import Walls
from voidbox.vmm.config import MachineConfig
try:
    Confinement(MachineConfig("k"), Walls("strict", (), None), False).enter()
except ConfigError as error:
    print(error)
"""
    )
    assert done.stdout.startswith("the jail is strict, and this host has no pid namespace: ")


def test_a_keeper_gives_up_other_files_and_programs(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "other").write_text("other")
    done = child.run(
        LOOK
        + """
from voidbox.sandbox.keeper import confinement
here = sys.argv[1]
confinement.enter(f"{here}/state")
look()
print(system.prctl(PR_GET_DUMPABLE))
for attempt in (lambda: open(f"{here}/state/new", "w"), lambda: open("/etc/passwd").close(),
                lambda: open(f"{here}/other"), os.fork):
    try:
        attempt()
        print("done", end=" ")
    except OSError as error:
        print(error.errno, end=" ")
""",
        str(tmp_path),
    )
    other = 13 if landlock_version() >= 2 else "done"
    assert done.stdout == f"1 1 (0, 0)\n0\ndone done {other} 1 ", done.stderr
