"""Who the user is to a registry: what `docker login` or `podman login` wrote down.

Passwords are told to registries alone, and never shown: not in messages, not in a repr.
"""

from __future__ import annotations

import base64
import json
import os
from typing import NamedTuple

from voidbox.errors import ConfigError
from voidbox.images.reference import DEFAULT_REGISTRY

_FILE_BYTES_MAX = 4 << 20
_DOCKER_IO = ("index.docker.io", "registry-1.docker.io")  # other names that are in use


class Credentials(NamedTuple):
    """A user's name and password."""

    user: str
    password: str

    @property
    def basic(self) -> str:
        """The Authorization header's value (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()

    def __repr__(self) -> str:
        return f"Credentials({self.user!r}, …)"


def find_credentials(registry: str) -> Credentials | None:
    """Return what is known for a registry, from $DOCKER_CONFIG or ~/.docker/config.json.

    Raises:
        ConfigError: the file is there, but cannot be used.
    """
    folder = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    path = f"{folder}/config.json"
    try:
        with open(path, "rb") as file:
            document = json.loads(file.read(_FILE_BYTES_MAX))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is no JSON: docker login writes it anew") from None
    auths = document.get("auths") if isinstance(document, dict) else None
    if not isinstance(auths, dict):
        return None
    wanted = {registry, *(_DOCKER_IO if registry == DEFAULT_REGISTRY else ())}
    for key, entry in auths.items():
        if _host(key) in wanted and isinstance(entry, dict):
            found = _parse(entry, path, registry)
            if found is not None:
                return found
    return None


def _host(key: str) -> str:
    """Return the registry that a key of "auths" means: some are addresses."""
    return key.partition("://")[2].partition("/")[0] if "://" in key else key.partition("/")[0]


def _parse(entry: dict[str, object], path: str, registry: str) -> Credentials | None:
    user, password, auth = entry.get("username"), entry.get("password"), entry.get("auth")
    if isinstance(user, str) and isinstance(password, str) and user:
        return Credentials(user, password)
    if not isinstance(auth, str) or not auth:
        return None  # they are in a credential store
    try:
        user, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except ValueError:  # with the secret in its words
        colon = ""
    if not colon:
        raise ConfigError(f"{path} is wrong for {registry}: docker login {registry} mends it")
    return Credentials(str(user), str(password).rstrip("\0"))
