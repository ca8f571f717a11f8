"""What `voidbox doctor` says of files: kernel, image, folders, free disk, libraries."""

from __future__ import annotations

import os
from collections.abc import Iterator

from voidbox import defaults
from voidbox.cli.doctor_check import FAIL, PASS, WARN, Check
from voidbox.errors import ConfigError

_ZSTD = "libzstd.so.1"
# A sandbox's records and logs take less than a megabyte; what its guest writes to its disk more.
_DISK_BYTES_WARN, _DISK_BYTES_FAIL = 2 << 30, 64 << 20


def examine_files() -> Iterator[Check]:
    """Yield the findings, each as soon as it is known."""
    yield from _check_guest()
    yield from _check_state_folder()
    yield _check_image_tools()
    yield _check_user()


def _check_guest() -> Iterator[Check]:
    """What `run` boots unless it is told otherwise."""
    try:
        kernel = defaults.find_kernel()
    except ConfigError as error:
        found, todo = _split(error)
        yield Check("kernel", FAIL, found, todo)
        return
    yield Check("kernel", PASS, f"{kernel} {defaults.kernel_release(kernel)}".rstrip())
    try:
        files = defaults.find_root(kernel)
        image = files.runtime if files is not None else defaults.find_image(kernel)
        if files is not None:
            image = defaults.find_default_image() or image
    except ConfigError as error:
        found, todo = _split(error)
        yield Check("image", FAIL, found, todo)
    else:
        size_bytes = os.path.getsize(image)
        yield Check("image", PASS, f"{image}, {size_bytes / 1e6:.0f} MB")


def _split(error: ConfigError) -> tuple[str, str]:
    found, _, todo = str(error).partition(": ")
    return found, todo


def _check_state_folder() -> Iterator[Check]:
    from voidbox.sandbox.state.state_folder import StateFolder

    try:
        folder = StateFolder(None).path
    except ConfigError as error:
        found, todo = _split(error)
        yield Check("state folder", FAIL, found, todo)
        return
    yield Check("state folder", PASS, f"{folder} is usable")
    yield check_free_disk(folder)


def check_free_disk(folder: str) -> Check:
    """Return what there is to say of the room for sandboxes and images."""
    system = os.statvfs(folder)
    free_bytes = system.f_bavail * system.f_frsize
    found = f"{free_bytes / 1e9:.1f} GB free in {folder}"
    if free_bytes >= _DISK_BYTES_WARN:
        return Check("disk", PASS, found)
    status = FAIL if free_bytes < _DISK_BYTES_FAIL else WARN
    todo = "voidbox prune; voidbox image prune --layers; or name another folder with VOIDBOX_STATE"
    return Check("disk", status, found, todo)


def _check_image_tools() -> Check:
    import ctypes

    try:
        ctypes.CDLL(_ZSTD)
    except OSError:
        return Check(
            "image tools",
            WARN,
            f"{_ZSTD} is missing: images with layers in Zstandard cannot be read",
            "sudo apt-get install libzstd1, or what your distribution calls it",
        )
    return Check("image tools", PASS, f"{_ZSTD}; no other program is needed")


def _check_user() -> Check:
    """Users' namespaces are what other tools need entries in /etc/subuid for."""
    import pwd

    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = "without a name"
    return Check("user", PASS, f"{name} (uid {uid}): no root, no entries in /etc/subuid are needed")
