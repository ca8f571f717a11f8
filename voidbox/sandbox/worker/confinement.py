"""How a worker shuts itself in: in two steps, with its keeper outside.

    enter()   before the first thread, the machine not made yet: namespaces, a root with what the
              machine needs, no capabilities, Landlock
    shut()    the machine made, nothing of the guest run: all that will be imported is; seccomp

The levels: "default" takes what the host has, and says what is missing; "strict" wants all of it;
"off" is for hosts that have not even seccomp, and for who looks for a fault.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence

from voidbox.errors import ConfigError, HostError
from voidbox.jail import (
    allowed,
    bpf,
    landlock,
    mounts,
    namespaces,
    privileges,
    seccomp,
    system,
    trial,
)
from voidbox.jail.levels import OFF, STRICT
from voidbox.kvm import api
from voidbox.sandbox.worker.orders import JAIL_LOG
from voidbox.sandbox.worker.surroundings import Path, Walls, is_block_device
from voidbox.vmm.config import MachineConfig

# Beside the guest's memory: thread stacks, Python, what is under way. More is a fault.
_DATA_BYTES = 2 << 30
_TASKS_MAX = 1024  # threads, and copies that write a snapshot
# C extensions that are imported when they are first needed, and libraries that libc loads then.
_EXTENSIONS = (
    *("zlib", "bz2", "lzma", "select", "math", "array", "binascii", "unicodedata"),
    *("hashlib", "encodings.idna", "_opcode"),
    *(["_zstd"] if sys.version_info >= (3, 14) else []),  # which shutil imports
)
_OF_FILES = ("ctypes", "random")  # the latter for tempfile
_LIBRARIES = ("libgcc_s.so.1",)  # by which glibc ends a thread

log = logging.getLogger(JAIL_LOG)


class Confinement:
    """The jail of this process. Thread: main.

    Args:
        config: the machine's.
        walls: how far it may get.
        has_pids: whether it is in user and pid namespaces of its own; see warden.

    Attributes:
        layers: what is in force, in words.
    """

    def __init__(self, config: MachineConfig, walls: Walls, has_pids: bool) -> None:
        self._has_pids = has_pids
        self._config = config
        self._walls = walls
        self._level = walls.level
        self.layers: list[str] = []

    def enter(self) -> None:
        """Give up what no machine needs. The process has one thread.

        Raises:
            ConfigError: strict, and the host lacks a layer.
        """
        if self._level == OFF:
            log.warning("the jail is off: an escape from the machine has all rights of this user")
            return
        os.chdir("/")
        self.layers.append("keeper")
        privileges.limit(core=0)
        self._enter_namespaces(self._walls.paths)
        privileges.drop_capabilities()
        privileges.set_no_new_privs()
        self._enter_landlock(self._walls.paths)
        privileges.set_undumpable()
        self._limit()

    def shut(self, hand_over: Callable[[str, int], None]) -> None:
        """Leave the system calls that a running machine makes. Before the guest runs.

        Args:
            hand_over: gives the keeper a descriptor, by a name.
        Raises:
            HostError: the kernel has no seccomp, or refuses the filter.
        """
        if self._level == OFF:
            return
        import_late(has_files=bool(self._config.disks or self._config.shares))
        if privileges.refuse_writable_code():
            self.layers.append("mdwe")
        is_strict = self._level == STRICT
        needs = needs_of(self._config)._replace(forks=True, has_pids=self._has_pids)
        try:
            listener_fd = seccomp.install_with_listener(
                allowed.program(needs, bpf.RET_USER_NOTIF, is_strict)
            )
            if listener_fd is not None:
                hand_over("refusals", listener_fd)
                os.close(listener_fd)
            else:  # nobody can be asked
                needs = needs._replace(forks=not is_strict)
                seccomp.install(allowed.program(needs, is_strict=is_strict))
            seccomp.install(allowed.without_sending())
        except OSError as error:
            raise HostError(
                f"the jail: no seccomp ({error.strerror}): use a kernel that has it, or insist "
                "with --jail off",
                error.errno or 0,
            ) from error
        self.layers.append("seccomp")
        log.info("the jail is shut: %s", ", ".join(self.layers))

    def _enter_namespaces(self, paths: Sequence[Path]) -> None:
        names = list(namespaces.NAMES)
        if not self._has_pids:
            problem = trial.problem_of_mounts()
            if problem:
                consequence = "see the names and sizes of your files"
                self._miss(f"no user namespaces ({problem})", consequence)
                return
            names.remove("pid")
            self._miss("no pid namespace", "see the numbers of other processes")
        namespaces.enter(set(names) - ({"user", "pid"} if self._has_pids else set()))
        mounts.enter_root((path.path, path.is_writable) for path in paths)
        self.layers += names

    def _enter_landlock(self, paths: Sequence[Path]) -> None:
        try:
            proc_self = Path(system.own_proc())
            version = landlock.restrict((path.path, _rights(path)) for path in [*paths, proc_self])
        except OSError as error:
            consequence = "" if "mount" in self.layers else "open your files"
            self._miss(f"no Landlock ({error.strerror})", consequence)
        else:
            self.layers.append(f"landlock {version}")

    def _miss(self, what: str, consequence: str) -> None:
        """Go on without a layer, or not."""
        if self._level == STRICT:
            raise ConfigError(
                f"the jail is strict, and this host has {what}: voidbox doctor says more; choose "
                "--jail default to do without"
            )
        if consequence:
            log.warning("jail: %s: an escape could %s", what, consequence)

    def _limit(self) -> None:
        privileges.limit(data=self._config.memory_bytes + _DATA_BYTES)
        if "user" in self.layers and namespaces.count_tasks():
            privileges.limit(nproc=_TASKS_MAX)
        if self._walls.file_bytes is not None:
            privileges.limit(fsize=self._walls.file_bytes)


def needs_of(config: MachineConfig) -> allowed.Needs:
    """Return what a machine's process has to be left."""
    is_vhost = config.vsock is not None and config.vsock.is_vhost
    requests = _STATE_REQUESTS
    if is_vhost:
        from voidbox.vsock import vhost

        requests += vhost.RUNNING_REQUESTS
    return allowed.Needs(
        pid=os.getpid(),
        live_folder=bool(config.shares),
        block_devices=any(is_block_device(disk.path) for disk in config.disks),
        vsock=is_vhost,
        snapshots=True,
        requests=requests,
    )


# What a snapshot reads of a machine, and what a restored one is given before it first runs: all of
# it this process's own machine's, as the guest's registers are. Not what maps memory into it.
_STATE_REQUESTS = (
    *(int(value) for name, value in sorted(vars(api).items()) if name.startswith("KVM_GET_")),
    *(api.KVM_CHECK_EXTENSION, api.KVM_KVMCLOCK_CTRL, api.KVM_SET_CLOCK, api.KVM_SET_CPUID2),
    *(api.KVM_SET_DEBUGREGS, api.KVM_SET_DEVICE_ATTR, api.KVM_SET_IRQCHIP, api.KVM_SET_LAPIC),
    *(api.KVM_SET_MP_STATE, api.KVM_SET_MSRS, api.KVM_SET_PIT2, api.KVM_SET_REGS),
    *(api.KVM_SET_SREGS, api.KVM_SET_TSC_KHZ, api.KVM_SET_VCPU_EVENTS, api.KVM_SET_XCRS),
    api.KVM_SET_XSAVE,
)


def _rights(path: Path) -> int:
    if path.is_device:
        return landlock.DEVICE if path.is_writable else landlock.READ | landlock.IOCTL_DEV
    return landlock.WRITE if path.is_writable else landlock.READ


def import_late(has_files: bool = True) -> None:
    """Import what is imported late, as far as it is code that is mapped.

    Args:
        has_files: whether the machine has disks or folders.
    """
    for name in (*_EXTENSIONS, *(_OF_FILES if has_files else ())):
        if name not in sys.modules:
            with contextlib.suppress(ImportError):  # a Python that was built without
                importlib.import_module(name)
    for library in _LIBRARIES:
        system.keep_loaded(library)
