"""The escape kit: exactly what each layer lets through alone, and that all together let nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host_jail import WHY_NOT_STRICT, lacks_a_layer, landlock_version
from tests.unit.jail.escape_kit import ATTEMPTS

ROOT = Path(__file__).parents[3]
NOBODY = 65534
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(lacks_a_layer(), reason=WHY_NOT_STRICT),
]

# Makes, as the user of the kit: the sandboxes, the victim, the services. Ends with its input.
_WORLD = """
import ctypes, json, os, socket, subprocess, sys
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
folder, count = sys.argv[1], int(sys.argv[2])
home = f"{folder}/home"
os.mkdir(home)
for name in ("id", "empty", "a", "gone"):
    open(f"{home}/{name}", "w").close()
def serve(family, kind, address):
    sock = socket.socket(family, kind)
    sock.bind(address)
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock
tcp = serve(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
udp, open_udp = (serve(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)) for _ in range(2))
unix = serve(socket.AF_UNIX, socket.SOCK_STREAM, f"{folder}/service")
abstract = serve(socket.AF_UNIX, socket.SOCK_STREAM, f"\\0voidbox-{os.getpid()}")
net = {"allow": [], "deny": [], "allow_host_ports": [open_udp.getsockname()[1]], "publish": []}
draft = SandboxRecord(
    name="", kernel="/dev/null", image="/dev/null", memory_bytes=64 << 20, cpus=1, envs={},
    metadata={}, net=net,
)
store = Store(f"{folder}/state")
os.makedirs(f"{store.folder}/snapshots/one")
open(f"{store.folder}/snapshots/one/memory", "w").close()
other = store.create(draft)
own = []
for _ in range(count):
    own.append(store.create(draft).id)
    store.release(own[-1])
word = ctypes.create_string_buffer(b"secret")
print(json.dumps({
    "home": home, "state": store.folder, "other": store.path(other.id), "other_id": other.id,
    "own": own, "victim": os.getpid(), "victim_address": ctypes.addressof(word),
    "tcp": tcp.getsockname()[1], "udp": udp.getsockname()[1], "open_udp": open_udp.getsockname()[1],
    "unix": f"{folder}/service", "abstract": f"voidbox-{os.getpid()}",
}), flush=True)
sys.stdin.read()
"""


def _as_user() -> list[str]:
    """Return what a program of an ordinary user's begins with."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("as root it needs setpriv: apt-get install util-linux")
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


@contextlib.contextmanager
def _world() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vb-") as name:
        folder = Path(name)
        if not os.geteuid():
            os.chown(folder, NOBODY, NOBODY)
        process = subprocess.Popen(
            [*_as_user(), sys.executable, "-c", textwrap.dedent(_WORLD), name, str(len(ATTEMPTS))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": name},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            path = folder / "world.json"
            path.write_bytes(process.stdout.readline())
            path.chmod(0o644)
            yield path
        finally:
            process.stdin.close()
            process.stdout.close()
            process.wait(60)


def _try(*layers: str, level: str = "default") -> dict[str, str]:
    wanted = ",".join(layers)
    with _world() as world:
        done = subprocess.run(
            [*_as_user(), sys.executable, "-m", "tests.unit.jail.escape_kit", world, wanted, level],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(world.parent)},
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    broken = {name: said for name, said in found.items() if "BROKEN" in said}
    assert not broken
    return found


def _done(found: dict[str, str]) -> set[str]:
    return {name for name, said in found.items() if not said}


# What a kernel may have been built without, or its owner have switched off.
_BY_KERNEL = {
    "kernel crypto", "vsock", "io_uring", "userfaultfd", "unshare", "perf_event_open", "bpf",
    "ptrace", "process_vm_readv",
}  # fmt: skip
_PROCESSES = {"affinity", "fork", "pidfd_open", "prlimit"}
_KERNEL = {
    "add_key", "keyctl", "memfd_create", "memory made to be run", "memory to be run", "netlink",
    "personality",
}  # fmt: skip
_SOCKETS = {
    "another address by a socket of the keeper's",
    "another connection of a socket of the keeper's",
}
# Landlock got these with its versions 3, 4 and 6.
_LANDLOCK_LATER = {
    "truncate ~": 3, "TCP": 4, "listen": 4, "kill": 6, "tgkill": 6, "an abstract socket": 6,
}  # fmt: skip


ALL = ("namespaces", "landlock", "seccomp")


@pytest.mark.parametrize("level", ["default", "strict"])
def test_nothing_gets_through_all_layers(level: str) -> None:
    found = _try(*ALL, level=level)
    assert _done(found) == set(), found


def test_seccomp_alone_leaves_files() -> None:
    assert _done(_try("seccomp")) == {
        "/etc/passwd", "a process's environ", "a process's memory", "another sandbox's record",
        "another sandbox's secret", "create in ~", "list ~", "open a descriptor's path", "open ~",
        "rename ~", "stat ~", "the list of sandboxes", "unlink ~", "write ~", "mkdir in ~",
        "utime ~", "its own record", "its own secret", "a snapshot's memory", "the state's lock",
    }  # fmt: skip


def test_landlock_alone_leaves_what_is_no_file_and_what_only_looks() -> None:
    known = landlock_version()
    later = {name for name, since in _LANDLOCK_LATER.items() if known < since}
    expected = {"stat ~", "chmod ~", "utime ~", "UDP", "a service's socket", "its vsock"}
    expected |= _PROCESSES | _KERNEL | _SOCKETS | later
    assert _done(_try("landlock")) - _BY_KERNEL == expected


def test_namespaces_alone_leave_the_kernel() -> None:
    expected = {"fork", "listen", "the list of sandboxes"} | _KERNEL | _SOCKETS
    assert _done(_try("namespaces")) - _BY_KERNEL == expected
