"""The values of a sandbox's secrets. In the keeper alone."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.secrets.spec import Kept, Place, check_value

_SHOWN = "[a secret]"


class Held(NamedTuple):
    """A secret with its value."""

    name: str
    placeholder: bytes
    value: bytes
    places: frozenset[Place]
    in_body: bool

    def __repr__(self) -> str:
        return f"Held({self.name!r})"  # a traceback, a log: never the value


class Vault:
    """Thread: any.

    Args:
        values: by name; a secret without one is not put in anywhere.
    """

    def __init__(self, kept: Iterable[Kept], values: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._kept = {secret.name: secret for secret in kept}
        self._held: dict[str, Held] = {}
        self._earlier: dict[str, bytes] = {}  # replaced; some server may still tell it
        for name, value in values.items():
            self.set(name, value)

    def set(self, name: str, value: str) -> None:
        """Give a secret a value, from the next request on.

        Raises:
            ConfigError: there is no such secret, or no such value.
        """
        kept = self._kept.get(name)
        if kept is None:
            known = ", ".join(self._kept) or "none"
            raise ConfigError(f"the sandbox has no secret {name!r}; it has: {known}")
        held = Held(
            name,
            kept.placeholder.encode(),
            check_value(name, value).encode(),
            frozenset(kept.places),
            kept.in_body,
        )
        with self._lock:
            earlier = self._held.get(name)
            if earlier is not None and earlier.value != held.value:
                self._earlier[name] = earlier.value
            self._held[name] = held

    def values(self) -> dict[str, str]:
        """Return the values, for a sandbox that is made of this one."""
        with self._lock:
            return {name: held.value.decode() for name, held in self._held.items()}

    def all(self) -> list[Held]:
        """Return every secret that has a value."""
        with self._lock:
            return list(self._held.values())

    def at(self, place: Place | None) -> list[Held]:
        """Return those that may go to a place."""
        return [held for held in self.all() if place in held.places]

    def masks(self, place: Place | None) -> list[tuple[bytes, bytes]]:
        """Return what is not to come back from a place, and what comes in its stead, as long."""
        found = []
        with self._lock:
            for name, held in self._held.items():
                if place in held.places:
                    values = (held.value, self._earlier.get(name))
                    found += [(value, _cover(held, value)) for value in values if value]
        return found

    def hide(self, text: str) -> str:
        """Return a text for a log, without any value in it."""
        with self._lock:
            values = [held.value for held in self._held.values()] + list(self._earlier.values())
        for value in sorted(values, key=len, reverse=True):
            text = text.replace(value.decode(), _SHOWN)
        return text


def _cover(held: Held, value: bytes) -> bytes:
    """Return what is as long as a value: its placeholder, if that is."""
    if len(held.placeholder) == len(value):
        return held.placeholder
    return b"*" * len(value)
