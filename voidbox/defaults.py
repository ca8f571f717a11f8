"""The kernel and the image that a sandbox runs when none are named: those that were built last.

The cache is a folder: $VOIDBOX_CACHE, or voidbox in $XDG_CACHE_HOME or ~/.cache.

    kernels/current/vmlinuz             by `voidbox setup`
    kernels/current-minimal/bzImage     by kernel/build_minimal.sh
    kernels/current-cloud/vmlinuz       by kernel/fetch_debian.sh cloud
    images/current-RELEASE/     by `voidbox setup` or scripts/build_guest_image.sh; RELEASE is
                                "builtin" for kernels that need no modules
        boot.cpio, runtime.erofs     the image as a disk, and the initramfs that mounts it
        initramfs.cpio               the image as an initramfs
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from voidbox.errors import ConfigError

# Linux Documentation/arch/x86/boot.rst: header, and kernel_version, an offset less 0x200.
_MAGIC_OFFSET = 0x202
_KERNEL_VERSION_OFFSET, _KERNEL_VERSION_BASE = 0x20E, 0x200
_RELEASE_BYTES_MAX = 128
_RELEASE = re.compile(rb"[0-9][A-Za-z0-9.+_~-]*")
_KERNELS = ("current/vmlinuz", "current-minimal/bzImage", "current-cloud/vmlinuz")
_HOW_TO_GET = "pip install 'voidbox-kvm[runtime]', or voidbox setup"


def cache_folder() -> str:
    """Return where the scripts keep what they build."""
    own = os.environ.get("VOIDBOX_CACHE")
    if own:
        return own
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return f"{home}/voidbox"


def find_kernel() -> str:
    """Return the path of the kernel to run.

    Raises:
        ConfigError: none has been built or fetched.
    """
    folder = f"{cache_folder()}/kernels"
    for name in _KERNELS:
        if os.path.exists(f"{folder}/{name}"):
            return f"{folder}/{name}"
    raise ConfigError(f"no kernel in {folder}: {_HOW_TO_GET}; or name one with --kernel")


def find_image(kernel: str) -> str:
    """Return the path of the guest image to run with `kernel`: the one with its modules, if any.

    Raises:
        ConfigError: none has been built.
    """
    return f"{_find_images(kernel)}/initramfs.cpio"


class RootFiles(NamedTuple):
    """What a root on disks begins with.

    Attributes:
        boot: the initramfs that mounts it.
        runtime: the disk with the agent.
    """

    boot: str
    runtime: str


def find_root(kernel: str) -> RootFiles | None:
    """Return what mounts a root on disks with `kernel`; None if that was not built yet.

    The paths are those of this very build: a later one changes nothing for who has them.

    Raises:
        ConfigError: nothing has been built.
    """
    folder = os.path.realpath(_find_images(kernel))
    files = RootFiles(f"{folder}/boot.cpio", f"{folder}/runtime.erofs")
    return files if all(map(os.path.exists, files)) else None


def _find_images(kernel: str) -> str:
    folder = f"{cache_folder()}/images"
    for name in (kernel_release(kernel), "builtin"):
        path = f"{folder}/current-{name}"
        if name and os.path.exists(f"{path}/initramfs.cpio"):
            return path
    raise ConfigError(
        f"no guest image for {kernel} in {folder}: {_HOW_TO_GET}; or name one with --initramfs"
    )


def kernel_release(path: str) -> str:
    """Return a bzImage's release, such as 6.1.0-13-amd64; "" for what has none to show.

    Raises:
        ConfigError: the file cannot be read.
    """
    if not os.path.isfile(path):
        return ""  # a FIFO would not even open; whoever loads it says what is wrong
    try:
        with open(path, "rb") as file:
            header = file.read(_KERNEL_VERSION_OFFSET + 2)
            if header[_MAGIC_OFFSET : _MAGIC_OFFSET + 4] != b"HdrS":
                return ""
            offset = int.from_bytes(header[_KERNEL_VERSION_OFFSET:], "little")
            file.seek(_KERNEL_VERSION_BASE + offset)
            match = _RELEASE.match(file.read(_RELEASE_BYTES_MAX))
    except OSError as error:
        raise ConfigError(f"cannot read the kernel {path}: {error.strerror}") from error
    return match[0].decode() if match and offset else ""
