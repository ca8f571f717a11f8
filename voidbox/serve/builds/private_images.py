"""Images that a client's own password has brought: nobody else's key may use them.

In the store each has a name that says whose it is, KEY.key.voidbox/…, and no other. One that has
another name too, by `voidbox image pull` say, is everybody's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from voidbox.images.reference import Reference
from voidbox.serve.keys import Key

_REGISTRY = ".key.voidbox"  # no registry's: there is no such domain
_DIGITS = 32


def reference_of(key: Key, reference: Reference) -> Reference:
    """Return the store's name for what a key's password has brought."""
    digest = hashlib.sha256(reference.name.encode()).hexdigest()
    return Reference(f"{key.id}{_REGISTRY}", digest[:_DIGITS])


def is_private(name: str) -> bool:
    """Whether an image's name is one of these."""
    return name.partition("/")[0].endswith(_REGISTRY)


def may_use(key: Key, names: Iterable[str]) -> bool:
    """Whether a key may use an image with these names, which are complete."""
    names = list(names)
    owners = [name.partition("/")[0].removesuffix(_REGISTRY) for name in names if is_private(name)]
    return len(owners) < len(names) or not names or any(map(key.sees, owners))
