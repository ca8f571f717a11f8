"""What somebody would try who has taken a machine's process over, one attempt a process.

    python -m tests.unit.jail.escape_kit WORLD LAYER[,LAYER…] LEVEL     as a user, never as root

Each attempt is made in a child that has shut itself in as a sandbox's process does, with the named
layers alone. Its targets are files of a folder of the test's, a process of the test's, and
sockets on the loopback. Printed is a JSON object: attempt to "" where it succeeded, else why not.
"""

from __future__ import annotations

import contextlib
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

from voidbox.event_loop import EventLoop
from voidbox.jail import numbers, system
from voidbox.jail.levels import OFF
from voidbox.sandbox.keeper import channel
from voidbox.sandbox.keeper.channel import Channel
from voidbox.sandbox.keeper.serving import Serving
from voidbox.sandbox.process.recipe import kept_config
from voidbox.sandbox.state.state_folder import MACHINE
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.worker import warden
from voidbox.sandbox.worker.confinement import Confinement
from voidbox.sandbox.worker.surroundings import Walls, walls
from voidbox.vmm.config import MachineConfig

LAYERS = ("namespaces", "landlock", "seccomp")
World = dict[str, Any]
_libc = ctypes.CDLL(None, use_errno=True)


class Partly(Confinement):
    """A jail with some of its layers; the keeper is always there."""

    def __init__(
        self, config: MachineConfig, around: Walls, layers: list[str], has_pids: bool
    ) -> None:
        super().__init__(config, around, has_pids)
        self.wanted = layers

    def _enter_namespaces(self, paths: Any) -> None:
        if "namespaces" in self.wanted:
            super()._enter_namespaces(paths)

    def _enter_landlock(self, paths: Any) -> None:
        if "landlock" in self.wanted:
            super()._enter_landlock(paths)

    def shut(self, hand_over: Any) -> None:
        if "seccomp" in self.wanted:
            super().shut(hand_over)


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
    answer, fd = world["keeper"].ask(
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
    answer, _ = world["keeper"].ask("remove", id=world["other_id"])
    raise OSError(answer["errno"], os.strerror(answer["errno"]))


def _keeper_publishes(world: World) -> None:
    """A port that nobody ordered."""
    answer, fd = world["keeper"].ask("listen", forward="127.0.0.1:0:80")
    if fd is None:
        raise OSError(answer["errno"], os.strerror(answer["errno"]))


def _dial_elsewhere(world: World) -> None:
    answer, fd = world["keeper"].ask("dial", port=f"/../../../{world['unix']}")
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
    "its own record": lambda w: _write(f"{w['state']}/sandboxes/{w['id']}/state.json"),
    "its own secret": lambda w: _read(f"{w['state']}/sandboxes/{w['id']}/secret"),
    "its vsock": lambda w: _connect(
        socket.AF_UNIX, socket.SOCK_STREAM, f"{w['state']}/sandboxes/{w['id']}/vsock.sock"
    ),
    "a snapshot's memory": lambda w: _read(f"{w['state']}/snapshots/one/memory"),
    "the state's lock": lambda w: _write(f"{w['state']}/lock"),
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
    "a port published by the keeper": _keeper_publishes,
}


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(16)


def _attempt(name: str, world: World, layers: list[str], around: Walls, fd: int) -> None:
    config: MachineConfig = world["config"]
    keeper = Channel(world["asks"])
    unread = os.open(os.devnull, os.O_WRONLY)
    has_pids = warden.enter(around.level if "namespaces" in layers else OFF, unread, False)
    jail = Partly(config, around, layers, has_pids)
    jail.enter()
    jail.shut(keeper.hand_over)
    missing = {"namespaces": "mount pid", "landlock": "landlock", "seccomp": "seccomp"}
    found = " ".join(jail.layers)
    for layer in layers:
        assert missing[layer] in found, f"{layer} is not in force: {found}"
    assert layers, "never without a jail"
    world["keeper"] = keeper
    try:
        ATTEMPTS[name](world)
    except OSError as error:
        os.write(fd, (error.strerror or str(error)).encode())
    except BaseException as error:
        os.write(fd, f"{error!r}".encode())
    os._exit(0)


def _run(name: str, world: World, layers: list[str]) -> str:
    """Make one attempt in a worker of its own, whose keeper is this process."""
    ours, theirs = os.pipe()
    asks, queries = channel.pair(), channel.pair()
    with Store(world["state"]) as store, contextlib.ExitStack() as stack:
        for sock in (*asks, *queries):
            stack.enter_context(sock)
        id = world["own"].pop()
        record = store.adopt(id)
        config = world["config"] = kept_config(store, record)
        own_folder = store.path(id, MACHINE)
        os.mkdir(own_folder)
        around = walls(config, world["level"], own_folder)
        world |= {"asks": asks[1], "id": id}
        with socket.socket(socket.AF_UNIX) as listener:  # before it is shut in, as a keeper's
            listener.bind(store.path(id, "vsock.sock"))
            listener.listen()
            pid = os.fork()
            if not pid:
                os.close(ours)
                try:
                    _attempt(name, world, layers, around, theirs)
                except BaseException as error:
                    os.write(theirs, f"BROKEN {error!r}".encode())
                os._exit(3)
            os.close(theirs)
            said, status = _keep(store, id, config, asks[0], queries[0], ours, pid)
        store.release(id)
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return said or ("" if status == 0 else f"status {status}")


def _keep(
    store: Store,
    id: str,
    config: MachineConfig,
    asks: socket.socket,
    queries: socket.socket,
    said_fd: int,
    pid: int,
) -> tuple[str, int]:
    """Answer the worker until it ends; return what it said, and its status."""
    loop = EventLoop(on_error=lambda error: print(repr(error), file=sys.stderr))
    serving = Serving(loop, asks, queries, config.net, store.path(id, "vsock.sock"))
    loop.start()
    with open(said_fd, "rb") as file:
        said = file.read().decode()
    _, status = os.waitpid(pid, 0)
    loop.stop()
    serving.close()
    loop.close()
    return said, status


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
