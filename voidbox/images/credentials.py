"""Who the user is to a registry: what `docker login` or `podman login` wrote down.

Passwords are told to registries alone, and never shown: not in messages, not in a repr.
"""

from __future__ import annotations

import base64
import json
import os

from voidbox.errors import ConfigError
from voidbox.images.reference import DEFAULT_REGISTRY
from voidbox.named_tuple import NamedTuple

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


def find_credentials(registry: str, repository: str = "") -> Credentials | None:
    """Return what is known for a repository of a registry: see _files() for where.

    Of several the most specific one counts: a user may be another one in each namespace.

    Raises:
        ConfigError: a file is there, but cannot be used.
    """
    hosts = (registry, *(_DOCKER_IO if registry == DEFAULT_REGISTRY else ()))
    parts = repository.split("/") if repository else []
    for path in _files():
        entries = [(_meant(key), entry) for key, entry in _read(path).items()]
        for count in range(len(parts), -1, -1):
            wanted = {"/".join((host.lower(), *parts[:count])) for host in hosts}
            for name, entry in entries:
                if name in wanted and isinstance(entry, dict):
                    found = _parse(entry, path, registry)
                    if found is not None:
                        return found
    return None


def _files() -> list[str]:
    """Return where podman and docker write it: containers-auth.json(5), docker login(1)."""
    docker = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    named = os.environ.get("REGISTRY_AUTH_FILE")
    found = [named] if named else []
    if runtime:
        found.append(f"{runtime}/containers/auth.json")
    return [*found, f"{docker}/config.json"]


def _read(path: str) -> dict[str, object]:
    """Return a file's "auths"; nothing if there is no such file."""
    try:
        with open(path, "rb") as file:
            document = json.loads(file.read(_FILE_BYTES_MAX))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is no JSON: docker login writes it anew") from None
    auths = document.get("auths") if isinstance(document, dict) else None
    return auths if isinstance(auths, dict) else {}


def _meant(key: str) -> str:
    """Return what a key of "auths" means: HOST[/NAMESPACE…]. Of an address only the host counts."""
    host, _, path = key.rpartition("://")[2].rstrip("/").partition("/")
    if "://" in key or path in ("", "v1", "v2"):  # docker's protocols, which are no namespaces
        return host.lower()
    return f"{host.lower()}/{path}"


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
