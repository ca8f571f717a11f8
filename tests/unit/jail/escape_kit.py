"""What somebody would try who has taken a machine's process over, one attempt a process.

    python -m tests.unit.jail.escape_kit WORLD LAYER[,LAYER…] LEVEL     as a user, never as root

Each attempt is made in a child that has shut itself in as a sandbox's process does, with the named
layers alone. Its targets are files of a folder of the test's, a process of the test's, and
sockets on the loopback. Printed is a JSON object: attempt to "" where it succeeded, else why not.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import socket
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from voidbox.jail import numbers, system
from voidbox.sandbox.process.confinement import Confinement
from voidbox.sandbox.process.recipe import kept_config
from voidbox.sandbox.state.store import Store

LAYERS = ("namespaces", "landlock", "seccomp")
World = dict[str, Any]
_libc = ctypes.CDLL(None, use_errno=True)


class Partly(Confinement):
    """A jail with some of its layers; the keeper is always there."""

    def __init__(self, *arguments: Any, layers: list[str]) -> None:
        super().__init__(*arguments)
        self.wanted = layers

    def _enter_namespaces(self, paths: Any) -> None:
        if "namespaces" in self.wanted:
            super()._enter_namespaces(paths)

    def _enter_landlock(self, paths: Any) -> None:
        if "landlock" in self.wanted:
            super()._enter_landlock(paths)

    def shut(self) -> None:
        if "seccomp" in self.wanted:
            super().shut()

    @property
    def keeper(self) -> Any:
        return self._keeper


def _call(name: str, *arguments: Any) -> int:
    return system.call(name, *arguments)


def _home(world: World, name: str = "id") -> str:
    return f"{world['home']}/{name}"


def _connect(family: int, kind: int, address: Any) -> None:
    with socket.socket(family, kind) as sock:
        sock.settimeout(2)
        sock.connect(address)
        if kind == socket.SOCK_DGRAM:
            sock.send(b"out")


def _anonymous(prot: int) -> mmap.mmap:
    return mmap.mmap(-1, 4096, prot=prot)


def _make_executable(world: World) -> None:
    memory = _anonymous(mmap.PROT_READ | mmap.PROT_WRITE)
    at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _call("mprotect", at, 4096, mmap.PROT_READ | mmap.PROT_EXEC)


def _fork(world: World) -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


def _execve(world: World) -> None:
    os.execv("/usr/bin/true", ["true"])


def _keeper_reaches(world: World, port: int) -> int:
    answer, fd = world["keeper"].quick.ask(
        "connect", kind=socket.SOCK_DGRAM, protocol=0, address=0x7F000001, port=port
    )
    if fd is None:
        raise OSError(answer["errno"], os.strerror(answer["errno"]))
    return int(fd)


def _redirect(world: World) -> None:
    """The keeper gives a UDP socket to a port that is open; it is to send to another."""
    fd = _keeper_reaches(world, world["open_udp"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, fileno=fd) as sock:
        sock.sendto(b"out", ("127.0.0.1", world["udp"]))


def _reconnect(world: World) -> None:
    fd = _keeper_reaches(world, world["open_udp"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, fileno=fd) as sock:
        sock.connect(("127.0.0.1", world["udp"]))


def _keeper_removes_other(world: World) -> None:
    world["keeper"].slow.request("remove", id=world["other_id"])
    if os.path.isdir(f"{world['state']}/sandboxes/{world['other_id']}"):
        raise OSError(1, "it removes its own at most")


def _dial_elsewhere(world: World) -> None:
    answer, fd = world["keeper"].quick.ask("dial", port=f"/../../../{world['unix']}")
    if fd is None:
        raise OSError(answer["errno"], os.strerror(answer["errno"]))


def _write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY))


def _vm_readv(world: World) -> None:
    buffer = ctypes.create_string_buffer(8)
    local = system.buffer(struct.pack("@PN", ctypes.addressof(buffer), 8))
    remote = system.buffer(struct.pack("@PN", world["victim_address"], 8))
    _call("process_vm_readv", world["victim"], local, 1, remote, 1, 0)


ATTEMPTS: dict[str, Callable[[World], object]] = {
    # Files of the user's.
    "open ~": lambda w: _read(_home(w)),
    "list ~": lambda w: os.listdir(w["home"]),
    "stat ~": lambda w: os.stat(_home(w)),
    "write ~": lambda w: _write(_home(w)),
    "create in ~": lambda w: os.close(os.open(_home(w, "new"), os.O_CREAT | os.O_WRONLY)),
    "truncate ~": lambda w: os.truncate(_home(w, "empty"), 0),
    "rename ~": lambda w: os.rename(_home(w, "a"), _home(w, "b")),
    "unlink ~": lambda w: os.unlink(_home(w, "gone")),
    "chmod ~": lambda w: os.chmod(_home(w), 0o600),
    "utime ~": lambda w: os.utime(_home(w)),
    "symlink in ~": lambda w: os.symlink("/", _home(w, "link")),
    "mkdir in ~": lambda w: os.mkdir(_home(w, "folder")),
    "open a descriptor's path": lambda w: _read(f"/proc/self/root{_home(w)}"),
    "/etc/passwd": lambda w: _read("/etc/passwd"),
    "another sandbox's secret": lambda w: _read(f"{w['other']}/secret"),
    "another sandbox's record": lambda w: _write(f"{w['other']}/state.json"),
    "the list of sandboxes": lambda w: os.listdir(f"{w['state']}/sandboxes"),
    # Other processes.
    "a process's environ": lambda w: _read(f"/proc/{w['victim']}/environ"),
    "a process's memory": lambda w: os.close(os.open(f"/proc/{w['victim']}/mem", os.O_RDONLY)),
    "process_vm_readv": _vm_readv,
    "ptrace": lambda w: _call("ptrace", 0x4206, w["victim"], 0, 0),  # PTRACE_SEIZE
    "kill": lambda w: os.kill(w["victim"], 0),
    "tgkill": lambda w: _call("tgkill", w["victim"], w["victim"], 0),
    "pidfd_open": lambda w: os.pidfd_open(w["victim"]),
    "prlimit": lambda w: _call(
        "prlimit64", w["victim"], 4, system.buffer(struct.pack("@QQ", 0, 1 << 20)), 0
    ),
    "affinity": lambda w: os.sched_setaffinity(w["victim"], os.sched_getaffinity(0)),
    "fork": _fork,
    "execve": _execve,
    # The kernel.
    "io_uring": lambda w: _call("io_uring_setup", 1, system.buffer(bytes(120))),
    "bpf": lambda w: _call("bpf", 0, system.buffer(struct.pack("=IIII", 2, 4, 4, 1)), 16),
    "userfaultfd": lambda w: _call("userfaultfd", 1),
    "keyctl": lambda w: _call("keyctl", 0, -3, 1),
    "add_key": lambda w: _call(
        "add_key", system.text("user"), system.text("vb"), system.buffer(b"x"), 1, -3
    ),
    "perf_event_open": lambda w: _call(
        "perf_event_open", system.buffer(struct.pack("=II", 1, 64) + bytes(56)), 0, -1, -1, 0
    ),
    "unshare": lambda w: _call("unshare", 0x10000000),
    "mount": lambda w: _call(
        "mount", system.text("x"), system.text("/"), system.text("tmpfs"), 0, 0
    ),
    "setns": lambda w: _call("setns", os.open("/proc/self/ns/uts", os.O_RDONLY), 0),
    "chroot": lambda w: os.chroot("/"),
    "memfd_create": lambda w: os.memfd_create("x"),
    "memory to be run": lambda w: _anonymous(7),
    "memory made to be run": _make_executable,
    "personality": lambda w: _call("personality", 0x0040000),
    # The network, and the host's services.
    "TCP": lambda w: _connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", w["tcp"])),
    "UDP": lambda w: _connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", w["udp"])),
    "listen": lambda w: socket.create_server(("127.0.0.1", 0)),
    "a service's socket": lambda w: _connect(socket.AF_UNIX, socket.SOCK_STREAM, w["unix"]),
    "an abstract socket": lambda w: _connect(
        socket.AF_UNIX, socket.SOCK_STREAM, "\0" + w["abstract"]
    ),
    "netlink": lambda w: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "kernel crypto": lambda w: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET),
    "vsock": lambda w: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "raw socket": lambda w: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    # The keeper.
    "a closed port by the keeper": lambda w: _keeper_reaches(w, w["udp"]),
    "another address by a socket of the keeper's": _redirect,
    "another connection of a socket of the keeper's": _reconnect,
    "another sandbox removed by the keeper": _keeper_removes_other,
    "another path dialled by the keeper": _dial_elsewhere,
}


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(16)


def _attempt(name: str, world: World, layers: list[str], fd: int) -> None:
    with Store(world["state"]) as store:
        record = store.adopt(world["own"].pop())._replace(jail=world["level"])
        jail = Partly(store, record, kept_config(store, record), layers=layers)
        jail.enter()
        jail.furnish()
        jail.shut()
        missing = {"namespaces": "mount", "landlock": "landlock", "seccomp": "seccomp"}
        found = " ".join(jail.layers)
        for layer in layers:
            assert missing[layer] in found, f"{layer} is not in force: {found}"
        assert layers, "never without a jail"
        world["keeper"] = jail.keeper
        try:
            ATTEMPTS[name](world)
        except OSError as error:
            os.write(fd, (error.strerror or str(error)).encode())
        except BaseException as error:
            os.write(fd, f"{error!r}".encode())
    os._exit(0)


def _run(name: str, world: World, layers: list[str]) -> str:
    ours, theirs = os.pipe()
    own = world["own"].pop()
    pid = os.fork()
    if not pid:
        os.close(ours)
        try:
            world["own"] = [own]
            _attempt(name, world, layers, theirs)
        except BaseException as error:
            os.write(theirs, f"BROKEN {error!r}".encode())
        os._exit(3)
    os.close(theirs)
    with open(ours, "rb") as file:
        said = file.read().decode()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return said or ("" if status == 0 else f"status {status}")


def main() -> None:
    """Try everything."""
    assert os.geteuid() != 0, "not as root"
    world = json.loads(Path(sys.argv[1]).read_text())
    layers = sys.argv[2].split(",")
    world["level"] = sys.argv[3]
    assert layers and set(layers) <= set(LAYERS), "never without a jail"
    assert stat.S_ISDIR(os.stat(world["home"]).st_mode)
    assert "fork" in numbers.NR
    print(json.dumps({name: _run(name, world, layers) for name in ATTEMPTS}))


if __name__ == "__main__":
    main()
