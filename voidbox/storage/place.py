"""Where the state folder is: a user's own, for nobody else to write to."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from voidbox.errors import ConfigError


def make_state_folder(folder: str | None, part: str) -> str:
    """Make a state folder with a folder for one part of it, if they are not there.

    Args:
        folder: None for $VOIDBOX_STATE, else the user's own.
        part: the name of the folder in it, such as "sandboxes".

    Returns:
        The state folder's absolute path.

    Raises:
        ConfigError: it cannot be made, or belongs to somebody else, or others may write to it.
    """
    path = os.path.abspath(folder or _default())
    try:
        if not os.path.isdir(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with suppress(FileExistsError):  # somebody else was faster
                os.mkdir(path, 0o700)
        found = os.stat(path)
        if found.st_uid != os.geteuid():
            raise ConfigError(
                f"{path} belongs to another user (uid {found.st_uid}): name a folder of your own "
                "with VOIDBOX_STATE"
            )
        if stat.S_IMODE(found.st_mode) & 0o022:
            raise ConfigError(
                f"others may write to {path}: chmod 700 it, or name another folder with "
                "VOIDBOX_STATE"
            )
        with suppress(FileExistsError):
            os.mkdir(f"{path}/{part}", 0o700)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot use {path!r} for the state of voidbox: {why}; name another folder with "
            "VOIDBOX_STATE"
        ) from error
    return path


def _default() -> str:
    folder = os.environ.get("VOIDBOX_STATE")
    if folder:
        return folder
    home = os.environ.get("XDG_STATE_HOME", "")
    if not home.startswith("/"):  # the XDG Base Directory Specification: such a path is ignored
        home = os.path.expanduser("~/.local/state")
    return f"{home}/voidbox"
