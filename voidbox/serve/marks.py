"""What the server knows of a sandbox, in the sandbox's own record: so a restart loses nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from voidbox.named_tuple import NamedTuple

# Names of metadata that begin so are the server's: no client reads or writes them.
PREFIX = "voidbox.serve"


class Mark(NamedTuple):
    """What was asked for when a sandbox was made.

    Attributes:
        key_id: whose it is.
        template: by which name; `alias`, if that is another one.
        is_secure: its data plane wants a token.
        auto_pause: it is paused, not killed, when its time is over.
        auto_resume: a request to it wakes it.
        internet: what allow_internet_access was.
        network: the request's `network`.
        names: of the metadata that the client gave; a snapshot's sandbox leaves more behind.
        user: whom files and commands belong to that name nobody.
        workdir: where commands begin that say nothing.
        is_build: a template is being made in it: clients do not see it.
        given_at: when its client got it, in seconds since 1970, if it had waited in a pool.
    """

    key_id: str
    template: str
    is_secure: bool = True
    auto_pause: bool = False
    auto_resume: bool = False
    internet: bool = True
    network: Mapping[str, Any] = {}
    names: Sequence[str] = ()
    user: str = ""
    workdir: str = ""
    is_build: bool = False
    given_at: float | None = None

    @property
    def is_public(self) -> bool:
        """Whether its ports are open to whoever knows its ID."""
        return self.network.get("allowPublicTraffic") is not False

    def to_metadata(self) -> dict[str, str]:
        """Return it as a part of a record's metadata."""
        return {PREFIX: json.dumps(self._asdict())}

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Mark | None:
        """Return a sandbox's mark; None for one that no server made."""
        try:
            values = json.loads(metadata[PREFIX])
            return cls(**values)
        except (KeyError, ValueError, TypeError):
            return None


def users_own(metadata: Mapping[str, str], mark: Mark) -> dict[str, str]:
    """Return the metadata that a client gave."""
    return {name: metadata[name] for name in mark.names if name in metadata}
