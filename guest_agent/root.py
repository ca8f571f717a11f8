"""The root that commands see, and where the agent itself lies.

A guest that boots from an initramfs has one root for both. One whose root is on disks has the
agent and its Python in a tree of their own, the runtime, mounted read-only at /.voidbox: whatever
the commands do to their root, or lack in it, the agent goes on. A folder of the root itself, since
an image's /run or /usr may be a link or a mount to come.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial

from guest_agent import plain_files, protocol, syscalls, users
from guest_agent.connection import RequestError
from guest_agent.loop import log

_HOME = "/usr/lib/voidbox/guest_agent"
_HOSTNAME = "voidbox"
_HOSTS = f"127.0.0.1 localhost {_HOSTNAME}\n"
_RELAY = "/usr/local/bin/voidbox-relay"


def _prefix() -> str:
    folder = os.path.dirname(os.path.abspath(__file__))
    return folder.removesuffix(_HOME) if folder.endswith(_HOME) else ""


PREFIX = _prefix()  # of the agent's own files: "" or "/.voidbox"


class Image:
    """What the host says of an image that is the root.

    Attributes:
        user: of commands that name none.
        workdir: made if it is missing; "" for none.
        volumes: folders that are made if they are missing, like it.
        init: what is to be PID 1, a path; "" for the agent.
    """

    def __init__(self, text: str) -> None:
        pairs = [line.partition(" ")[::2] for line in text.split("\n")]
        values = dict(pairs)
        self.user = values.get("user") or "root"
        self.workdir = values.get("workdir", "")
        self.init = values.get("init", "")
        self.volumes = [value for key, value in pairs if key == "volume"]


def read_image() -> Image | None:
    """Return the image that is the root; None if the root is ours."""
    try:
        with open(PREFIX + protocol.IMAGE_PATH, encoding="utf-8", newline="\n") as file:
            return Image(file.read())
    except FileNotFoundError:
        return None


def forget_files() -> None:
    """Take away what the host wrote for the agent alone, once all of it has been read."""
    if PREFIX:
        syscalls.umount(PREFIX + os.path.dirname(protocol.SECRET_PATH))


def set_up_image(image: Image) -> None:
    """Give an image's root what its programs expect of any machine; raises no OSError."""
    users.set_default(image.user)
    folders = ["/run", image.workdir, *image.volumes]
    for step in (
        lambda: plain_files.replace("/etc/hostname", f"{_HOSTNAME}\n"),
        lambda: plain_files.replace("/etc/hosts", _HOSTS),
        _make_tmp,
        *(partial(_make_folder, folder) for folder in folders),
        lambda: _make_workspace(image.user),
        _link_relay,
    ):
        try:
            step()
        except (OSError, ValueError) as error:
            log(f"the image's root: {error}")


def _make_tmp() -> None:
    """Have a /tmp; if it is a link, what it leads to."""
    if not os.path.isdir("/tmp"):
        folder = os.path.realpath("/tmp")
        os.makedirs(folder)
        os.chmod(folder, 0o1777)


def _make_folder(path: str) -> None:
    if path.startswith("/"):
        os.makedirs(os.path.realpath(path), exist_ok=True)


def _make_workspace(name: str) -> None:
    if os.path.isdir("/workspace"):
        return
    os.makedirs("/workspace")
    try:
        user = users.find(name)
    except RequestError as error:
        log(f"the image's user: {error}")
    else:
        os.chown("/workspace", user.uid, user.gid)


def _link_relay() -> None:
    with contextlib.suppress(FileExistsError):
        os.makedirs(os.path.dirname(_RELAY), exist_ok=True)
        os.symlink(f"{PREFIX}/usr/lib/voidbox/bin/voidbox-relay", _RELAY)
