"""A secret as users write it.

NAME=VALUE@HOST[,HOST…]     the value itself, which other users of the host see in the process list
NAME@HOST                   the value of the variable NAME, here
NAME=@FILE@HOST             a file's content, without the line's end
NAME=-@HOST                 standard input's
…@HOST:PORT                 a port other than 443
…@HOST+body                 put in in bodies of requests, too
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.net.rules import parse_rule
from voidbox.secrets.placeholder import make_placeholder

VALUE_BYTES_MAX = 16 << 10  # what a server takes as a header, and some more
HOSTS_MAX, SECRETS_MAX = 32, 64
PORT = 443

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_BODY = "+body"


class Place(NamedTuple):
    """Where a secret may go: a host's name, folded, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return self.host if self.port == PORT else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Secret:
    """What the guest is to use without having it.

    Args:
        name: the variable that the guest's commands have, with a placeholder in it.
        hosts: where the value goes: names, each with or without a port ("api.example.com:8443");
            443 if there is none. No wildcards, no addresses.
        value: None for the variable's value here.
        in_body: put it in in bodies of requests, too.
    """

    name: str
    hosts: Sequence[str]
    value: str | None = field(default=None, repr=False)
    in_body: bool = False


class Kept(NamedTuple):
    """A secret as a sandbox's record has it: without its value.

    Attributes:
        placeholder: what the guest has.
    """

    name: str
    placeholder: str
    places: tuple[Place, ...]
    in_body: bool = False

    def to_json(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return {
            "name": self.name,
            "placeholder": self.placeholder,
            "hosts": list(map(str, self.places)),
            "in_body": self.in_body,
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Kept:
        """Return what to_json() described.

        Raises:
            ConfigError: it is nothing of the kind.
        """
        try:
            places = tuple(map(parse_place, values["hosts"]))
            name, placeholder = str(values["name"]), str(values["placeholder"])
            return Kept(name, placeholder, places, bool(values["in_body"]))
        except (KeyError, TypeError) as error:
            raise ConfigError(f"the record's secret makes no sense: {error!r}") from error


def parse_secret(text: str) -> Secret:
    """Return the secret that one --secret describes, with its value read.

    Raises:
        ConfigError: it is none. No message shows a value.
    """
    left, at, right = text.rpartition("@")
    name, equals, value = left.partition("=")
    if not at or not right or not name:
        shown = (name or right).partition("=")[0]
        raise ConfigError(
            f"--secret {shown}…: write NAME=VALUE@HOST, or NAME@HOST for the variable's value here"
        )
    in_body = right.endswith(_BODY)
    hosts = right.removesuffix(_BODY).split(",")
    found: str | None = None
    if equals:
        found = read_value(name, value)
    return Secret(name, hosts, found, in_body)


def read_value(name: str, text: str) -> str:
    """Return a value: `text`, or what the file "@FILE", or "-", standard input, has in it.

    Raises:
        ConfigError: it cannot be read, or is too long.
    """
    if text == "-":
        data = sys.stdin.buffer.read(VALUE_BYTES_MAX + 2)
    elif text.startswith("@"):
        try:
            with open(text[1:], "rb") as file:
                data = file.read(VALUE_BYTES_MAX + 2)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"secret {name}: cannot read {text[1:]}: {reason}") from error
    else:
        return text
    data = data.removesuffix(b"\n").removesuffix(b"\r")
    return data.decode("utf-8", "surrogateescape")


def check_value(name: str, value: object) -> str:
    """Return a value that can be put into a header.

    Raises:
        ConfigError: it cannot.
    """
    if not isinstance(value, str):
        raise ConfigError(f"secret {name}: its value is no text")
    if not value:
        raise ConfigError(f"secret {name}: its value is empty")
    if len(value.encode("utf-8", "surrogateescape")) > VALUE_BYTES_MAX:
        size = VALUE_BYTES_MAX >> 10
        raise ConfigError(f"secret {name}: its value has more than {size} KiB: no server takes it")
    if not value.isprintable() or not value.isascii() or value != value.strip():
        raise ConfigError(
            f"secret {name}: its value has line breaks, blanks around it, or letters that no "
            "header can have"
        )
    return value


def parse_place(text: str) -> Place:
    """Return the host and the port of "HOST" or "HOST:PORT".

    Raises:
        ConfigError: it is no single name.
    """
    if not isinstance(text, str) or not text:
        raise ConfigError("name a host, such as api.example.com")
    rule = parse_rule(text)
    if rule.is_any or rule.is_wildcard:
        raise ConfigError(f"{text!r}: name each host: whoever owns a name below gets the secret")
    if not rule.name:
        raise ConfigError(f"{text!r} is an address; certificates speak of names: give the host's")
    if rule.has_ports and rule.port_low != rule.port_high:
        raise ConfigError(f"{text!r}: give one port")
    return Place(rule.name, rule.port_low if rule.has_ports else PORT)


def resolve(
    secrets: Iterable[Secret], environment: Mapping[str, str] | None = None
) -> tuple[list[Kept], dict[str, str]]:
    """Return what the record keeps of secrets, and their values by name.

    Args:
        environment: where values are that are not given; None for this process's.
    Raises:
        ConfigError: one of them cannot be.
    """
    environment = os.environ if environment is None else environment
    kept: list[Kept] = []
    values: dict[str, str] = {}
    for secret in secrets:
        if not isinstance(secret, Secret):
            raise ConfigError(f"secrets: {type(secret).__name__}: give a list of Secret(…)")
        if not isinstance(secret.name, str) or not _NAME.fullmatch(secret.name):
            raise ConfigError(f"secret {secret.name!r}: no program can have such a variable")
        if secret.name in values:
            raise ConfigError(f"secret {secret.name}: it is given twice")
        value = environment.get(secret.name) if secret.value is None else secret.value
        if value is None:
            raise ConfigError(
                f"secret {secret.name}: there is no variable {secret.name} here: set it, or give "
                f"a value (Secret(value=…), {secret.name}=@FILE@HOST, {secret.name}=-@HOST)"
            )
        values[secret.name] = check_value(secret.name, value)
        kept.append(_keep(secret, value))
    if len(kept) > SECRETS_MAX:
        raise ConfigError(f"{len(kept)} secrets; at most {SECRETS_MAX}")
    return kept, values


def _keep(secret: Secret, value: str) -> Kept:
    if isinstance(secret.hosts, str) or not secret.hosts or len(secret.hosts) > HOSTS_MAX:
        raise ConfigError(f"secret {secret.name}: give a list of 1 to {HOSTS_MAX} hosts")
    try:
        places = tuple(dict.fromkeys(map(parse_place, secret.hosts)))
    except ConfigError as error:
        raise ConfigError(f"secret {secret.name}: {error}") from None
    return Kept(secret.name, make_placeholder(value), places, secret.in_body)
