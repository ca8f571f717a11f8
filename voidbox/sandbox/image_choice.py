"""What a sandbox boots from: an image of the store, a file, or one of our own."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from voidbox import defaults
from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.root import DISK_BYTES_DEFAULT, Root, check_disk_bytes, is_file_system
from voidbox.sandbox.session import WORKDIR

if TYPE_CHECKING:  # most sandboxes do without the store
    from voidbox.images.config import ImageConfig

DEFAULT, TINY = "default", "tiny"  # our own images
_DEFAULT_USER = "sandbox"
INIT_AGENT, INIT_AUTO = "agent", "auto"  # what may be given in place of an init's path
# Names of inits that insist on being PID 1: systemd, sysvinit, busybox, OpenRC's, s6-overlay's.
_INITS = frozenset(("init", "systemd", "openrc-init", "s6-svscan"))
_PATH = r"(?s:(?:[/~]|\.{1,2}/).*|.*\.cpio(?:\.[a-z0-9]+)?)"


class Choice(NamedTuple):
    """What to boot.

    Attributes:
        image: what users know it by: its name, or the path of its file.
        root: on disks, or None for an initramfs, which `image` is the path of then.
        config: how an image of the store wants its commands to be run; None for other images.
    """

    image: str
    root: Root | None = None
    config: ImageConfig | None = None

    def envs(self, given: dict[str, str]) -> dict[str, str]:
        """Return the variables of every command, of which the user's own count more."""
        return {**(self.config.env if self.config is not None else {}), **given}

    def workdir(self, given: str | None) -> str | None:
        """Return where commands run; None for what the agent does by itself."""
        if given is not None or self.root is None or not self.root.image:
            return given
        return self.root.workdir or WORKDIR

    def user(self, given: str | None) -> str | None:
        """Return who commands run as; None for what the agent does by itself."""
        if given is not None or self.root is None or not self.root.image:
            return given
        return self.root.user or "root"

    def command(self, words: Sequence[str], entrypoint: str | None = None) -> tuple[str, ...]:
        """Return what `run` executes, by docker's rules; nothing: a shell.

        Args:
            entrypoint: in place of the image's, and of its command; "" for none.
        """
        if entrypoint is not None:
            return (*filter(None, (entrypoint,)), *words)
        return self.config.command(words) if self.config is not None else tuple(words)


def choose(
    image: str | os.PathLike[str] | None,
    kernel: str,
    *,
    disk_bytes: int | None = None,
    init: str | None = None,
    state_folder: str | None = None,
) -> Choice:
    """Return what to boot `kernel` with.

    Args:
        image: the name of an image in the store; or a file, if it is no str, begins with /, ./, ../
            or ~, or ends in .cpio: an image's file system, or an initramfs. None, or "default": our
            own image. "tiny": the one that brings the agent, with Python and busybox alone.
        disk_bytes: of the disk that takes what the guest writes; 0: its memory does.
        init: the image's program that is PID 1, an absolute path; "auto": what the image runs, if
            that is an init; "agent", as None: voidbox's agent.
        state_folder: of the store; None for the user's own.

    Raises:
        ConfigError: there is no such image, or no runtime for the kernel; `init` is none, or needs
            an image of its own.
        HostError: the store cannot be read.
    """
    choice = _choose(image, kernel, disk_bytes, state_folder)
    path = _init_path(init, choice.config)
    if not path:
        return choice
    if choice.root is None or not choice.root.image or choice.image == DEFAULT:
        raise ConfigError(f"--init {path}: only an image that brings an init has one: see --image")
    return choice._replace(root=choice.root._replace(init=path))


def _init_path(init: str | None, config: ImageConfig | None) -> str:
    if init is None or init == INIT_AGENT:
        return ""
    if init == INIT_AUTO:
        words = config.command() if config is not None else ()
        is_init = bool(words) and words[0].startswith("/") and os.path.basename(words[0]) in _INITS
        return words[0] if is_init else ""
    if not isinstance(init, str) or not init.startswith("/") or "\n" in init:
        raise ConfigError(f"init {init!r}: give an absolute path in the image, auto or agent")
    return init


def _choose(
    image: str | os.PathLike[str] | None,
    kernel: str,
    disk_bytes: int | None,
    state_folder: str | None,
) -> Choice:
    if disk_bytes is not None:
        disk_bytes = check_disk_bytes(disk_bytes)
    if image in (None, DEFAULT):
        return _choose_default(kernel, disk_bytes)
    if image == TINY:
        return _choose_tiny(kernel, disk_bytes)
    assert image is not None
    if not isinstance(image, str) or re.fullmatch(_PATH, image):
        path = os.path.abspath(os.path.expanduser(image))
        _check_file(path)
        if not is_file_system(path):
            return choose_initramfs(path, disk_bytes)
        return Choice(path, _on_disks(kernel, disk_bytes, path))
    from voidbox.images.store import ImageStore

    found = ImageStore(state_folder).find(image)
    config = found.config
    root = _on_disks(kernel, disk_bytes, found.path)._replace(
        digest=found.id,
        user=config.user,
        workdir=config.workdir if config.workdir != "/" else "",
        volumes=config.volumes,
    )
    return Choice(image, root, config)


def is_stored(image: object) -> bool:
    """Whether an image that choose() takes is the name of one in the store."""
    if not isinstance(image, str) or image in (DEFAULT, TINY):
        return False
    return not re.fullmatch(_PATH, image)


def choose_initramfs(path: str, disk_bytes: int | None = None) -> Choice:
    """Return the choice of an initramfs.

    Raises:
        ConfigError: it was to have a disk.
    """
    if disk_bytes:
        raise ConfigError(f"{path} is an initramfs: it is all memory, and gets no disk")
    return Choice(os.path.abspath(path))


def _check_file(path: str) -> None:
    if os.path.isdir(path):
        raise ConfigError(
            f"the image {path} is a folder: voidbox image import NAME {path} makes an image of it"
        )
    if not os.path.exists(path):
        raise ConfigError(
            f"there is no image {path}: give a file, or the name of one that voidbox image ls lists"
        )


def _choose_default(kernel: str, disk_bytes: int | None) -> Choice:
    """Return our image; where only the tiny one has been built, that."""
    path = defaults.find_default_image()
    if path is None or defaults.find_root(kernel) is None:
        return _choose_tiny(kernel, disk_bytes)
    root = _on_disks(kernel, disk_bytes, path)
    return Choice(DEFAULT, root._replace(user=_DEFAULT_USER, workdir=WORKDIR))


def _choose_tiny(kernel: str, disk_bytes: int | None) -> Choice:
    files = defaults.find_root(kernel)
    if files is None:  # built by an older voidbox
        return choose_initramfs(defaults.find_image(kernel), disk_bytes)
    return Choice(TINY, Root(files.boot, files.runtime, disk_bytes=disk_bytes or 0))


def _on_disks(kernel: str, disk_bytes: int | None, image: str) -> Root:
    files = defaults.find_root(kernel)
    if files is None:
        raise ConfigError(
            f"the guest image for {kernel} is older than images on disks: run voidbox setup again"
        )
    size = DISK_BYTES_DEFAULT if disk_bytes is None else disk_bytes
    modules = defaults.find_modules(kernel)
    return Root(files.boot, files.runtime, image, size, modules=modules)
