"""The images there are, for programs: what `voidbox image ls`, `inspect` and `rm` do."""

from __future__ import annotations

import builtins

from voidbox.images.store import Image, ImageStore


def find(name: str, *, store: ImageStore | None = None) -> Image:
    """Return the image that a name, or the first digits of an ID, stands for.

    Args:
        store: the user's own if None.

    Raises:
        ConfigError: there is none, or a newer voidbox made it.
        ImageError: it is damaged.
    """
    return (store or ImageStore()).find(name)


def list(*, store: ImageStore | None = None) -> builtins.list[Image]:
    """Return all images, the newest first; a damaged one is warned of and left out.

    Args:
        store: the user's own if None.

    Raises:
        HostError: the folder cannot be read.
    """
    found, wrong = (store or ImageStore()).list()
    if wrong:
        import logging

        for error in wrong:
            logging.getLogger(__name__).warning("%s", error)
    return found


def remove(name: str, *, force: bool = False, store: ImageStore | None = None) -> bool:
    """Remove a name, and its image if that has no other; return whether the image is gone.

    Args:
        name: or an image's ID, which goes with all its names.
        force: also while a sandbox runs it, which keeps what it has open.
        store: the user's own if None.

    Raises:
        ConfigError: there is none, or a sandbox runs it.
        HostError: it cannot be deleted.
    """
    return (store or ImageStore()).remove(name, force=force)[1]
