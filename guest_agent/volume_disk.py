"""A volume's disk: found by its serial number, given a file system where it is blank."""

from __future__ import annotations

import contextlib
import errno
import os

from guest_agent import root, users
from guest_agent.connection import RequestError
from guest_agent.loop import log

SYS_BLOCK = "/sys/block"
_BLANK = bytes(4096)
_LIBRARIES, _E2FS = "/usr/lib/x86_64-linux-gnu", "/usr/lib/voidbox/e2fs"
# As for the root's disk, see scripts/guest_boot_init.sh: no block is kept for root, no zeroes are
# written where there are some.
_MKE2FS = (
    *("-q", "-F", "-t", "ext4", "-m", "0", "-e", "remount-ro"),
    *("-E", "nodiscard,assume_storage_prezeroed=1"),
)


def find(serial: str) -> str:
    """Return the device of the disk with a serial number.

    Raises:
        OSError: there is none: ENXIO.
    """
    for name in sorted(os.listdir(SYS_BLOCK)):
        with contextlib.suppress(OSError), open(f"{SYS_BLOCK}/{name}/serial", "rb") as file:
            if file.read(64).strip() == serial.encode():
                return f"/dev/{name}"
    raise OSError(errno.ENXIO, f"no disk has the serial number {serial}")


def prepare(device: str, is_read_only: bool) -> bool:
    """Have a file system on a disk that is blank; return whether it was.

    Raises:
        OSError: it is blank and cannot be written (ENODATA), or mke2fs is missing or fails.
    """
    with open(device, "rb") as file:
        if file.read(len(_BLANK)) != _BLANK:
            return False
    if is_read_only:
        raise OSError(errno.ENODATA, "the volume is blank, and is not to be written")
    libraries, e2fs = root.PREFIX + _LIBRARIES, root.PREFIX + _E2FS
    loader, program = f"{libraries}/ld-linux-x86-64.so.2", f"{e2fs}/mke2fs"
    if not os.path.exists(program):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)
    paths = f"{e2fs}:{libraries}"
    pid = os.posix_spawn(
        loader,
        [loader, "--inhibit-cache", "--library-path", paths, program, *_MKE2FS, device],
        {"PATH": "/sbin:/bin"},
    )
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise OSError(errno.EIO, f"mke2fs on {device} ends with status {status}")
    return True


def welcome(target: str) -> None:
    """Give a new file system to the user that commands run as, and make it look empty."""
    with contextlib.suppress(OSError):
        os.rmdir(f"{target}/lost+found")  # fsck makes one where it needs it
    try:
        user = users.find(users.default())
    except RequestError as error:
        log(f"the volume's owner: {error}")
    else:
        os.chown(target, user.uid, user.gid)
