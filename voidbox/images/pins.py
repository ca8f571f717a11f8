"""Who needs an image though nothing runs it: snapshots, each by a file in the image's folder.

IMAGE/pins/NAME holds the path of what needs it, and counts for as long as that is there: whoever
deletes a snapshot need not know of this.
"""

from __future__ import annotations

import os
from contextlib import suppress

from voidbox.errors import HostError
from voidbox.storage import durable

FOLDER = "pins"


def pin(rootfs: str, holder: str) -> None:
    """Have an image stay as long as `holder` is there.

    Args:
        rootfs: its file system's path.
        holder: the absolute path of what needs it.
    Raises:
        HostError: that cannot be written down.
    """
    folder = f"{os.path.dirname(rootfs)}/{FOLDER}"
    name = holder.strip("/").replace("/", "-")[-200:]
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        durable.write_file(f"{folder}/{name}", os.fsencode(holder))
    except OSError as error:
        raise durable.failure("write", f"{folder}/{name}", error) from error


def holders(image_folder: str) -> list[str]:
    """Return the paths of what needs an image; what is gone is forgotten."""
    found = []
    with suppress(OSError), os.scandir(f"{image_folder}/{FOLDER}") as entries:
        for entry in entries:
            with suppress(OSError, HostError):
                with open(entry.path, "rb") as file:
                    holder = os.fsdecode(file.read(4096))
                if os.path.isdir(holder):
                    found.append(holder)
                else:
                    os.unlink(entry.path)
    return sorted(found)
