"""How an image wants its commands to be run: the part of an OCI image configuration that counts.

OCI image specification, config.md: "config" of application/vnd.oci.image.config.v1+json, which
docker's application/vnd.docker.container.image.v1+json has as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from voidbox.images.errors import ImageError
from voidbox.named_tuple import NamedTuple

_WORDS_MAX, _TEXT_BYTES_MAX = 4096, 128 << 10  # the kernel's MAX_ARG_STRLEN

# For what says nothing of its own; docker's.
DEFAULT_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


class ImageConfig(NamedTuple):
    """What an image says about what runs in it.

    Attributes:
        env: variables, in the image's order.
        workdir: absolute.
        user: NAME[:GROUP] or UID[:GID] of the image's own /etc/passwd; "" is root.
        entrypoint: words before those of the command.
        cmd: the words after the entrypoint where the user gives none.
        exposed_ports: such as "8080/tcp".
        stop_signal: such as "SIGINT"; "" is SIGTERM.
        labels: what its maker says of it.
        volumes: folders that its programs expect to be there, as a volume of docker's would be.
    """

    env: dict[str, str] = {}  # never changed
    workdir: str = "/"
    user: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: dict[str, str] = {}
    volumes: tuple[str, ...] = ()

    def command(self, words: Sequence[str] = ()) -> tuple[str, ...]:
        """Return what `run` executes: the entrypoint, then the user's words or else `cmd`."""
        return (*self.entrypoint, *(words or self.cmd))

    def to_json(self) -> dict[str, Any]:
        """Return it as from_json() takes it."""
        return self._asdict()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ImageConfig:
        """Build it from what to_json() gave.

        Raises:
            ImageError: it is something else.
        """
        return cls(
            env=_texts(values, "env"),
            workdir=_workdir(values, "workdir"),
            user=_text(values, "user"),
            entrypoint=_words(values, "entrypoint"),
            cmd=_words(values, "cmd"),
            exposed_ports=_words(values, "exposed_ports"),
            stop_signal=_text(values, "stop_signal"),
            labels=_texts(values, "labels"),
            volumes=_words(values, "volumes"),
        )

    @classmethod
    def from_oci(cls, document: dict[str, Any]) -> ImageConfig:
        """Build it from an image configuration, which may be anybody's.

        Raises:
            ImageError: it is not as the specification has it.
        """
        values = document.get("config")
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise ImageError("the image's configuration is wrong: config")
        env = {}
        for word in _words(values, "Env"):
            name, equals, value = word.partition("=")
            if name and equals:
                env[name] = value
        return cls(
            env=env,
            workdir=_workdir(values, "WorkingDir"),
            user=_text(values, "User"),
            entrypoint=_words(values, "Entrypoint"),
            cmd=_words(values, "Cmd"),
            exposed_ports=_keys(values, "ExposedPorts"),
            stop_signal=_text(values, "StopSignal"),
            labels=_texts(values, "Labels"),
            volumes=_keys(values, "Volumes"),
        )


def _text(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or not is_clean(value):
        raise ImageError(f"the image's configuration is wrong: {key}")
    return value


def _workdir(values: dict[str, Any], key: str) -> str:
    path = _text(values, key)
    return path if path.startswith("/") else f"/{path}"


def _words(values: dict[str, Any], key: str) -> tuple[str, ...]:
    value = values.get(key)
    if value is None:
        return ()
    if (
        not isinstance(value, list)
        or len(value) > _WORDS_MAX
        or not all(isinstance(word, str) and is_clean(word) for word in value)
    ):
        raise ImageError(f"the image's configuration is wrong: {key}")
    return tuple(value)


def _keys(values: dict[str, Any], key: str) -> tuple[str, ...]:
    """Return what a set has, which the specification writes as an object of empty objects."""
    value = values.get(key)
    if not isinstance(value, dict | None):
        raise ImageError(f"the image's configuration is wrong: {key}")
    return _words({key: list(value or {})}, key)


def _texts(values: dict[str, Any], key: str) -> dict[str, str]:
    value = values.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _WORDS_MAX:
        raise ImageError(f"the image's configuration is wrong: {key}")
    if not all(isinstance(text, str) and is_clean(text) for pair in value.items() for text in pair):
        raise ImageError(f"the image's configuration is wrong: {key}")
    return dict(value)


def is_clean(text: str) -> bool:
    """Whether a text can be a word of a command or a variable's value."""
    try:
        return len(text.encode()) < _TEXT_BYTES_MAX and "\0" not in text
    except UnicodeEncodeError:  # a lone surrogate, which JSON can say
        return False
