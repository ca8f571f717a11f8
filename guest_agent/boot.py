"""What PID 1 does before it serves anybody, and at the end."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import termios
import time

from guest_agent import (
    cgroups,
    containers,
    modules,
    mounts,
    network,
    plain_files,
    protocol,
    root,
    syscalls,
)
from guest_agent.loop import log
from guest_agent.spawn import OPEN_FILES, PATH
from guest_agent.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MODULES_LIST = "/usr/lib/voidbox/modules"  # one path a line, in the order of dependency
SANDBOX_FOLDERS = ("/home/sandbox", "/workspace")
SANDBOX_UID = SANDBOX_GID = 1000
SERIAL_LINE = "/dev/ttyS1"
HOSTNAME = "/etc/hostname"
_END_GRACE_S = 2.0

# What, where, kind, flags, options, and whether a guest can do without it.
_MOUNTS = (
    ("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "", False),
    ("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "", False),
    ("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755", False),
    ("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=0620,ptmxmode=0666", False),
    ("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777", True),
    ("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755", True),
)
# What programs take for granted; images of servers have their logs lead to /dev/stdout.
_DEVICE_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)
# What anybody may open, as udev's own rules (50-udev-default.rules) have it: who opens /dev/fuse or
# /dev/net/tun gets nothing by that alone, and engines without root want both.
_EVERYBODYS_DEVICES = ("/dev/fuse", "/dev/net/tun")


def prepare() -> tuple[bytes, str]:
    """Bring the guest up to where commands can run.

    Returns the secret, and the path of the image's init that is to be PID 1; "" for this program.

    Modules come before the network: an interface exists only once its driver does. A step that
    fails is told on the console, and the next one is tried: a guest that serves half is easier to
    mend than one that serves nobody.
    """
    os.umask(0o022)
    os.environ.clear()
    os.environ["PATH"] = PATH
    image = root.read_image()
    for source, target, kind, flags, data, is_optional in _MOUNTS:
        if target == "/run" and image is not None:
            continue  # an image may have prepared its own
        _mount(source, target, kind, flags, data, is_optional)
    for name, target in _DEVICE_LINKS:
        with contextlib.suppress(FileExistsError):
            os.symlink(target, f"/dev/{name}")
    secret = _take_secret()
    load_modules(root.PREFIX + path for path in _lines(root.PREFIX + MODULES_LIST))
    if image is not None:
        root.set_up_image(image)
        _attempt("the kernel's modules", modules.set_up)
    else:
        _attempt("the folders", _own_folders)
    _attempt("the devices", _open_devices)
    _attempt("the cgroups", cgroups.mount)
    _attempt("the stores of containers", containers.set_up)
    _attempt("the network", network.set_up)
    _attempt("the host's name", _set_hostname)
    _attempt("what is to be mounted", mounts.set_up)
    _attempt("the limits", _set_limits)
    _attempt("the host's files", root.forget_files)
    return secret, image.init if image is not None else ""


def _attempt(what: str, call: object) -> None:
    try:
        call()  # type: ignore[operator]
    except (OSError, ValueError) as error:
        log(f"{what}: {error}")


def _mount(source: str, target: str, kind: str, flags: int, data: str, is_optional: bool) -> None:
    if os.path.ismount(target):  # who mounted the root needed it already
        return
    try:
        os.makedirs(target, exist_ok=True)
        syscalls.mount(source, target, kind, flags, data)
    except OSError as error:
        if not is_optional:
            log(f"cannot mount {target}: {error.strerror}")


def _take_secret() -> bytes:
    """Read the secret and remove it: from now on only this process has it."""
    path = root.PREFIX + protocol.SECRET_PATH
    try:
        with open(path, "rb") as file:
            secret = file.read()
        os.unlink(path)
    except FileNotFoundError:
        secret = b""
    if len(secret) != protocol.SECRET_BYTES:
        # Nobody can know this one: the guest runs, its agent serves nobody.
        log(f"no secret of {protocol.SECRET_BYTES} bytes in {path}")
        return os.urandom(protocol.SECRET_BYTES)
    return secret


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().split()
    except FileNotFoundError:
        return []  # a kernel that has everything built in


def load_modules(paths: Iterable[str]) -> None:
    """Load kernel modules, each after those that it needs."""
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            log(f"cannot read the module {path}: {error.strerror}")
            continue
        try:
            syscalls.finit_module(fd)
        except FileExistsError:
            pass  # built in, or loaded already
        except OSError as error:
            log(f"cannot load the module {path}: {error.strerror}")
        finally:
            os.close(fd)


def _open_devices() -> None:
    for path in _EVERYBODYS_DEVICES:
        with contextlib.suppress(FileNotFoundError):  # this kernel has none
            os.chmod(path, 0o666)


def _set_hostname() -> None:
    import socket

    socket.sethostname(plain_files.read(HOSTNAME, 256).strip())


def _own_folders() -> None:
    for folder in SANDBOX_FOLDERS:
        os.makedirs(folder, exist_ok=True)
        os.chown(folder, SANDBOX_UID, SANDBOX_GID)
    os.chmod("/tmp", 0o1777)


def _set_limits() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES[1], OPEN_FILES[1]))


def open_serial_line() -> int | None:
    """Return the second serial port in raw mode, or None if the machine has none."""
    try:
        fd = os.open(SERIAL_LINE, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Fails on a port without hardware behind it, for which the device exists too.
        attributes = termios.tcgetattr(fd)
        cflag = attributes[2] & ~(termios.CSIZE | termios.PARENB | termios.CRTSCTS)
        cflag |= termios.CS8 | termios.CREAD | termios.CLOCAL
        speed = termios.B115200
        raw = [0, 0, cflag, 0, speed, speed, attributes[6]]
        termios.tcsetattr(fd, termios.TCSANOW, raw)
    except termios.error:
        os.close(fd)
        return None
    return fd


def end(is_reboot: bool) -> None:
    """End all processes, politely first, and the machine. Does not return in a guest."""
    _end_processes()
    mounts.end()
    os.sync()
    syscalls.reboot(syscalls.RB_AUTOBOOT if is_reboot else syscalls.RB_POWER_OFF)


def _end_processes() -> None:
    for number, grace in ((signal.SIGTERM, _END_GRACE_S), (signal.SIGKILL, _END_GRACE_S)):
        try:
            os.kill(-1, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    # Wakes at the next child's end; orphans' too, PID 1 inherits them.
                    signal.sigtimedwait((signal.SIGCHLD,), 0.05)
            except ChildProcessError:
                return
