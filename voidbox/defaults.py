"""The kernel and the images that a sandbox runs when none are named.

What `voidbox setup` has made comes first: somebody asked for it. Then the voidbox-runtime
distribution, if it is installed, and then what the scripts of a clone have built last.

The runtime is a folder, the package voidbox_runtime or $VOIDBOX_RUNTIME (nothing: none):

    api                                 what of it has to fit this voidbox: RUNTIME_API
    bzImage, boot.cpio, runtime.erofs   kernel, initramfs that mounts a root, disk with the agent
    default.erofs                       the default image

The cache is a folder: $VOIDBOX_CACHE, or voidbox in $XDG_CACHE_HOME or ~/.cache.

    kernels/current/vmlinuz             by `voidbox setup`
    kernels/current-minimal/bzImage     by kernel/build_minimal.sh
    kernels/current-cloud/vmlinuz       by kernel/fetch_debian.sh cloud
    kernels/…/modules.erofs             beside a kernel: all its modules, as a disk
    images/current-default/default.erofs     the default image
    images/current-RELEASE/     by `voidbox setup` or scripts/build_guest_image.sh; RELEASE is
                                "builtin" for kernels that need no modules
        boot.cpio, runtime.erofs     the image as a disk, and the initramfs that mounts it
        initramfs.cpio               the image as an initramfs
"""

from __future__ import annotations

import os
import re

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple

# Linux Documentation/arch/x86/boot.rst: header, and kernel_version, an offset less 0x200.
_MAGIC_OFFSET = 0x202
_KERNEL_VERSION_OFFSET, _KERNEL_VERSION_BASE = 0x20E, 0x200
_RELEASE_BYTES_MAX = 128
_RELEASE = re.compile(rb"[0-9][A-Za-z0-9.+_~-]*")
_CHOSEN_KERNEL = "current/vmlinuz"
_KERNELS = ("current-minimal/bzImage", "current-cloud/vmlinuz")
DEFAULT_IMAGE = "default.erofs"
MODULES_DISK = "modules.erofs"

# Of all that this voidbox and the guest's side of it must agree on: the agent's protocol, the disks
# that boot.cpio looks for, the devices that the kernel has drivers for. Counted up with each change
# after which a runtime made before does not work any more.
RUNTIME_API = 1
_RUNTIME_PACKAGE = "voidbox_runtime"
_HOW_TO_GET = "pip install 'voidbox-kvm[runtime]', or voidbox setup"
_HOW_TO_MEND = "pip install --upgrade 'voidbox-kvm[runtime]'"


def cache_folder() -> str:
    """Return where the scripts keep what they build."""
    folder = os.environ.get("VOIDBOX_CACHE")
    if folder:
        return folder
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return f"{home}/voidbox"


def find_runtime() -> str | None:
    """Return the folder of the runtime that is installed; None if there is none.

    Raises:
        ConfigError: it is for another voidbox, or not whole.
    """
    folder = os.environ.get("VOIDBOX_RUNTIME")
    if folder is None:
        from importlib.util import find_spec

        spec = find_spec(_RUNTIME_PACKAGE)
        folders = spec.submodule_search_locations if spec is not None and spec.origin else None
        folder = next(iter(folders or ()), "")
    if not folder:
        return None
    try:
        with open(f"{folder}/api", encoding="ascii") as file:
            api = file.read(16).strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} is no runtime of voidbox: {_HOW_TO_MEND}") from error
    if api != str(RUNTIME_API):
        raise ConfigError(
            f"the runtime in {folder} does not fit this voidbox (it has api {api}, not "
            f"{RUNTIME_API}): {_HOW_TO_MEND}"
        )
    return folder


def find_default_image() -> str | None:
    """Return the path of the default image; None if there is none.

    Raises:
        ConfigError: see find_runtime.
    """
    cache = cache_folder()
    built = os.path.realpath(f"{cache}/images/current-default/{DEFAULT_IMAGE}")
    if os.path.exists(f"{cache}/kernels/{_CHOSEN_KERNEL}") and os.path.exists(built):
        return built
    runtime = find_runtime()
    if runtime is not None:
        return f"{runtime}/{DEFAULT_IMAGE}"
    return built if os.path.exists(built) else None


def find_kernel() -> str:
    """Return the path of the kernel to run.

    Raises:
        ConfigError: none has been built or fetched.
    """
    folder = f"{cache_folder()}/kernels"
    if os.path.exists(f"{folder}/{_CHOSEN_KERNEL}"):
        return f"{folder}/{_CHOSEN_KERNEL}"
    runtime = find_runtime()
    if runtime is not None:
        return f"{runtime}/bzImage"
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


def find_modules(kernel: str) -> str:
    """Return the path of the disk with all of a kernel's modules; "" if it has none."""
    path = f"{os.path.dirname(os.path.realpath(kernel))}/{MODULES_DISK}"
    return path if os.path.exists(path) else ""


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
    runtime = find_runtime()
    if runtime is not None and not _has_images(kernel_release(kernel), kernel, runtime):
        return RootFiles(f"{runtime}/boot.cpio", f"{runtime}/runtime.erofs")
    folder = os.path.realpath(_find_images(kernel))
    files = RootFiles(f"{folder}/boot.cpio", f"{folder}/runtime.erofs")
    return files if all(map(os.path.exists, files)) else None


def _has_images(release: str, kernel: str, runtime: str) -> bool:
    """Whether the cache, and not the runtime, has what a kernel needs: its modules, say."""
    if os.path.dirname(os.path.abspath(kernel)) == os.path.abspath(runtime):
        return False
    return bool(release) and os.path.exists(_images_folder(release))


def _images_folder(release: str) -> str:
    return f"{cache_folder()}/images/current-{release}"


def _find_images(kernel: str) -> str:
    folder = f"{cache_folder()}/images"
    for name in (kernel_release(kernel), "builtin"):
        path = _images_folder(name)
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
