"""What a user says of a volume: SOURCE:TARGET[:ro|rw]."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.volumes.store import is_name

FORM = "SOURCE:TARGET[:ro]"
_MODES = {"ro": True, "rw": False}
# Where the guest's own things are: what is mounted over them would take them away.
_KEPT = ("/proc", "/sys", "/dev", "/.voidbox", "/etc/voidbox")
_TARGET_BYTES_MAX = 1024


class VolumeSpec(NamedTuple):
    """A volume, or a folder of the host, and where the guest has it.

    Attributes:
        source: an absolute path of the host, or the name of a volume.
        target: an absolute path in the guest, without dots.
        is_read_only: the guest cannot write.
    """

    source: str
    target: str
    is_read_only: bool = False

    @property
    def is_named(self) -> bool:
        """Whether it is a volume, and no folder of the host's."""
        return not self.source.startswith("/")

    def __str__(self) -> str:
        """What parse_volume() reads."""
        return f"{self.source}:{self.target}{':ro' if self.is_read_only else ''}"


def parse_volume(text: str) -> VolumeSpec:
    """Return what SOURCE:TARGET[:ro|rw] says. A source with a / in it, or . or ~, is a folder.

    Raises:
        ConfigError: it is not of this form, or no guest can have such a target.
    """
    if not isinstance(text, str):
        raise ConfigError(f"volume {text!r}: give text, {FORM}")
    rest, colon, mode = text.rpartition(":")
    if not colon or mode not in _MODES:
        rest, mode = text, "rw"
    source, colon, target = rest.rpartition(":")
    if not colon or not source or not target:
        raise ConfigError(f"volume {text!r}: give {FORM}")
    if "/" in source or source.startswith("~") or source in (".", ".."):
        source = os.path.abspath(os.path.expanduser(source))
    elif not is_name(source):
        raise ConfigError(
            f"volume {text!r}: {source!r} is no volume's name; a folder of this host has a / in it"
        )
    return VolumeSpec(source, _check_target(text, target), _MODES[mode])


def parse_volumes(texts: Sequence[str], *, copied_to: str | None = None) -> tuple[VolumeSpec, ...]:
    """Return what several say together.

    Args:
        copied_to: the guest's folder that a folder of the host is copied to, and back; None: none.

    Raises:
        ConfigError: see parse_volume; a folder is none; two want the same place or the same volume.
    """
    if isinstance(texts, str):
        raise ConfigError(f"volumes={texts!r}: give a list of {FORM}")
    found = tuple(map(parse_volume, texts))
    for spec in found:
        if not spec.is_named:
            _check_folder(spec.source)
        if copied_to is not None and _is_inside(spec.target, copied_to):
            raise ConfigError(
                f"volume {str(spec)!r}: what is copied to {copied_to} would be copied back with "
                "it: give it another place, or have the workspace live, with :rw"
            )
    _check_once("two volumes cannot both be at", [spec.target for spec in found])
    _check_once("give once the volume", [spec.source for spec in found if spec.is_named])
    return found


def writes_named(texts: Sequence[str]) -> bool:
    """Whether one is a named volume that the guest writes: it is to be left in order at the end.

    Raises:
        ConfigError: see parse_volume.
    """
    return any(spec.is_named and not spec.is_read_only for spec in map(parse_volume, texts))


def _check_target(text: str, target: str) -> str:
    if not target.startswith("/"):
        raise ConfigError(f"volume {text!r}: {target!r} is no absolute path in the guest")
    path = "/" + posixpath.normpath(target).lstrip("/")
    if "\n" in path or "\0" in path or len(os.fsencode(path)) > _TARGET_BYTES_MAX:
        raise ConfigError(f"volume {text!r}: the guest cannot have such a path")
    if path == "/" or any(_is_inside(path, kept) for kept in _KEPT):
        raise ConfigError(f"volume {text!r}: {path} is the guest's own: give it another place")
    return path


def _check_folder(path: str) -> None:
    if not os.path.isdir(path):
        raise ConfigError(f"the volume's folder {path} is none: make it first")
    if os.path.samefile(path, "/"):
        raise ConfigError("cannot share /: that is all of this host; name a folder of its own")


def _check_once(what: str, words: Sequence[str]) -> None:
    for word in words:
        if words.count(word) > 1:
            raise ConfigError(f"{what} {word}")


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")
